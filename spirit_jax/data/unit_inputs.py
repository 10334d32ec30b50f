"""Units to speak from one source: a unit string, a text file of unit strings, or a directory of unit records."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Sequence

from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import read_text
from spirit_jax.data.records import METADATA, RecordError, RecordSource, read_metadata
from spirit_jax.units import SpeechUnits, UnitError


class UnitInputError(SpiritError):
    """A source of units that cannot be used; the message names it."""


@dataclasses.dataclass(frozen=True)
class UnitItem:
    """Units with a name. They are read when they are needed."""

    name: str
    """A name that can be the name of a file."""
    read: Callable[[], SpeechUnits]
    """Raises UnitError or RecordError if the units cannot be read."""


@dataclasses.dataclass(frozen=True)
class UnitInputs:
    """Units from one source."""

    items: Sequence[UnitItem]
    """At least one item; all names differ."""
    are_frames: bool
    """Whether the units are at their frame rates, so that they keep their durations."""

    def have_pitch(self) -> bool:
        """Whether the first item has pitch units; False if it cannot be read, which is reported later."""
        try:
            return self.items[0].read().pitch is not None
        except (UnitError, RecordError):
            return False


def open_unit_inputs(source: str, split: str | None = None) -> UnitInputs:
    """Find the items of a source, and check that their names differ.

    Args:
        source: a unit string, a text file or a directory of unit records.
        split: a split of the records; None for all splits.

    Raises:
        UnitInputError: the source is missing or empty, or two items have the same name.
        RecordError: the directory has no such split, or a record is damaged.
        UnitError: the unit string is malformed.
    """
    if not source.strip():
        raise UnitInputError("the input is empty: give a unit string ([Hu1]...), a file or a directory of unit records")
    if source.lstrip().startswith("["):
        units = SpeechUnits.from_string(source)
        return UnitInputs([UnitItem("units", lambda: units)], are_frames=False)
    path = pathlib.Path(source)
    if path.is_dir():
        items, are_frames = _items_of_records(path, split), True
    elif path.is_file():
        items, are_frames = _items_of_text(path), False
    else:
        raise UnitInputError(
            f"{source!r} is not a unit string ([Hu1]...), a file or a directory of unit records ({METADATA})"
        )
    if not items:
        raise UnitInputError(f"{source}: it holds no units")
    seen: set[str] = set()
    for item in items:
        if item.name in seen:
            raise UnitInputError(f"{source}: two items have the name {item.name!r}")
        seen.add(item.name)
    return UnitInputs(items, are_frames)


def _items_of_records(directory: pathlib.Path, split: str | None) -> list[UnitItem]:
    splits = [split] if split else sorted(read_metadata(directory)["splits"])
    sources = [RecordSource(directory, name) for name in splits]
    return [
        UnitItem(_file_name(records[row].id), functools.partial(_read_record, records, row))
        for records in sources
        for row in range(len(records))
    ]


def _read_record(records: RecordSource, row: int) -> SpeechUnits:
    record = records[row]
    if record.units is None:
        raise RecordError(f"record {record.id!r} is text: it has no units")
    return record.units


def _items_of_text(path: pathlib.Path) -> list[UnitItem]:
    lines = [line for line in read_text(path, UnitInputError).splitlines() if line.strip()]
    items = []
    for number, line in enumerate(lines):
        name, tab, string = line.rpartition("\t")
        name = _file_name(name) if tab else f"{path.stem}-{number:05d}"
        items.append(UnitItem(name, functools.partial(SpeechUnits.from_string, string)))
    return items


def _file_name(name: str) -> str:
    """A name that stays within the output directory."""
    return re.sub(r"[^\w.+=-]+", "_", name.strip()).lstrip(".") or "_"
