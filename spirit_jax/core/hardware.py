"""What chips can do at most: one table for training's MFU and for the cost model."""

import dataclasses
import math
from typing import Any

from spirit_jax.core.constants import GIB


@dataclasses.dataclass(frozen=True)
class Chip:
    """Limits of one TPU chip.

    Sources: Cloud TPU's page of each generation; for links and the data center network "How to Scale Your Model"
    (jax-ml.github.io/scaling-book), which gives the 90 % of the nominal bandwidth that is reached.
    """

    hbm: float
    """Bytes of memory that a program may use, as XLA:TPU reports when a program needs more: below the nominal size."""
    flops: float
    """Dense bfloat16 FLOP/s."""
    hbm_bandwidth: float
    """Bytes/s from and to memory."""
    link_bandwidth: float
    """Bytes/s of one link of the torus in one direction; a chip has two links along each dimension."""
    network_bandwidth: float
    """Bytes/s of a chip's share of the data center network, which joins slices."""
    ring: int
    """A dimension of the topology closes to a ring if its length is a multiple of this."""
    cores_in_name: int = 1
    """TensorCores a chip that a name such as `v5p-128` counts."""
    options: tuple[tuple[str, Any], ...] = ()
    """What the TPU compiler must be told besides the name."""


CHIPS = {
    "v4": Chip(30.75 * GIB, 275e12, 1228e9, 45e9, 6.25e9, 4, 2, (("chip_config_name", "megacore"),)),
    "v5e": Chip(15.75 * GIB, 197e12, 819e9, 45e9, 3.125e9, 16),
    "v5p": Chip(95.74 * GIB, 459e12, 2765e9, 90e9, 6.25e9, 4, 2),
    "v6e": Chip(31.25 * GIB, 918e12, 1638e9, 90e9, 12.5e9, 16),
}

_PEAK_FLOPS = {
    "TPU v4": CHIPS["v4"].flops,
    "TPU v5 lite": CHIPS["v5e"].flops,
    "TPU v5e": CHIPS["v5e"].flops,
    "TPU v5p": CHIPS["v5p"].flops,
    "TPU v5": CHIPS["v5p"].flops,
    "TPU v6": CHIPS["v6e"].flops,
    "TPU7x": 2307e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
}


def peak_flops(device_kind: str) -> float:
    """Dense bfloat16 FLOP/s of one device by a part of JAX's `device_kind`, from the maker's datasheet; NaN if unknown."""
    return next((peak for name, peak in _PEAK_FLOPS.items() if name in device_kind), math.nan)
