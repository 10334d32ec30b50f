"""Finished blocks of an encoding job on disk, so that a killed job resumes and several hosts share one job."""

import contextlib
import dataclasses
import pathlib

import msgpack

from spirit_jax.core.files import write_file
from spirit_jax.corpora.blocks import EncodedBlock

_FORMAT = 1


class BlockStore:
    """A directory with a file for each finished block; a file appears complete or not at all.

    Blocks of another job (another input, other encoders or another block size) are not read, and are deleted when they are
    found.

    Args:
        directory: made when the first block is written.
        corpus: fingerprint of the input.
        units: fingerprint of the encoders, "" for text.
        block_size: utterances in a block.
    """

    def __init__(self, directory: pathlib.Path, *, corpus: str, units: str, block_size: int):
        self.directory = directory
        self._job = {"format": _FORMAT, "corpus": corpus, "units": units, "block": block_size}

    def path(self, block: int) -> pathlib.Path:
        """The file of a block."""
        return self.directory / f"{block:08d}.msgpack"

    def read(self, block: int) -> EncodedBlock | None:
        """A finished block of this job, or None."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # missing or damaged: encoded again
            content = msgpack.unpackb(self.path(block).read_bytes())
            if content.pop("job") == self._job:
                return EncodedBlock(**content)
            self.path(block).unlink()
        return None

    def write(self, block: int, encoded: EncodedBlock) -> None:
        """Store a finished block."""
        content = msgpack.packb({**dataclasses.asdict(encoded), "job": self._job})
        assert content is not None  # only a packer that collects several objects returns None
        write_file(self.path(block), content)
