"""Readers: one file for each kind of input. `spirit_jax.corpora.inputs` has the table of them.

A reader is a class with the members of `inputs.Input`, a function that says whether it reads an `InputPath`, and one
that opens it.
"""

import hashlib
import json
import pathlib
from collections.abc import Iterable

SPLITS = ("train", "validation", "test")
"""Names of the splits that `--split` takes for every corpus with splits."""

_OTHER_NAMES = {"validation": ("validation", "dev", "valid")}


def official_names(split: str) -> tuple[str, ...]:
    """Publishers' names of each split. A name that is not in `SPLITS` is an official one, such as `train-clean-100`."""
    return _OTHER_NAMES.get(split, (split,))


def position(index: int, length: int, location: pathlib.Path) -> int:
    """The place of utterance `index`, which counts from the end if it is negative, as in any sequence.

    Raises:
        IndexError: there is no such utterance.
    """
    if not -length <= index < length:
        raise IndexError(f"utterance {index} of {length} in {location}")
    return index % length


def stat_fingerprint(paths: Iterable[pathlib.Path]) -> str:
    """sha256 (hex) of the names, sizes and modification times of files that are too large to be read for it."""
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        digest.update(json.dumps([path.name, stat.st_size, stat.st_mtime_ns]).encode())
    return digest.hexdigest()
