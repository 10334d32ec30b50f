"""The pace of a run: units of work per second and utilization, between two reports."""

import contextlib
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from spirit_jax.core import hardware
from spirit_jax.parallel.mesh import Device


class Pace:
    """Counts a run's work and time since the last report, without pauses.

    Args:
        unit: what is counted, such as "tokens".
        flops_per_unit: FLOPs that the model needs for one unit.
        peak: FLOP/s that all devices reach together at most.
    """

    def __init__(self, unit: str, flops_per_unit: float, peak: float):
        self._unit, self._flops_per_unit, self._peak = unit, flops_per_unit, peak
        self._restart()

    def _restart(self) -> None:
        self._amounts: list[jax.Array] = []
        self._start = time.perf_counter()

    def add(self, amount: jax.Array) -> None:
        """Count a step's units, an array whose sum is still being computed."""
        self._amounts.append(amount)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within this context, time does not count."""
        began = time.perf_counter()
        yield
        self._start += time.perf_counter() - began

    def take(self, waited: float) -> dict[str, float]:
        """Return the values since the last call: UNIT_per_second, mfu and data_wait, the share of `waited` seconds."""
        amount = float(sum(np.asarray(part).sum() for part in self._amounts))
        seconds = time.perf_counter() - self._start
        rate = amount / seconds
        self._restart()
        return {
            f"{self._unit}_per_second": rate,
            "mfu": rate * self._flops_per_unit / self._peak,
            "data_wait": waited / seconds,
        }


def peak_flops(device: Device) -> float:
    """FLOP/s that a device reaches at most: from its datasheet, measured for a CPU, NaN if unknown."""
    if device.platform == "cpu":
        return _measured_matmul_flops() / jax.local_device_count()
    return hardware.peak_flops(device.device_kind)


def _measured_matmul_flops(size: int = 1024, repeats: int = 8) -> float:
    """FLOP/s of the fastest of a few float32 matrix products on this machine's CPU."""
    product = jax.jit(jnp.matmul)
    x = jnp.ones((size, size), jnp.float32)
    product(x, x).block_until_ready()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)
