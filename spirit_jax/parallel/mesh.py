"""The device mesh: named axes over all devices of all hosts and slices. A single device is a mesh of size one."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from spirit_jax.parallel.mesh_config import MeshConfig

AXES = ("data", "fsdp", "tensor")
"""Rows are split over data and fsdp, parameters over fsdp, heads and feed-forward widths over tensor."""


class Device(Protocol):
    """Attributes that the package reads of a `jax.Device`, whose class has no types. TPUs also have `slice_index`."""

    @property
    def id(self) -> int: ...
    @property
    def process_index(self) -> int: ...
    @property
    def platform(self) -> str: ...
    @property
    def device_kind(self) -> str: ...


def make_mesh(config: MeshConfig, devices: Sequence[Device] | None = None, rows: int | None = None) -> Mesh:
    """Build the mesh over the given devices, by default all devices of all hosts, in an order that suits their links.

    Args:
        rows: rows that are computed at a time, for an axis whose size is to be chosen.

    Raises:
        MeshError: the axes do not fit the number of devices or of slices.
    """
    devices = jax.devices() if devices is None else devices
    slices = slice_count(devices) if devices[0].platform == "tpu" else 1
    sizes = config.sizes(len(devices), slices, rows)
    shape = tuple(sizes[name] for name in AXES)
    if devices[0].platform == "tpu":
        from jax.experimental import mesh_utils

        if slices > 1:
            inner = (sizes["data"] // slices, sizes["fsdp"], sizes["tensor"])
            return Mesh(_on_torus(mesh_utils.create_hybrid_device_mesh, inner, (slices, 1, 1), devices), AXES)
        return Mesh(_on_torus(mesh_utils.create_device_mesh, shape, devices), AXES)
    # Host by host, so that the rows of each host are contiguous.
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered).reshape(shape), AXES)


def _on_torus(make: Callable[..., np.ndarray], *arguments: Any) -> np.ndarray:
    """Devices in the order that JAX chooses; an axis may be a part of a dimension of the torus if it must."""
    try:
        return make(*arguments)
    except NotImplementedError:
        return make(*arguments, allow_split_physical_axes=True)


def slice_index(device: object) -> int:
    """The slice that a device belongs to; 0 for a device of a platform that knows no slices."""
    return getattr(device, "slice_index", None) or 0


def slice_count(devices: Iterable[object]) -> int:
    """The number of slices that the devices belong to."""
    return len({slice_index(device) for device in devices})
