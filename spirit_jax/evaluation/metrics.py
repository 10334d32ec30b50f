"""Measures of texts and units: error rates by jiwer after a named normalization, repetition, diversity, word lists."""

import collections
import hashlib
import importlib.metadata
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from spirit_jax.core.files import read_text
from spirit_jax.evaluation.items import BenchmarkError

PACKAGES = ("jiwer", "whisper_normalizer")
"""Packages that error rates need (extra `evaluation`)."""


class Errors(NamedTuple):
    """Errors of one transcript."""

    errors: int
    """Substitutions, deletions and insertions."""
    length: int
    """Words or characters of the reference."""


def normalizer(name: str) -> Callable[[str], str]:
    """The normalization of a name: `english` and `basic` are Whisper's, `none` only joins white space.

    Raises:
        BenchmarkError: whisper-normalizer is not installed.
    """
    if name == "none":
        return lambda text: " ".join(text.split())
    try:
        from whisper_normalizer.basic import BasicTextNormalizer
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise BenchmarkError("normalization needs whisper-normalizer: pip install 'spirit_jax[evaluation]'") from error
    normalize: Callable[[str], str] = EnglishTextNormalizer() if name == "english" else BasicTextNormalizer()
    return lambda text: " ".join(normalize(text).split())


def word_errors(reference: str, hypothesis: str) -> Errors:
    """Errors in words of a transcript.

    Raises:
        BenchmarkError: jiwer is not installed.
    """
    return _errors("process_words", reference, hypothesis)


def character_errors(reference: str, hypothesis: str) -> Errors:
    """Errors in characters of a transcript, spaces included.

    Raises:
        BenchmarkError: jiwer is not installed.
    """
    return _errors("process_characters", reference, hypothesis)


def _errors(function: str, reference: str, hypothesis: str) -> Errors:
    try:
        import jiwer
    except ImportError as error:
        raise BenchmarkError("error rates need jiwer: pip install 'spirit_jax[evaluation]'") from error
    found = getattr(jiwer, function)(reference, hypothesis)
    wrong = found.substitutions + found.deletions
    return Errors(wrong + found.insertions, wrong + found.hits)


def versions() -> dict[str, str]:
    """The versions of the packages that decide error rates, for the results."""
    found = {}
    for name in ("jiwer", "whisper-normalizer"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def before_word(text: str, word: str) -> str:
    """The text before the first occurrence of a word, in any case; all of it if there is none or `word` is empty."""
    if not word:
        return text
    match = re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE)
    return text if match is None else text[: match.start()].rstrip(" ,.;:!?")


def auto_bleu(words: Sequence[str], n: int = 2) -> float:
    """Share of the n-grams of a text that occur in it more than once (Lakhotia et al. 2021, arXiv 2102.01192, 4.3).

    A text that repeats itself has a high value. NaN for fewer than n words.
    """
    grams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    counts = collections.Counter(grams)
    return sum(counts[gram] > 1 for gram in grams) / len(grams) if grams else math.nan


def unit_entropy(units: Iterable[int]) -> float:
    """Entropy in bits of the distribution of units: 2 to this power is the number of units in even use."""
    counts = np.array(list(collections.Counter(units).values()), np.float64)
    shares = counts / counts.sum() if counts.size else counts
    return float(-(shares * np.log2(shares)).sum())


class WordList:
    """Words and phrases to look for in texts, in any case and at the borders of words."""

    def __init__(self, path: str):
        """
        Args:
            path: a text file with a word or phrase a line; empty lines and those that begin with # are left out.

        Raises:
            BenchmarkError: it cannot be read, or is empty.
        """
        lines = (line.strip() for line in read_text(pathlib.Path(path).expanduser(), BenchmarkError).splitlines())
        entries = sorted({" ".join(line.lower().split()) for line in lines if line and not line.startswith("#")})
        if not entries:
            raise BenchmarkError(f"{path}: no word in it; expected a word or phrase a line")
        self.fingerprint = hashlib.sha256("\n".join(entries).encode()).hexdigest()
        self.size = len(entries)
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, entries))})(?!\w)")

    def found(self, text: str) -> list[str]:
        """The entries that a text has, in their order."""
        return self._pattern.findall(" ".join(text.lower().split()))
