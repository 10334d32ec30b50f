"""Errors of conversion, which `core.errors.exit_codes` maps to exit codes, and how a reader turns damage into them."""

import contextlib
import struct
import tokenize
import zipfile
from collections.abc import Iterator
from typing import Any

from spirit_jax.core.errors import JobError, SpiritError

_MAX_SHOWN = 200  # characters of a value from a file in a message

_DAMAGE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    EOFError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    struct.error,
    zipfile.BadZipFile,
)
"""What Python and its libraries raise when they read damaged or hostile data."""


class ConversionError(JobError):
    """A checkpoint that cannot be converted; the message names the file, the key, and the found and expected values."""


class UsageError(SpiritError):
    """Arguments that cannot be used; the message names the option."""


@contextlib.contextmanager
def reading(where: object, expected: str) -> Iterator[None]:
    """Read a file that others wrote: whatever damage in it raises becomes a `ConversionError`.

    Example::

        with reading(path, "a PyTorch file"):
            ...

    Args:
        where: the file.
        expected: what the file should be, such as "a PyTorch file".
    """
    try:
        yield
    except SpiritError:
        raise
    except _DAMAGE as error:
        raise ConversionError(
            f"{where}: not {expected}, or damaged or cut short ({type(error).__name__}: {shown(error)})"
        ) from error


def shown(value: Any) -> str:
    """A value from a file as text for a message: short, in one line."""
    try:
        text = str(value) if isinstance(value, Exception) else repr(value)
    except _DAMAGE:  # an integer of more than 4300 digits has no text
        text = f"a {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
