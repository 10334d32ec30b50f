"""Errors of conversion, which `core.errors.exit_codes` maps to exit codes, and how a reader turns damage into them."""

from contextlib import AbstractContextManager

from spirit_jax.core import files
from spirit_jax.core.errors import JobError, SpiritError


class ConversionError(JobError):
    """A checkpoint that cannot be converted; the message names the file, the key, and the found and expected values."""


class UsageError(SpiritError):
    """Arguments that cannot be used; the message names the option."""


def reading(where: object, expected: str) -> AbstractContextManager[None]:
    """`core.files.reading` with a `ConversionError`."""
    return files.reading(where, expected, ConversionError)
