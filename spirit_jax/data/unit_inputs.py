"""Units to speak from one source: a unit string, a text file of unit strings, or a directory of unit records."""

import dataclasses
import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Sequence

from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import read_text
from spirit_jax.core.paths import local_path
from spirit_jax.data.records import METADATA, RecordSource, read_metadata
from spirit_jax.data.unit_record import RecordError
from spirit_jax.units import SpeechUnits, UnitError

_MAX_NAME_BYTES = 200
"""Longest name of an item. File systems take 255 bytes, of which a suffix and an atomic write need some."""


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
    if not source.strip() or "\0" in source:
        raise UnitInputError("the input is empty: give a unit string ([Hu1]...), a file or a directory of unit records")
    if source.lstrip().startswith("["):
        units = SpeechUnits.from_string(source)
        return UnitInputs([UnitItem("units", lambda: units)], are_frames=False)
    local = local_path(source, "--input")
    path = pathlib.Path(local)
    if os.path.isdir(local):  # False for a name that is too long, where pathlib raises
        items, are_frames = _items_of_records(path, split), True
    elif os.path.exists(local):
        items, are_frames = _items_of_text(path), False
    else:
        raise UnitInputError(
            f"{source[:60]!a} is not a unit string ([Hu1]...), a file or a directory of unit records ({METADATA})"
            + _hint_at_numbers(source)
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


def _hint_at_numbers(source: str) -> str:
    """The end of the message where the input holds bare numbers, as other tools write units; otherwise nothing."""
    numbers = source.split()
    if not all(number.isascii() and number.isdigit() for number in numbers):
        return ""
    return f"; units are written in brackets: [Hu{numbers[0][:9]}]... for {numbers[0][:9]}..."


def _file_name(name: str) -> str:
    """A name that stays within the output directory; one that is too long for a file ends in a checksum instead."""
    plain = re.sub(r"[^\w.+=-]+", "_", name.strip()).lstrip(".") or "_"
    encoded = plain.encode("utf-8", "replace")
    if len(encoded) <= _MAX_NAME_BYTES:
        return encoded.decode()
    digest = hashlib.sha256(name.encode("utf-8", "backslashreplace")).hexdigest()[:16]
    return f"{encoded[: _MAX_NAME_BYTES - 17].decode('utf-8', 'ignore')}-{digest}"
