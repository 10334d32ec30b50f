"""The pods that the heads of the 7 B configs name, their options, and the cost of the compiled step there.

    python -m benchmarks.pods [--only TEXT] [--json benchmarks/results/pods.json]

Compiles the cases whose name holds TEXT, by default all, and keeps the other cases of the JSON. A line of a config's
head is `#   v5e-256   --model.remat gate`: a topology and the options that fit it. GPUs are named in the same way, and
their memory is computed from shapes.
"""

import argparse
import pathlib
import re

from benchmarks import report
from spirit_jax import config
from spirit_jax.core.constants import GIB
from spirit_jax.core.files import read_json
from spirit_jax.core.hardware import GPUS
from spirit_jax.costmodel.report import Report
from spirit_jax.run.config import TrainConfig
from spirit_jax.run.job import compile_run

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
FIGURES = report.RESULTS / "pods.json"
_GPU_LINE = re.compile(rf"^#   ({'|'.join(GPUS)})\b *(.*)$", re.MULTILINE)
_LINE = re.compile(r"^#   ((?:\d+x)?(?:v\d\w*|tpu7x)[:-]\d[\dx]*)\b *(.*)$", re.MULTILINE)


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
    compiled = compile_run(config.load(TrainConfig, path, options))
    assert isinstance(compiled, Report)
    return compiled


def gpu_cases() -> dict[str, tuple[pathlib.Path, list[str]]]:
    """The GPUs that the heads of configs name, as `cases` gives TPUs."""
    return {
        f"{path.stem} {card}": (path, [*options.split(), "--compile_topology", card])
        for path in sorted(CONFIGS.rglob("*_7b.yaml"))
        for card, options in _GPU_LINE.findall(path.read_text())
    }


def figures(compiled: Report) -> dict[str, float]:
    """The figures that the test checks and the table shows."""
    return {
        "memory_gib": round(compiled.memory.total / GIB, 2),
        "spare": round(compiled.memory.spare, 3),
        "executed_per_model_flop": round(compiled.recomputation, 3),
        "step_seconds": round(compiled.seconds, 3),
        "mfu": round(compiled.mfu, 3),
        "compile_seconds": round(compiled.compile_seconds),
    }


def stored_figures(path: pathlib.Path = FIGURES) -> dict[str, dict[str, float]]:
    """The figures of an earlier run, by case; none if the file does not exist."""
    return read_json(path)["figures"] if path.exists() else {}


def main() -> None:
    """Compile the cases that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="compile the cases whose name holds this text")
    report.add_option(parser)
    options = parser.parse_args()
    where, found = report.machine(), {} if options.json is None else stored_figures(options.json)
    for name in cases():
        if options.only in name:
            compiled = compile_case(name)
            print(f"\n{name}\n{compiled}", flush=True)
            found[name] = figures(compiled)
            report.write(options.json, where, found, options=[])


if __name__ == "__main__":
    main()
