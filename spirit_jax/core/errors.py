"""One place that maps errors to a message on standard error and an exit code.

Every error that a user can cause derives from `SpiritError`. Its message names the file or field, the value found, what
was expected and what to do. A command runs inside `exit_codes`, which prints the message in one line and any details
below it.
"""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import NoReturn

from spirit_jax.core.interrupts import INTERRUPTED, raising

BAD_ARGUMENT = 2
"""Exit code of a command whose arguments, config or inputs cannot be used."""
FAILED_JOB = 1
"""Exit code of a command that started its work and could not finish it."""


_NAMES: dict[str, str] = {}
"""Local copies of what lies in a bucket -> the user's name of it, which messages print."""


def name_in_messages(path: str | os.PathLike, name: str) -> None:
    """Print `name` in place of a path in the messages of `exit_codes`."""
    _NAMES[os.fspath(path)] = name


class SpiritError(ValueError):
    """An error that a user can cause and mend.

    Args:
        message: one line.
        details: further lines, such as one for each tensor that does not fit.
    """

    exit_code = BAD_ARGUMENT

    def __init__(self, message: object = "", details: Iterable[str] = ()):
        self.message, self.details = printable(str(message)), tuple(map(printable, details))
        super().__init__("\n  ".join((self.message, *self.details)))


def printable(text: str) -> str:
    r"""Text that every terminal and log takes: a lone surrogate, which JSON can spell, becomes `\udXXX`."""
    return text.encode("utf-8", "backslashreplace").decode()


class JobError(SpiritError):
    """A job that started and could not finish."""

    exit_code = FAILED_JOB


def exit_code(error: BaseException) -> int | None:
    """The exit code of an error that a user can cause, None for a bug."""
    if isinstance(error, SpiritError):
        return error.exit_code
    if isinstance(error, FileExistsError):
        return BAD_ARGUMENT
    if isinstance(error, OSError | ImportError):
        return FAILED_JOB
    return None


def fail(prog: str, error: BaseException | str, code: int) -> NoReturn:
    """End a command with one line on standard error, and the details of a `SpiritError` below it."""
    message, details = (error.message, error.details) if isinstance(error, SpiritError) else (str(error), ())
    message = " ".join(message.split()) or type(error).__name__
    for path, name in _NAMES.items():
        message = message.replace(path, name)
    print("\n  ".join((f"{prog}: error: {message}", *details)), file=sys.stderr)
    sys.exit(code)


@contextlib.contextmanager
def exit_codes(prog: str, interrupted: str = "interrupted") -> Iterator[None]:
    """Run a command: an error that a user can cause becomes one line and an exit code, a bug keeps its traceback.

    Ctrl-C becomes one line and exit code 130.

    Args:
        prog: the command's name, printed before the message.
        interrupted: what to print when the user presses Ctrl-C.
    """
    try:
        with raising(prog, interrupted):
            yield
    except KeyboardInterrupt:
        fail(prog, interrupted, INTERRUPTED)
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        fail(prog, error, code)
