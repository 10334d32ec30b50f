"""Finished blocks of a job, so that a killed job resumes and several hosts share one job."""

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgpack

from spirit_jax.core.files import DAMAGE
from spirit_jax.core.shared_folder import shared_folder

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_FORMAT = 1
_SUFFIX = ".msgpack"

Block = TypeVar("Block", bound="DataclassInstance")
"""A dataclass of plain values: what one block of the job yields."""


class BlockStore(Generic[Block]):
    """A folder, on a disk or in a bucket, with a file for each finished block; it appears complete or not at all.

    Blocks of another job are not read.

    Args:
        directory: made when the first block is written.
        block: the dataclass of a finished block.
        job: what the blocks depend on: fingerprints of the input and of what works on it, and the size of a block.

    Attributes:
        folder: the directory.
    """

    def __init__(self, directory: str | os.PathLike, block: type[Block], job: Mapping[str, Any]):
        self.folder = shared_folder(directory)
        self._block, self._job = block, {"format": _FORMAT, **job}

    def name(self, block: int) -> str:
        """The name of a block's file."""
        return f"{block:08d}{_SUFFIX}"

    def stored(self) -> set[int]:
        """Numbers of the blocks that have a file."""
        names = (name.removesuffix(_SUFFIX) for name in self.folder.names() if name.endswith(_SUFFIX))
        return {int(name) for name in names if name.isdigit()}

    def has(self, block: int) -> bool:
        """Whether a block has a file."""
        return self.folder.has(self.name(block))

    def read(self, block: int) -> Block | None:
        """A finished block of this job, or None."""
        found = self.folder.read(self.name(block))
        with contextlib.suppress(*DAMAGE):  # damaged: worked out again
            content = msgpack.unpackb(found or b"")
            if content.pop("job") == self._job:
                return self._block(**content)
        return None

    def blocks_of_another_job(self) -> int:
        """Number of finished blocks that another job left here, 0 if the first one that can be read is of this job."""
        found = sorted(name for name in self.folder.names() if name.endswith(_SUFFIX))
        for name in found:
            content = self.folder.read(name)
            with contextlib.suppress(*DAMAGE):
                return 0 if msgpack.unpackb(content or b"")["job"] == self._job else len(found)
        return 0

    def write(self, block: int, finished: Block) -> None:
        """Store a finished block."""
        content = msgpack.packb({**dataclasses.asdict(finished), "job": self._job})
        assert content is not None  # only a packer that collects several objects returns None
        self.folder.write(self.name(block), content)
