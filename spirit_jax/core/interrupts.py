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
from types import FrameType
from typing import NoReturn

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended: 128 and the number of SIGINT, as shells count."""

_PACKAGE = "spirit_jax"
_SCRIPT = "spirit-jax"
_ending = threading.RLock()  # a second Ctrl-C interrupts the thread that ends the process
_unfinished: set[pathlib.Path] = set()
"""Files that are being written under a temporary name."""


class _Handler:
    """A handler of SIGINT that ends the process, always or only while a module is imported.

    A KeyboardInterrupt in an import may leave a compiled module half made, which crashes the process later.
    """

    def __init__(self, prog: str, message: str, *, always: bool):
        self.prog, self.message, self.always = prog, message, always

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.always and not _is_importing(frame):
            raise KeyboardInterrupt
        self.end()

    def end(self) -> NoReturn:
        """Print the message and end the process."""
        while not _ending.acquire(blocking=False):  # the other thread has heard of the signal too, and ends the process
            time.sleep(1)
        for path in [*_unfinished]:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        start = "\n" if os.isatty(2) or _bar_is_shown() else ""  # a terminal has shown "^C"
        with contextlib.suppress(OSError):
            os.write(2, f"{start}{self.prog}: error: {self.message}\n".encode())
        os._exit(INTERRUPTED)


def _bar_is_shown() -> bool:
    """Whether a progress bar has left the cursor behind it."""
    bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
    return bool(getattr(bars, "_instances", None))


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


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

    `raising` and `end_at_once` replace this when the command's own code starts. A shell starts background commands of a
    script with SIGINT ignored; `kill -INT` ends those too.
    """
    prog = command_name(sys.orig_argv)
    if prog is not None and _in_main_thread():
        signal.signal(signal.SIGINT, _Handler(prog, "interrupted", always=True))


@contextlib.contextmanager
def raising(prog: str, message: str) -> Iterator[None]:
    """A block in which Ctrl-C raises KeyboardInterrupt, or ends the process while it imports a module."""
    if not _in_main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, _Handler(prog, message, always=False))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def end_at_once(prog: str, message: str) -> Iterator[None]:
    """A block in which Ctrl-C prints a line and ends the process, even while a compiler keeps the main thread busy.

    A handler of SIGINT that is installed inside the block, such as `training.interruption.Interruption`, takes the
    place of this one until it is removed. Outside the main thread, which alone can handle signals, nothing changes.
    """
    if not _in_main_thread():
        yield
        return
    handler = _Handler(prog, message, always=True)
    previous = signal.signal(signal.SIGINT, handler)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        """Hear of signals from the operating system itself; Python's own handlers wait for the main thread."""
        while number := os.read(reader, 1):
            if number[0] == signal.SIGINT and signal.getsignal(signal.SIGINT) is handler:
                handler.end()

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
def leave_threads_behind() -> Iterator[None]:
    """A block after whose failure the process of a command ends without waiting for its threads.

    A thread that writes to a disk that is full or gone may take minutes to give up. A caller from Python gets the
    SystemExit as usual.
    """
    try:
        yield
    except SystemExit as end:
        if not end.code or command_name(sys.orig_argv) is None:
            raise
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)


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
