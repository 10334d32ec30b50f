"""Text by the line: JSONL files of documents, as text corpora are published, read where they lie."""

import hashlib
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from spirit_jax.corpora import CorpusError, Utterance

_NEWLINE, _STRETCH = ord("\n"), 1 << 26  # bytes that are searched for line ends at a time


class TextLines(Sequence[Utterance]):
    """The documents of JSONL files in their order, as a `Corpus` is: sequence, `name`, `split`, `has_speech`, `fingerprint`.

    A line is an object with `text`; `id` is FILE:LINE unless it says otherwise, other fields are not looked at. The files are
    mapped, and 8 bytes a line are kept.

    Raises:
        CorpusError: no line; while reading, a line that is not such an object.
    """

    has_speech = False

    def __init__(self, name: str, directory: pathlib.Path, split: str, paths: Sequence[pathlib.Path]):
        self.name, self.directory, self.split = name, directory, split
        self._paths = [path for path in paths if path.stat().st_size]  # an empty file cannot be mapped
        self._files = [np.memmap(path, np.uint8, "r") for path in self._paths]
        self._ends = [_line_ends(file) for file in self._files]
        self._first = np.cumsum([0, *map(len, self._ends)])
        if not len(self):
            raise CorpusError(f"{directory}: no line of text")

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: int) -> Utterance:
        if not -len(self) <= index < len(self):
            raise IndexError(f"line {index} of {len(self)} in {self.directory}")
        index %= len(self)
        file = int(np.searchsorted(self._first, index, "right")) - 1
        number, ends = index - int(self._first[file]), self._ends[file]
        line = self._files[file][0 if number == 0 else ends[number - 1] + 1 : ends[number]].tobytes()
        where = f"{self._paths[file]}:{number + 1}"
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise CorpusError(f"{where}: {'not JSON' if line.strip() else 'empty'} ({error})") from error
        if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
            raise CorpusError(f"{where}: needs an object with a 'text'")
        return Utterance(str(fields.get("id") or f"{self._paths[file].name}:{number + 1}"), None, fields["text"])

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the files' names, sizes and times (their bytes may be terabytes)."""
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self._paths]
        return hashlib.sha256(json.dumps(stats).encode()).hexdigest()


def _line_ends(file: np.ndarray) -> np.ndarray:
    """int64 positions of the newlines of a file; its end where the last line has none."""
    stretches = range(0, len(file), _STRETCH)
    ends = [start + np.flatnonzero(file[start : start + _STRETCH] == _NEWLINE) for start in stretches]
    return np.concatenate([*ends, [len(file)]] if file[-1] != _NEWLINE else ends).astype(np.int64)


def holds_text(path: pathlib.Path) -> bool:
    """Whether the first line of a JSONL file is a document: it has `text`, and no `audio`."""
    with path.open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
    try:
        fields = json.loads(first)
    except ValueError:
        return False
    return isinstance(fields, dict) and "text" in fields and "audio" not in fields
