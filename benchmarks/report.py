"""Keeps the figures of a benchmark as JSON: what ran, when, on which machine, and what it measured.

`benchmarks/results/` holds the files that docs/performance.md shows. `python -m benchmarks.tables` makes its tables
from them. This module needs neither JAX nor PyTorch.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from spirit_jax.core.files import write_file

RESULTS = pathlib.Path(__file__).with_name("results")
"""Directory of the results that the documentation shows."""

_LIBRARIES = ("jax", "torch", "transformers", "libtpu")
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Instruction sets that decide how fast a CPU multiplies matrices."""


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add the option `--json` to a benchmark's parser."""
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write the figures and the machine here")


def machine() -> dict[str, Any]:
    """Describe this machine. Call it before the work begins, so that `load` counts other programs only."""
    return {
        "cpu": _cpu_field("model name") or "unknown",
        "instructions": [name for name in _INSTRUCTIONS if name in _cpu_field("flags").split()],
        "cores": len(os.sched_getaffinity(0)),
        "cores_of_machine": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "python": sys.version.split()[0],
        **{name: _version(name) for name in _LIBRARIES},
    }


def command(arguments: list[str] | None = None) -> str:
    """Return the command line of this benchmark, without `--json`.

    Args:
        arguments: its arguments; those of this process if None.
    """
    words = iter(sys.argv[1:] if arguments is None else arguments)
    kept = []
    for word in words:
        if word == "--json":
            next(words, None)
        elif not word.startswith("--json="):
            kept.append(word)
    return shlex.join(["python", "-m", f"benchmarks.{pathlib.Path(sys.argv[0]).stem}", *kept])


def write(path: pathlib.Path | None, where: Mapping[str, Any], figures: Any, options: list[str] | None = None) -> None:
    """Write the figures of a run.

    Args:
        path: the file; None writes nothing.
        where: what `machine` returned.
        figures: numbers, texts, lists and mappings.
        options: what the file shows as the command's arguments; those of this process if None. A file that keeps rows
            of earlier runs leaves out which rows this run added.
    """
    if path is None:
        return
    content = {
        "command": command(options),
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "machine": dict(where),
        "figures": figures,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(content, indent=1) + "\n")
    print(f"wrote {path}", file=sys.stderr)


def _cpu_field(name: str) -> str:
    """Return the first value of a field of /proc/cpuinfo, empty on systems without it."""
    file = pathlib.Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of the checkout, None outside of one."""
    result = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=RESULTS.parent, capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or None
