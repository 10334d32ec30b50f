"""Speed of one matrix product by XLA and by PyTorch: the limit of what prefill can reach beside PyTorch on a CPU.

    python -m benchmarks.products [--columns 16 64 448 2048] [--rounds 7] [--json FILE]

The product is that of `spirit_jax/inference/llama_cpu.py`: a weight [3072, 768] on the left, tokens as columns, sums in
float32. PyTorch multiplies as its Llama does. Both run on the same cores, one after the other, and the
fastest round counts.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import report

OUTPUTS, INPUTS = 3072, 768
REPEATS = 5


def seconds(run: Callable[[], object], rounds: int) -> float:
    """Return the time of one call in the fastest of some rounds."""
    run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(REPEATS):
            run()
        times.append((time.perf_counter() - start) / REPEATS)
    return min(times)


def gflops(side: str, dtype: str, columns: int, rounds: int) -> float:
    """Return the speed of one side, `xla` or `torch`, for one type and number of columns."""
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(OUTPUTS, INPUTS)), rng.normal(size=(INPUTS, columns))
    if side == "xla":
        multiply = jax.jit(lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32))
        arrays = jnp.asarray(weight, dtype), jnp.asarray(x, dtype)
        took = seconds(lambda: multiply(*arrays).block_until_ready(), rounds)
    else:
        tensors = torch.tensor(x.T, dtype=getattr(torch, dtype)), torch.tensor(weight, dtype=getattr(torch, dtype))
        with torch.inference_mode():
            took = seconds(lambda: torch.nn.functional.linear(*tensors), rounds)
    return 2e-9 * OUTPUTS * INPUTS * columns / took


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, nargs="+", default=[16, 64, 448, 2048], help="tokens of a product")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds (default 7)")
    report.add_option(parser)
    arguments = parser.parse_args()
    where = report.machine()
    cases = [(dtype, columns) for dtype in ("float32", "bfloat16") for columns in arguments.columns]
    # XLA first, because PyTorch's threads keep spinning for a while after their work
    speeds = {side: [gflops(side, *case, arguments.rounds) for case in cases] for side in ("xla", "torch")}
    rows = [
        {"dtype": dtype, "columns": columns, "xla_gflops": ours, "torch_gflops": other, "ratio": ours / other}
        for (dtype, columns), ours, other in zip(cases, speeds["xla"], speeds["torch"], strict=True)
    ]
    for row in rows:
        print("{dtype} {columns}: {xla_gflops:.0f} against {torch_gflops:.0f} GFLOP/s, {ratio:.2f} x".format(**row))
    report.write(arguments.json, where, rows)


if __name__ == "__main__":
    main()
