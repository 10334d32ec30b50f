"""Limits of accelerator chips: one table for the MFU of training and for the cost model."""

import dataclasses
import math
import re
from typing import Any

from spirit_jax.core.constants import GIB


@dataclasses.dataclass(frozen=True)
class Chip:
    """Limits of one TPU chip; of TPU7x, those of one of the two devices that a chip is to JAX, but for its links.

    Sources: Cloud TPU's page of each generation. Links and the data center network are from "How to Scale Your Model"
    (jax-ml.github.io/scaling-book), which gives the 90 % of the nominal bandwidth that programs reach.
    """

    hbm: float
    """Bytes of memory that a program may use, below the nominal size; XLA:TPU reports it when a program needs more."""
    flops: float
    """Dense bfloat16 FLOP/s."""
    hbm_bandwidth: float
    """Bytes/s from and to memory."""
    link_bandwidth: float
    """Bytes/s of one link of the torus in one direction; a chip has two links along each dimension."""
    network_bandwidth: float
    """Bytes/s of one chip's share of the data center network, which joins slices."""
    ring: int
    """A dimension of the torus is closed to a ring if its length is a multiple of this."""
    cores_in_name: int = 1
    """TensorCores per chip in the count of a name such as `v5p-128`."""
    devices: int = 1
    """Devices that a chip is to JAX. They share its links, and are joined by `DIE_LINKS` times the bandwidth of one."""
    options: tuple[tuple[str, Any], ...] = ()
    """Options that the TPU compiler needs besides the name of the topology."""


DIE_LINKS = 6
"""Bandwidth between the two devices of a chip, in links of the torus (Cloud TPU's page of TPU7x)."""

CHIPS = {
    "v4": Chip(
        hbm=30.75 * GIB,
        flops=275e12,
        hbm_bandwidth=1228e9,
        link_bandwidth=45e9,
        network_bandwidth=6.25e9,
        ring=4,
        cores_in_name=2,
        options=(("chip_config_name", "megacore"),),
    ),
    "v5e": Chip(
        hbm=15.75 * GIB,
        flops=197e12,
        hbm_bandwidth=819e9,
        link_bandwidth=45e9,
        network_bandwidth=3.125e9,
        ring=16,
    ),
    "v5p": Chip(
        hbm=95.74 * GIB,
        flops=459e12,
        hbm_bandwidth=2765e9,
        link_bandwidth=90e9,
        network_bandwidth=6.25e9,
        ring=4,
        cores_in_name=2,
    ),
    "v6e": Chip(
        hbm=31.25 * GIB,
        flops=918e12,
        hbm_bandwidth=1638e9,
        link_bandwidth=90e9,
        network_bandwidth=12.5e9,
        ring=16,
    ),
    "tpu7x": Chip(
        hbm=94.75 * GIB,
        flops=2307e12 / 2,
        hbm_bandwidth=7380e9 / 2,
        link_bandwidth=90e9,
        network_bandwidth=12.5e9 / 2,
        ring=4,
        cores_in_name=2,
        devices=2,
    ),
}
"""The chips of each generation of TPU."""


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Limits of one GPU, from its datasheet."""

    memory: float
    """Bytes of memory."""
    flops: float
    """Dense bfloat16 FLOP/s."""
    bandwidth: float
    """Bytes/s from and to memory."""
    device_kind: str
    """A word of JAX's `device_kind`."""


GPUS = {
    "h200": Gpu(memory=141e9, flops=989e12, bandwidth=4.8e12, device_kind="H200"),
    "h100": Gpu(memory=80e9, flops=989e12, bandwidth=3.35e12, device_kind="H100"),
    "a100": Gpu(memory=80e9, flops=312e12, bandwidth=2.039e12, device_kind="A100"),
    "rtx4090": Gpu(memory=24e9, flops=165e12, bandwidth=1.008e12, device_kind="4090"),
    "l4": Gpu(memory=24e9, flops=121e12, bandwidth=0.3e12, device_kind="L4"),
}
"""GPUs for which the memory of a training step is computed from shapes (`training.estimate`). H100, H200 and A100 are
the SXM modules."""


def find_gpu(device_kind: str) -> Gpu | None:
    """The limits of a device by JAX's `device_kind`; None for another one, and for a slower form (PCIe, NVL)."""
    words = re.split(r"[ -]", device_kind)
    if {"PCIe", "PCIE", "NVL"} & set(words):
        return None
    return next((gpu for gpu in GPUS.values() if gpu.device_kind in words), None)


_PEAK_FLOPS = {
    "TPU v4": CHIPS["v4"].flops,
    "TPU v5 lite": CHIPS["v5e"].flops,
    "TPU v5e": CHIPS["v5e"].flops,
    "TPU v5p": CHIPS["v5p"].flops,
    "TPU v5": CHIPS["v5p"].flops,
    "TPU v6": CHIPS["v6e"].flops,
    "TPU7x": CHIPS["tpu7x"].flops,
    "H200": GPUS["h200"].flops,
    "H100": GPUS["h100"].flops,
    "A100": GPUS["a100"].flops,
}


def peak_flops(device_kind: str) -> float:
    """Dense bfloat16 FLOP/s of a device by a part of JAX's `device_kind`, from its datasheet; NaN if unknown."""
    return next((peak for name, peak in _PEAK_FLOPS.items() if name in device_kind), math.nan)
