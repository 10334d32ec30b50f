"""Contents of a benchmark: clips, texts, hypotheses, and items that cannot be used."""

import csv
import dataclasses
import io
import pathlib
from collections.abc import Sequence
from typing import TypeVar

from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import read_text

Item = TypeVar("Item")

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
"""Suffixes that a clip of a benchmark may have; official data are WAV, smaller copies may be compressed."""


class BenchmarkError(SpiritError):
    """Data of a benchmark, or a setting of the evaluation, that cannot be used; the message names the file."""


@dataclasses.dataclass(frozen=True)
class Text:
    """A stretch of text."""

    text: str


@dataclasses.dataclass(frozen=True)
class Clip:
    """A stretch of speech: audio files, one after the other, that are encoded as one recording."""

    files: tuple[pathlib.Path, ...]

    def __str__(self) -> str:
        return " + ".join(map(str, self.files))


Piece = Text | Clip


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """Pieces whose log-likelihood is scored, and the context that the model reads before them.

    A modality token between the two belongs to the context. Neighboring texts are joined as they are.
    """

    scored: tuple[Piece, ...]
    context: tuple[Piece, ...] = ()
    name: str = ""
    """Name in submission files; "" if it has none."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """Hypotheses of which the model should prefer the first."""

    id: str
    """Name within the task and direction; the log has it."""
    hypotheses: tuple[Hypothesis, ...]
    item: str
    """Name of the item. The same item may come in several voices."""
    group: str = ""
    """Part of the task that is reported by itself."""
    frequency: int | None = None
    """Number of times that the word occurs in the benchmark's training text; None where the task has no frequencies."""


@dataclasses.dataclass(frozen=True)
class Unusable:
    """An item that cannot be scored. It is counted and named in the report."""

    id: str
    reason: str


def find_clip(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    """The audio file of a name without suffix in a folder, None if there is none."""
    return next((path for suffix in AUDIO_SUFFIXES if (path := folder / f"{name}{suffix}").is_file()), None)


def audio_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The audio files of a folder, sorted by name.

    Raises:
        BenchmarkError: there is no such folder, or no audio in it.
    """
    if not folder.is_dir():
        raise BenchmarkError(f"{folder}: no such folder")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in AUDIO_SUFFIXES)
    if not found:
        raise BenchmarkError(f"{folder}: no audio in it ({', '.join(AUDIO_SUFFIXES)})")
    return found


def csv_rows(path: pathlib.Path) -> list[list[str]]:
    """The rows of a CSV file, without empty lines.

    Raises:
        BenchmarkError: it cannot be read; names it.
    """
    try:
        return [row for row in csv.reader(io.StringIO(read_text(path, BenchmarkError), newline="")) if row]
    except csv.Error as error:
        raise BenchmarkError(f"{path}: not a CSV file that can be read ({error})") from error


def csv_table(path: pathlib.Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file whose first line names the columns.

    Raises:
        BenchmarkError: it cannot be read, lacks one of `columns`, has no rows, or a row is cut short; names it.
    """
    header, *rows = csv_rows(path) or [[]]
    lacking = [name for name in columns if name not in header]
    if lacking:
        raise BenchmarkError(f"{path}: column {lacking[0]!r} is missing; it has {', '.join(header) or 'no columns'}")
    if not rows:
        raise BenchmarkError(f"{path}: there is no row below the names of the columns")
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise BenchmarkError(f"{path}, row {number}: {len(row)} columns, expected {len(header)}")
    return [dict(zip(header, row, strict=True)) for row in rows]


def limited(items: Sequence[Item], limit: int | None) -> list[Item]:
    """Items spread evenly over the whole sequence, at most `limit` of them; None takes all."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[index * len(items) // limit] for index in range(limit)]
