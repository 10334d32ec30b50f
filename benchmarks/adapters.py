"""Memory and step time of LoRA on 7 B for TPU hosts, from compiled steps of few layers. No TPU is needed, none runs.

    python -m benchmarks.adapters [--hosts v5e-8 v6e:1x1] [--rows 8 2] [--layers 2 4]
        [--json benchmarks/results/adapters.json]

The step of configs/finetune/lora_7b.yaml is compiled for each host with the given numbers of layers. The layers are one
compiled loop over stacked weights, so that memory, FLOPs and time are a line in their number; the line through the two
numbers gives the figures of all 32. The whole step compiles for long, which is why it is not compiled here; `train
--compile_topology` does. Dropout is left out, and the step then compiles in less than half the time. A third number of
layers in `--layers` tests the line, and the difference is printed.
"""

import argparse
import pathlib
from typing import Any

from benchmarks import report
from spirit_jax import config
from spirit_jax.core.constants import GIB
from spirit_jax.costmodel.report import Report
from spirit_jax.run.config import TrainConfig
from spirit_jax.run.job import compile_run

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "finetune" / "lora_7b.yaml"
LAYERS = 32


def compiled(host: str, rows: int, layers: int) -> dict[str, float]:
    """Compile the step of a host with a number of layers, and return its figures."""
    options = ["--compile_topology", host, "--global_batch_size", str(rows), "--model.num_hidden_layers", str(layers)]
    options += ["--init_from", "a base that is not read"]  # so that the sizes are those of the config
    options += ["--lora.dropout", "0"]
    found = compile_run(config.load(TrainConfig, CONFIG, options))
    assert isinstance(found, Report)
    print(f"{layers} layers\n{found}\n", flush=True)
    return {
        "memory_gib": found.memory.total / GIB,
        "memory_limit_gib": found.memory.limit / GIB,
        "flops": found.flops,
        "model_flops": found.model_flops,
        "peak_flops": found.topology.chip.flops,
        "seconds": found.seconds,
        "compile_seconds": found.compile_seconds,
    }


def extrapolated(points: dict[int, dict[str, float]], layers: int = LAYERS) -> dict[str, float]:
    """Return the figures of many layers by the line through those of the first and the last number.

    Args:
        points: the figures by number of layers; at least two.
        layers: the number of layers that is asked for.
    """
    numbers = sorted(points)
    low, high = numbers[0], numbers[-1]

    def line(name: str) -> float:
        slope = (points[high][name] - points[low][name]) / (high - low)
        return points[low][name] + slope * (layers - low)

    return {name: line(name) for name in ("memory_gib", "flops", "model_flops", "seconds")}


def main() -> None:
    """Compile every host and print the figures of all layers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", nargs="+", default=["v5e-8", "v6e:1x1"], help="topologies")
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 2], help="rows of a step on each host")
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4], help="numbers of layers to compile")
    report.add_option(parser)
    options = parser.parse_args()
    if len(options.rows) != len(options.hosts) or len(set(options.layers)) < 2:
        parser.error("--rows needs a number for each host, and --layers at least two numbers")
    where, figures = report.machine(), []
    for host, rows in zip(options.hosts, options.rows, strict=True):
        points = {layers: compiled(host, rows, layers) for layers in options.layers}
        found: dict[str, Any] = {"host": host, "rows": rows, "layers": sorted(points), **extrapolated(points)}
        found["memory_limit_gib"] = next(iter(points.values()))["memory_limit_gib"]
        found["mfu"] = found["model_flops"] / found["seconds"] / next(iter(points.values()))["peak_flops"]
        found["compile_seconds"] = [points[layers]["compile_seconds"] for layers in sorted(points)]
        figures.append(found)
        report.write(options.json, where, figures)
        for layers in sorted(points)[1:-1]:
            expected = extrapolated({n: points[n] for n in points if n != layers}, layers)
            error = max(abs(expected[name] / points[layers][name] - 1) for name in ("memory_gib", "flops", "seconds"))
            print(f"{host}: the line misses the figures of {layers} layers by at most {error:.1%}")
        print(
            f"{host}, {rows} rows of 2048: {found['memory_gib']:.1f} of {found['memory_limit_gib']:.1f} GiB a chip, "
            f"{found['seconds']:.2f} s a step, MFU {found['mfu']:.0%}, by the line through {sorted(points)} layers"
        )


if __name__ == "__main__":
    main()
