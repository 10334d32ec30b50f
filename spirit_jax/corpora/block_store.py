"""Finished blocks of a job on disk, so that a killed job resumes and several hosts share one job."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgpack

from spirit_jax.core.files import write_file

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_FORMAT = 1

Block = TypeVar("Block", bound="DataclassInstance")
"""A dataclass of plain values: what one block of the job yields."""


class BlockStore(Generic[Block]):
    """A directory with a file for each finished block; a file appears complete or not at all.

    Blocks of another job are not read.

    Args:
        directory: made when the first block is written.
        block: the dataclass of a finished block.
        job: what the blocks depend on: fingerprints of the input and of what works on it, and the size of a block.
    """

    def __init__(self, directory: pathlib.Path, block: type[Block], job: Mapping[str, Any]):
        self.directory = directory
        self._block, self._job = block, {"format": _FORMAT, **job}

    def path(self, block: int) -> pathlib.Path:
        """The file of a block."""
        return self.directory / f"{block:08d}.msgpack"

    def read(self, block: int) -> Block | None:
        """A finished block of this job, or None."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # missing or damaged: worked out again
            content = msgpack.unpackb(self.path(block).read_bytes())
            if content.pop("job") == self._job:
                return self._block(**content)
        return None

    def blocks_of_another_job(self) -> int:
        """Number of finished blocks that another job left here, 0 if the first one that can be read is of this job."""
        found = sorted(self.directory.glob("*.msgpack"))
        for path in found:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                return 0 if msgpack.unpackb(path.read_bytes())["job"] == self._job else len(found)
        return 0

    def write(self, block: int, finished: Block) -> None:
        """Store a finished block."""
        content = msgpack.packb({**dataclasses.asdict(finished), "job": self._job})
        assert content is not None  # only a packer that collects several objects returns None
        write_file(self.path(block), content)
