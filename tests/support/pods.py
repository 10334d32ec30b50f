"""The pods that the heads of the 7 B configs name, their options, and the cost of the compiled step there.

    python -m tests.support.pods [TEXT]    # compile the cases whose name holds TEXT, update pods.json, print the table

A line of a config's head is `#   v5e-256   --model.remat gate`: a topology and the options that fit it. GPUs are named
in the same way; their memory is computed from shapes.
"""

import json
import pathlib
import re
import sys

from spirit_jax import config
from spirit_jax.core.constants import GIB
from spirit_jax.core.hardware import GPUS
from spirit_jax.costmodel.report import Report
from spirit_jax.run.config import TrainConfig
from spirit_jax.run.job import compile_run

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
FIGURES = pathlib.Path(__file__).with_name("pods.json")
_GPU_LINE = re.compile(rf"^#   ({'|'.join(GPUS)})\b *(.*)$", re.MULTILINE)
_LINE = re.compile(r"^#   ((?:v\w+|tpu7x)-\d+)\b *(.*)$", re.MULTILINE)


def cases() -> dict[str, tuple[pathlib.Path, list[str]]]:
    """The config file and the command-line options of each case, by name: `CONFIG TOPOLOGY`."""
    return {
        f"{path.stem} {topology}": (path, [*options.split(), "--compile_topology", topology])
        for path in sorted(CONFIGS.rglob("*_7b.yaml"))
        for topology, options in _LINE.findall(path.read_text())
    }


def compile_case(name: str) -> Report:
    """Compile the training step of a case."""
    path, options = cases()[name]
    report = compile_run(config.load(TrainConfig, path, options))
    assert isinstance(report, Report)
    return report


def gpu_cases() -> dict[str, tuple[pathlib.Path, list[str]]]:
    """The GPUs that the heads of configs name, as `cases` gives TPUs."""
    return {
        f"{path.stem} {card}": (path, [*options.split(), "--compile_topology", card])
        for path in sorted(CONFIGS.rglob("*_7b.yaml"))
        for card, options in _GPU_LINE.findall(path.read_text())
    }


def figures(report: Report) -> dict[str, float]:
    """The figures that the test checks and the table shows."""
    return {
        "memory_gib": round(report.memory.total / GIB, 2),
        "spare": round(report.memory.spare, 3),
        "executed_per_model_flop": round(report.recomputation, 3),
        "step_seconds": round(report.seconds, 3),
        "mfu": round(report.mfu, 3),
        "compile_seconds": round(report.compile_seconds),
    }


def main(text: str = "") -> None:
    stored = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    for name in cases():
        if text in name:
            report = compile_case(name)
            print(f"\n{name}\n{report}", flush=True)
            stored[name] = figures(report)
            FIGURES.write_text(json.dumps(stored, indent=1) + "\n")
    print(table(stored))


def table(stored: dict[str, dict[str, float]]) -> str:
    """The table of docs/performance.md, in Markdown."""
    rows = [
        "| config, pod | options | memory a chip, GiB (to spare) | executed / model FLOPs | step | MFU | compile |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (_, options) in cases().items():
        if name in stored:
            found = stored[name]
            shown = " ".join(options[:-2])
            cells = [
                name.replace("spirit_lm_", ""),
                f"`{shown}`" if shown else "",
                f"{found['memory_gib']:.1f} ({found['spare']:.0%})",
                f"{found['executed_per_model_flop']:.3f}",
                f"{found['step_seconds']:.2f} s",
                f"{found['mfu']:.0%}",
                f"{found['compile_seconds']:.0f} s",
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
