"""The log of a task: one JSON line for each finished item, so that a killed evaluation continues."""

import contextlib
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from spirit_jax.core.files import FileFormatError, read_text, write_file
from spirit_jax.evaluation.items import BenchmarkError


class ItemLog:
    """Lines by the id of their items. A line is written when its item is finished, and never changes.

    The first line of the file holds everything that the lines depend on. A process that was killed may have left half a
    line, which is dropped.

    Attributes:
        path: the JSONL file.
        lines: the finished items by id; those of an interrupted run are there from the start.
    """

    def __init__(self, path: pathlib.Path, job: Mapping[str, Any], overwrite: bool = False):
        """
        Args:
            path: the file; its folder is created.
            job: what the lines depend on, as JSON values.
            overwrite: start anew if the file belongs to another job.

        Raises:
            BenchmarkError: the file belongs to another job; names the first setting that differs.
        """
        self.path, self._job = path, json.loads(json.dumps(job))
        self.lines: dict[str, dict[str, Any]] = {}
        if path.exists():
            header, self.lines = read_log(path)
            changed = sorted(key for key in self._job.keys() | header.keys() if self._job.get(key) != header.get(key))
            if changed and not overwrite:
                key = changed[0]
                raise BenchmarkError(
                    f"{path}: belongs to another evaluation ({key} was {header.get(key)!r}, is "
                    f"{self._job.get(key)!r}); choose another --output, or say --overwrite"
                )
            if changed:
                self.lines = {}
        rows = [{"job": self._job}, *self.lines.values()]
        write_file(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Append finished items; each line has an `id`."""
        with self.path.open("a", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                self.lines[line["id"]] = dict(line)

    def usable(self) -> list[dict[str, Any]]:
        """The lines of items that could be used."""
        return [line for line in self.lines.values() if "unusable" not in line]

    def unusable(self) -> dict[str, str]:
        """The reason of each item that could not be used, by id."""
        return {name: line["unusable"] for name, line in self.lines.items() if "unusable" in line}


def read_log(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The header of a log, and its lines by id; a file that is no log gives an empty header and no lines."""
    header: dict[str, Any] = {}
    lines: dict[str, dict[str, Any]] = {}
    first, *rest = read_text(path, FileFormatError).split("\n")
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
        header = dict(json.loads(first)["job"])
    for text in rest:
        with contextlib.suppress(ValueError, TypeError, KeyError):
            line = json.loads(text)
            lines[line["id"]] = line
    return header, lines
