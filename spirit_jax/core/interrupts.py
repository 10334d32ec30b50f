"""Ctrl-C while a command starts: one line and exit code 130 at once, wherever the process is.

Python turns Ctrl-C into an exception in whatever runs at that moment. While a command imports, prepares or compiles,
that is often code that prints a traceback, catches the exception and continues, or hears of the signal minutes later,
because the compiler does not return to Python. Nothing is lost by ending there, so the process ends instead.
"""

import contextlib
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended: 128 and the number of SIGINT, as shells count."""

_PACKAGE = "spirit_jax"
_SCRIPT = "spirit-jax"
_ending = threading.Lock()
_unfinished: set[pathlib.Path] = set()
"""Files that are being written under a temporary name."""


class _EndAtOnce:
    """A handler of SIGINT that ends the process."""

    def __init__(self, prog: str, message: str):
        self.prog, self.message = prog, message

    def __call__(self, *_: Any) -> NoReturn:
        while not _ending.acquire(blocking=False):  # the other thread has heard of the signal too, and ends the process
            time.sleep(1)
        for path in [*_unfinished]:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        start = "\n" if os.isatty(2) else ""  # the terminal has shown "^C"
        with contextlib.suppress(OSError):
            os.write(2, f"{start}{self.prog}: error: {self.message}\n".encode())
        os._exit(INTERRUPTED)


def command_name(words: Sequence[str]) -> str | None:
    """The command of this package that a process runs, as its messages name it; None for any other program.

    Args:
        words: `sys.orig_argv`.
    """
    rest = iter(words[1:])
    for word in rest:
        if word == "-m":
            module = next(rest, "")
            return f"python -m {module}" if module.split(".")[0] == _PACKAGE else None
        if word in ("-W", "-X"):
            next(rest, None)
        elif word == "-c" or not word.startswith("-"):
            return _SCRIPT if os.path.basename(word) == _SCRIPT else None
    return None


def end_while_importing() -> None:
    """End the process at Ctrl-C from now on, if it runs a command of this package.

    `raise_from_now_on` and `end_at_once` replace this when the command's own code starts. A shell starts background
    commands of a script with SIGINT ignored; `kill -INT` ends those too.
    """
    prog = command_name(sys.orig_argv)
    if prog is not None and _in_main_thread():
        signal.signal(signal.SIGINT, _EndAtOnce(prog, "interrupted"))


def raise_from_now_on() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, where `end_while_importing` has changed that."""
    if isinstance(signal.getsignal(signal.SIGINT), _EndAtOnce) and _in_main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def end_at_once(prog: str, message: str) -> Iterator[None]:
    """A block in which Ctrl-C prints a line and ends the process, even while a compiler keeps the main thread busy.

    A handler of SIGINT that is installed inside the block, such as `training.interruption.Interruption`, takes the
    place of this one until it is removed. Outside the main thread, which alone can handle signals, nothing changes.
    """
    if not _in_main_thread():
        yield
        return
    handler = _EndAtOnce(prog, message)
    previous = signal.signal(signal.SIGINT, handler)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        """Hear of signals from the operating system itself; Python's own handlers wait for the main thread."""
        while number := os.read(reader, 1):
            if number[0] == signal.SIGINT and signal.getsignal(signal.SIGINT) is handler:
                handler()

    thread = threading.Thread(target=watch, daemon=True, name="interrupts")
    thread.start()
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken)
        os.close(writer)
        thread.join()
        os.close(reader)
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def removed_when_ended(path: pathlib.Path) -> Iterator[None]:
    """A block that writes a file under a temporary name, which is removed if Ctrl-C ends the process meanwhile."""
    _unfinished.add(path)
    try:
        yield
    finally:
        _unfinished.discard(path)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
