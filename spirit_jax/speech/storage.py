"""The files of one part: `config.json` with the part's "kind", and its arrays."""

import json
import os
import pathlib
from collections.abc import Callable, Collection
from typing import Any

from spirit_jax.checkpoint import CONFIG, CheckpointError, save_arrays
from spirit_jax.core.checksums import write_checksums
from spirit_jax.core.files import atomic_directory, read_json, write_file
from spirit_jax.speech.protocols import Part


def save_part(
    directory: str | os.PathLike, part: Part, more: Callable[[pathlib.Path], None] = lambda directory: None
) -> None:
    """Write a part to `directory` in one atomic step. An existing directory is replaced.

    Args:
        directory: the part's own directory.
        part: its config and arrays.
        more: writes further files into the directory that it is given.
    """
    with atomic_directory(directory, overwrite=True) as scratch:
        config = {"kind": part.kind, **part.config()}
        write_file(scratch / CONFIG, json.dumps(config, indent=1, sort_keys=True) + "\n")
        save_arrays(scratch, part.arrays())
        more(scratch)
        write_checksums(scratch)


def read_part_config(part: pathlib.Path, kinds: Collection[str]) -> dict[str, Any]:
    """Read the config.json of a part that must be of one of `kinds`.

    Args:
        part: directory of the part.
        kinds: what its "kind" may be.

    Raises:
        CheckpointError: the file cannot be read, is not JSON, or has another kind.
    """
    config = read_json(part / CONFIG, CheckpointError)
    kind = config.get("kind") if isinstance(config, dict) else None
    if not isinstance(kind, str) or kind not in kinds:
        raise CheckpointError(f"{part / CONFIG}: needs a 'kind' out of {', '.join(sorted(kinds))}; found {kind!r}")
    return config


def has_kind(part: pathlib.Path, kind: str) -> bool:
    """Whether a directory holds a part of this kind; false if there is none.

    Raises:
        CheckpointError: its config.json cannot be read.
    """
    if not (part / CONFIG).exists():
        return False
    config = read_json(part / CONFIG, CheckpointError)
    return isinstance(config, dict) and config.get("kind") == kind
