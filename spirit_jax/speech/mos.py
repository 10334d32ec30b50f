"""Predicted mean opinion scores of speech, 1 (bad) to 5 (excellent), by optional packages."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float

from spirit_jax.core.errors import SpiritError


class PredictorError(SpiritError):
    """A predictor of opinion scores that is unknown or not installed; the message says what to do."""


class OpinionPredictor(Protocol):
    """Guesses how listeners would rate speech."""

    name: str
    """Name of the model, for logs and result files."""

    def rate(self, clips: Sequence[Float[np.ndarray, " R"]]) -> list[float]:
        """The score of each clip, float32 [R] at 16 kHz."""
        ...


class DistillMOS:
    """The model of the package `distillmos`, which brings its weights (arXiv 2502.05356)."""

    name = "distillmos"

    def __init__(self) -> None:
        """Load the model.

        Raises:
            PredictorError: the package is not installed.
        """
        try:
            import distillmos
            import torch
        except ImportError as error:
            raise PredictorError("opinion scores need distillmos; run: pip install distillmos") from error
        self._torch, self._model = torch, distillmos.ConvTransformerSQAModel()
        self._model.eval()

    def rate(self, clips: Sequence[Float[np.ndarray, " R"]]) -> list[float]:
        """As `OpinionPredictor.rate`; clips are rated one after the other."""
        with self._torch.no_grad():
            return [float(self._model(self._torch.tensor(np.asarray(clip))[None])[0]) for clip in clips]


OPINION_PREDICTORS: dict[str, Callable[[], OpinionPredictor]] = {DistillMOS.name: DistillMOS}
"""Predictors by name."""


def open_opinion_predictor(name: str = DistillMOS.name) -> OpinionPredictor:
    """The predictor of a name.

    Raises:
        PredictorError: an unknown name, or a package that is not installed.
    """
    if name not in OPINION_PREDICTORS:
        raise PredictorError(f"unknown predictor {name!r}; choose among {', '.join(OPINION_PREDICTORS)}")
    return OPINION_PREDICTORS[name]()
