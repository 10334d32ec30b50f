"""Documents of text in JSONL files, a line each, as text corpora are published. The files are read in place."""

import itertools
import pathlib
from collections.abc import Sequence

import numpy as np

from spirit_jax.core.files import decode_text, parse_json
from spirit_jax.corpora.input_path import InputPath
from spirit_jax.corpora.readers import fields, position, stat_fingerprint
from spirit_jax.corpora.utterance import CorpusError, Utterance

SCAN_BYTES = 1 << 26
"""Bytes that are searched for line ends at a time."""

_NEWLINE = ord("\n")
_LOOK, _LONGEST_LINE = 100, 1 << 24
"""Lines that tell text from a manifest of audio, and the bytes of a line that are looked at."""


class TextLines(Sequence[Utterance]):
    """The documents of JSONL files, in the order of the files and lines.

    A line is an object with `text`. The id is the line's `id`, by default FILE:LINE; other fields are ignored. The
    files are memory-mapped, and 8 bytes a line are kept.

    Attributes:
        name: of the corpus.
        split: name of the records.
        splits: (), for files have none.
        location: the file, or the pattern of the files.
        has_speech: False.
    """

    has_speech = False
    splits = ()

    def __init__(self, name: str, location: pathlib.Path, split: str, paths: Sequence[pathlib.Path]):
        """Find the lines of the files.

        Raises:
            CorpusError: the files have no line.
        """
        self.name, self.location, self.split = name, location, split
        self._paths = [path for path in paths if path.stat().st_size]  # an empty file cannot be mapped
        self._files = [np.memmap(path, np.uint8, "r") for path in self._paths]
        self._ends = [_line_ends(file) for file in self._files]
        self._first = np.cumsum([0, *map(len, self._ends)])
        if not len(self):
            raise CorpusError(f"{location}: no line of text")

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> Utterance:
        """Read one document.

        Raises:
            CorpusError: names the file and line; it is not an object with a `text`.
        """
        index = position(index, len(self), self.location)
        file = int(np.searchsorted(self._first, index, "right")) - 1
        number, ends = index - int(self._first[file]), self._ends[file]
        line = self._files[file][0 if number == 0 else ends[number - 1] + 1 : ends[number]].tobytes()
        where = f"{self._paths[file]}:{number + 1}"
        if not line.strip():
            raise CorpusError(f"{where}: empty")
        found = parse_json(decode_text(line, where, CorpusError), where, CorpusError)
        if not isinstance(found, dict) or not isinstance(found.get("text"), str):
            raise CorpusError(f"{where}: needs an object with a 'text'")
        if fields.has_audio(found):
            raise CorpusError(f"{where}: has audio, but the file begins with lines of text; put it into a manifest")
        name = fields.string(found.get("id"), "id", where) or f"{self._paths[file].name}:{number + 1}"
        return Utterance(name, None, found["text"])

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the files' names, sizes and times; their contents may be terabytes."""
        return stat_fingerprint(self._paths)


def is_text_lines(source: InputPath) -> bool:
    """Whether the input is a JSONL file of text, or a glob of JSONL files."""
    return source.path.suffix == ".jsonl" and (
        source.matches is not None or (source.path.is_file() and _holds_text(source.path))
    )


def open_text_lines(source: InputPath, split: str) -> TextLines:
    """Open a JSONL file, or all files that a glob matches.

    Raises:
        CorpusError: a glob matches no file, or one that does not hold text; names it.
    """
    if source.matches is None:
        return TextLines(source.path.stem, source.path, split, [source.path])
    paths = [path for path in source.matches if path.is_file()]
    other = [str(path) for path in paths if path.stat().st_size and not _holds_text(path)]
    if other or not paths:
        raise CorpusError(
            f"{source.argument}: {other[0] if other else 'no such file'}: needs lines with 'text' and no 'audio'"
        )
    return TextLines(source.path.parent.resolve().name, source.path, split, paths)


def _line_ends(file: np.ndarray) -> np.ndarray:
    """int64 positions of the newlines of a file, and its end if the last line has no newline."""
    starts = range(0, len(file), SCAN_BYTES)
    ends = [start + np.flatnonzero(file[start : start + SCAN_BYTES] == _NEWLINE) for start in starts]
    return np.concatenate([*ends, [len(file)]] if file[-1] != _NEWLINE else ends).astype(np.int64)


def _holds_text(path: pathlib.Path) -> bool:
    """Whether the first lines of a JSONL file are documents: some have `text`, and none has audio."""
    with path.open("rb") as file:
        lines = list(
            itertools.islice((line for line in iter(lambda: file.readline(_LONGEST_LINE), b"") if line.strip()), _LOOK)
        )
    has_text = False
    for line in lines:
        try:
            found = parse_json(decode_text(line, path, CorpusError), path, CorpusError)
        except CorpusError:
            continue  # named when it is read
        if fields.has_audio(found):
            return False
        has_text |= isinstance(found, dict) and "text" in found
    return has_text
