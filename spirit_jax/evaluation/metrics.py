"""Word and character error rates, by jiwer after a named normalization."""

import importlib.metadata
import re
from collections.abc import Callable
from typing import NamedTuple

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
