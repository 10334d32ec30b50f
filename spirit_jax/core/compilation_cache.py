"""JAX's cache of compiled programs, for all commands: programs are compiled once on a machine, not once a process.

The cache is on by default, in the user's cache directory. Compiled programs depend on the instructions of the CPU, so
machines that share a home directory have a folder each.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import sys
from typing import Any

from spirit_jax.core.errors import SpiritError
from spirit_jax.core.paths import disk_path

OFF = "none"
"""Turns the cache off where a directory is expected."""
MAX_BYTES = 4 << 30
"""Size above which the programs that were compiled first are removed from the default directory."""

_LEAST_SECONDS = 0.1  # a program that compiles faster is not kept


class CompilationCacheError(SpiritError):
    """A directory that cannot hold compiled programs; the message names it."""


def default_directory() -> pathlib.Path:
    """The cache of this machine: `$XDG_CACHE_HOME/spirit_jax/compiled/MACHINE`, by default below `~/.cache`."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(caches) / "spirit_jax" / "compiled" / _machine()


def use_compilation_cache(choice: str | None) -> None:
    """Turn the cache on for this process and those that it starts. Call this before the first program is compiled.

    Args:
        choice: a directory, or `OFF`. None takes `JAX_COMPILATION_CACHE_DIR` where it is set, else the default
            directory; there is no cache if that cannot be written.

    Raises:
        CompilationCacheError: a directory that the user names cannot be written.
        PathError: it is in a bucket.
    """
    if choice == OFF:
        _configure({"jax_enable_compilation_cache": False})
        return
    if choice is None:
        if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            return
        directory = default_directory()
        if not directory.is_absolute():  # no home directory
            return
    else:
        directory = pathlib.Path(disk_path(choice, "--compilation_cache"))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError("it is not writable")
    except OSError as error:
        if choice is None:
            return
        raise CompilationCacheError(f"--compilation_cache {directory}: cannot be used ({error})") from error
    if choice is None:
        _remove_oldest(directory)
    _configure({"jax_compilation_cache_dir": str(directory)})
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        _configure({"jax_persistent_cache_min_compile_time_secs": _LEAST_SECONDS})


def _configure(options: dict[str, Any]) -> None:
    """Set options of JAX, which reads them from the environment when it is imported."""
    jax = sys.modules.get("jax")
    for name, value in options.items():
        os.environ[name.upper()] = str(value)
        if jax is not None:
            jax.config.update(name, value)


def _machine() -> str:
    """A name for CPUs that run the same programs."""
    instructions = platform.processor()
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        instructions = next((line for line in lines if line.startswith(("flags", "Features"))), instructions)
    return f"{platform.machine() or 'cpu'}-{hashlib.sha256(instructions.encode()).hexdigest()[:8]}"


def _remove_oldest(directory: pathlib.Path) -> None:
    """Remove the oldest programs if the cache is larger than `MAX_BYTES`, down to half of that."""
    with contextlib.suppress(OSError):  # another process may remove the same files
        files = sorted((entry.stat().st_mtime, entry.stat().st_size, entry.path) for entry in os.scandir(directory))
        total = sum(size for _, size, _ in files)
        if total > MAX_BYTES:
            for _, size, path in files:
                if total <= MAX_BYTES // 2:
                    break
                os.unlink(path)
                total -= size
