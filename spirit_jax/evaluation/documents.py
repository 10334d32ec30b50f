"""Hypotheses as token ids, and their scores."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from spirit_jax.evaluation.items import Clip, Hypothesis, Piece, Text
from spirit_jax.inference.scoring import TokenScores
from spirit_jax.units import SpeechUnits
from spirit_jax.vocabulary import Vocabulary


class Document(NamedTuple):
    """A hypothesis as the model reads it."""

    ids: Int[np.ndarray, " N"]
    """`<s>` and the tokens, without an end."""
    start: int
    """The first token that counts; those before it are the context."""


def encode(vocabulary: Vocabulary, hypothesis: Hypothesis, units: Mapping[Clip, SpeechUnits]) -> Document:
    """The ids of a hypothesis, as the released tokenizer gives them for its string form.

    The first token that counts is the first one that differs from the context read alone, as in
    `SpiritLM.log_likelihood`.
    """
    before = _ids(vocabulary, hypothesis.context, units, hypothesis.scored[0])
    ids = _ids(vocabulary, (*hypothesis.context, *hypothesis.scored), units, None)
    shortest = min(len(before), len(ids))
    differs = np.flatnonzero(before[:shortest] != ids[:shortest])
    return Document(ids, int(differs[0]) if differs.size else shortest)


def _ids(
    vocabulary: Vocabulary, pieces: Sequence[Piece], units: Mapping[Clip, SpeechUnits], following: Piece | None
) -> Int[np.ndarray, " N"]:
    """The ids of pieces; if a piece of another kind follows, its modality token is the last one."""
    parts: list[Any] = [vocabulary.prefix]
    last: type | None = None
    text = ""

    def flush() -> None:
        nonlocal text
        if text:
            parts.append(vocabulary.encode_text(text))
        text = ""

    for piece in pieces:
        if type(piece) is not last:
            flush()
            parts.append([vocabulary.text_id if isinstance(piece, Text) else vocabulary.speech_id])
            last = type(piece)
        if isinstance(piece, Text):
            text += piece.text
        else:
            parts.append(vocabulary.unit_ids(units[piece]))
    flush()
    if following is not None and type(following) is not last:
        parts.append([vocabulary.text_id if isinstance(following, Text) else vocabulary.speech_id])
    return np.concatenate([np.asarray(part, np.int32) for part in parts])


class Score(NamedTuple):
    """Log-likelihoods of a hypothesis in nats, each among all tokens and among those of the modality."""

    tokens: int
    """Tokens that count."""
    all: float
    modality: float
    whole_tokens: int
    """Tokens of the whole document after `<s>`, context and modality tokens included."""
    whole_all: float
    whole_modality: float

    @classmethod
    def of(cls, document: Document, scores: TokenScores) -> "Score":
        """Sum the scores of a document's tokens, in float64."""
        everything, modality = (np.asarray(score, np.float64) for score in (scores.all, scores.modality))
        start = document.start
        return cls(
            tokens=len(document.ids) - start,
            all=float(everything[start:].sum()),
            modality=float(modality[start:].sum()),
            whole_tokens=len(document.ids) - 1,
            whole_all=float(everything[1:].sum()),
            whole_modality=float(modality[1:].sum()),
        )

    def value(self, normalization: str, softmax: str) -> float:
        """The score by one of `NORMALIZATIONS` and one of `SOFTMAXES`."""
        total = self.all if softmax == "all" else self.modality
        if normalization == "sum":
            return total
        if normalization == "mean":
            return total / self.tokens
        return (self.whole_all if softmax == "all" else self.whole_modality) / self.whole_tokens


NORMALIZATIONS = {
    "sum": "sum over the tokens of the hypothesis",
    "mean": "mean over the tokens of the hypothesis, the paper's normalized score",
    "whole": "mean over all tokens after <s>, context and modality tokens included, slamkit's formula",
}
"""Rules that turn log-likelihoods into scores, by their name in the results."""
SOFTMAXES = {
    "all": "probability among all tokens",
    "modality": "probability among the tokens of the same modality, the others masked before the softmax",
}
"""Sets of tokens that the softmax covers, by their name in the results."""
