"""Limits of devices by the names that JAX gives them."""

import math

import pytest

from spirit_jax.core.hardware import GPUS, find_gpu, peak_flops


@pytest.mark.parametrize(
    ("device_kind", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA A100-PCIE-40GB", None),
        ("cpu", None),
    ],
)
def test_a_gpu_is_found_by_the_name_of_its_device(device_kind, name):
    assert find_gpu(device_kind) == (None if name is None else GPUS[name])


def test_the_peak_of_a_card_is_that_of_the_table_of_gpus():
    assert peak_flops("NVIDIA H200") == GPUS["h200"].flops
    assert math.isnan(peak_flops("cpu"))
