"""What the job of `train_speech` asks of a part that it trains."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from spirit_jax.data.packing import HostBatch
from spirit_jax.parallel.sharding import HostShare
from spirit_jax.speech_training.crops import Clips
from spirit_jax.training.config import LoopConfig
from spirit_jax.training.state import Params
from spirit_jax.training.step import Frozen, Rule
from spirit_jax.training.task import Batches, Summary


@dataclasses.dataclass(frozen=True)
class Context:
    """Where a part is trained, and on what."""

    run: pathlib.Path
    """The run directory, a checkpoint directory whose `speech_tokenizer/` holds the parts that are finished."""
    directory: pathlib.Path
    """The part's own folder in it."""
    train: Clips
    """The clips to learn from."""
    held_out: Clips
    """The clips to measure on; there may be none."""
    seed: int
    """Seed of the run."""
    data: Mapping[str, Any]
    """What the clips depend on, as plain values: corpora, share held out, seed, and the numbers of clips."""
    spike_sigmas: float
    """`FaultConfig.spike_sigmas` of the run."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A part that is ready to be trained."""

    rule: Rule
    """How a batch changes the train state."""
    summary: Summary
    """How metrics become values of the log."""
    batches: Callable[[HostShare, Mapping[str, Any] | None], Batches]
    """Opens the training data of a host, at the position that a saved state gives."""
    held_out: Callable[[HostShare], Mapping[str, Iterator[HostBatch]]]
    """Opens the held-out batches of a host, by name of their source."""
    finish: Callable[[Params], None]
    """Writes the trained part into the run's `speech_tokenizer/`, and what later parts read into the part's folder."""
    frozen: Frozen | None = None
    """Parameters that the rule reads and that no step changes."""
    sample: Callable[[Params, int], None] | None = None
    """Writes samples of these parameters after this step."""
    measure: Callable[[Params, int], Mapping[str, float]] | None = None
    """Returns figures that a batch cannot give, such as the purity of clusters."""


@dataclasses.dataclass(frozen=True)
class Outline:
    """A part's step without clips, to compile it."""

    rule: Rule
    """How a batch changes the train state, with the sizes that the config gives."""
    row: Mapping[str, Any]
    """The arrays of a row, whose values are of no account."""


class Part(Protocol):
    """A part of a run."""

    @property
    def name(self) -> str:
        """The folder of the run that its checkpoints and its log are in, such as `hubert_1`."""
        ...

    @property
    def loop(self) -> LoopConfig:
        """Run length and intervals."""
        ...

    @property
    def rows(self) -> int:
        """Rows of a step, over all devices of all hosts."""
        ...

    @property
    def accumulate(self) -> int:
        """Parts that a step works through one after the other to save memory."""
        ...

    def outline(self) -> Outline | None:
        """The step without clips; None if nothing is trained by gradients, or if the parts before decide its sizes."""
        ...

    def prepare(self, context: Context) -> Prepared | None:
        """Read or make what training needs, such as the labels of the clips. Results are kept in the part's folder.

        None means that the part is finished: nothing of it is trained by gradients.

        Raises:
            SpiritError: the clips or the parts before it cannot be used.
        """
        ...


class PartConfig(Protocol):
    """The section of a part that steps train."""

    @property
    def loop(self) -> LoopConfig:
        """Run length and intervals."""
        ...

    @property
    def rows(self) -> int:
        """Rows of a step, over all devices of all hosts."""
        ...


class ConfiguredPart:
    """The properties of a `Part` that its section holds."""

    config: PartConfig

    @property
    def loop(self) -> LoopConfig:
        """See `Part`."""
        return self.config.loop

    @property
    def rows(self) -> int:
        """See `Part`."""
        return self.config.rows

    @property
    def accumulate(self) -> int:
        """See `Part`. A step is not divided, unless the section of the part has this option."""
        return 1


@dataclasses.dataclass(frozen=True)
class RatioSummary:
    """A `training.task.Summary` whose values are quotients of two metrics that add up over rows and batches."""

    ratios: Mapping[str, tuple[str, str]]
    """Numerator and denominator of each value; `loss` is among them."""
    unit: str = "seconds"
    """The metric of a step that its speed is counted in: seconds of audio."""
    flops_per_unit: float = 0.0

    def train_values(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """The values of one step; the loss is that which the step minimizes."""
        return self._values(metrics) | {"loss": float(metrics["loss"])}

    def source_values(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """The held-out values of one source."""
        return self._values(sums)

    def evaluation_values(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """The held-out values over all sources."""
        return self._values(sums)

    def progress_line(self, values: Mapping[str, float]) -> str:
        """The values, and how many seconds of audio a second trains on."""
        shown = ", ".join(f"{name} {values[name]:.4g}" for name in self.ratios)
        return f"{shown}, {values[f'{self.unit}_per_second']:,.0f} {self.unit}/s"

    def evaluation_line(self, values: Mapping[str, float]) -> str:
        """The values over all sources."""
        return ", ".join(f"{name} {values[name]:.4g}" for name in self.ratios)

    def _values(self, sums: Mapping[str, Any]) -> dict[str, float]:
        return {name: float(sums[top]) / max(float(sums[below]), 1e-9) for name, (top, below) in self.ratios.items()}
