"""Text models that tell how likely a transcript is, behind a small protocol."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from spirit_jax.core.files import read_json
from spirit_jax.evaluation.items import BenchmarkError
from spirit_jax.inference.spiritlm import SpiritLM


class TextScore(NamedTuple):
    """Likelihood of a text."""

    nats: float
    """Negative log-likelihood of its tokens after the first, in nats."""
    tokens: int
    """Number of these tokens."""


class TextModel(Protocol):
    """Gives texts a likelihood."""

    name: str
    """Name of the model in the report."""

    def score(self, texts: Sequence[str]) -> list[TextScore]:
        """One score a text; a text of fewer than two tokens has none to score."""
        ...


class SpiritTextModel:
    """A checkpoint of this package, Llamas converted to it included, that reads `[Text]` and the text."""

    def __init__(self, directory: str):
        """
        Raises:
            SpiritError: there is no checkpoint, or it cannot be read.
        """
        self._model = SpiritLM.from_pretrained(directory)
        self.name = f"checkpoint {pathlib.Path(directory).name}"

    def score(self, texts: Sequence[str]) -> list[TextScore]:
        """As `TextModel.score`. Tokens beyond the context of the model are left out."""
        vocabulary, context = self._model.vocabulary, self._model.config.max_position_embeddings
        start = [*vocabulary.prefix, vocabulary.text_id]
        documents = [np.array([*start, *vocabulary.encode_text(text)], np.int32)[:context] for text in texts]
        scores = self._model.token_scores([[document] for document in documents])
        result = []
        for document, (found,) in zip(documents, scores, strict=True):
            first = len(start) + 1
            own = np.asarray(found.all[first:], np.float64)
            result.append(TextScore(-float(own.sum()), max(len(document) - first, 0)))
        return result


class HuggingFaceTextModel:
    """A causal language model in Hugging Face's layout, run by transformers and PyTorch."""

    def __init__(self, directory: str):
        """
        Raises:
            BenchmarkError: transformers or torch is not installed, or the directory cannot be read.
        """
        try:
            import torch
            import transformers

            self._torch = torch
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory)
            self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
        except ImportError as error:
            raise BenchmarkError(f"{directory} is read by transformers and torch: {error}") from error
        except (OSError, ValueError, KeyError) as error:
            raise BenchmarkError(f"{directory}: not a language model that can be read ({error})") from error
        self.name = f"causal language model {pathlib.Path(directory).name}"

    def score(self, texts: Sequence[str]) -> list[TextScore]:
        """As `TextModel.score`, one text at a time. Tokens beyond the context of the model are left out."""
        context = getattr(self._model.config, "max_position_embeddings", None) or 2**20
        result = []
        for text in texts:
            ids = self._tokenizer(text, return_tensors="pt").input_ids[:, :context]
            if ids.shape[1] < 2:
                result.append(TextScore(0.0, 0))
                continue
            with self._torch.no_grad():
                mean = self._model(ids, labels=ids).loss
            result.append(TextScore(float(mean) * (ids.shape[1] - 1), ids.shape[1] - 1))
        return result


def open_text_model(directory: str) -> TextModel:
    """The model of a directory: a checkpoint of this package, or one in Hugging Face's layout.

    Raises:
        BenchmarkError: there is no such directory, or it has no config.json.
        SpiritError: it cannot be used.
    """
    path = pathlib.Path(directory).expanduser()
    if not path.is_dir():
        raise BenchmarkError(
            f"--text-model {directory}: no such directory; expected a checkpoint or a Hugging Face model"
        )
    config = read_json(path / "config.json", BenchmarkError) if (path / "config.json").is_file() else {}
    is_hugging_face = isinstance(config, dict) and "model_type" in config
    return HuggingFaceTextModel(str(path)) if is_hugging_face else SpiritTextModel(str(path))
