"""The device mesh: named axes over all devices of all hosts and slices. A single device is a mesh of size one."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from spirit_jax.core.errors import SpiritError

AXES = ("data", "fsdp", "tensor")
"""Rows are split over data and fsdp, parameters over fsdp, heads and feed-forward widths over tensor."""


class MeshError(SpiritError):
    """A mesh that does not fit the devices; the message names the axes and their sizes."""


class Device(Protocol):
    """What the package reads of a `jax.Device`, whose class has no type information. TPUs also have `slice_index`."""

    @property
    def id(self) -> int: ...
    @property
    def process_index(self) -> int: ...
    @property
    def platform(self) -> str: ...
    @property
    def device_kind(self) -> str: ...


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices each axis of the mesh has; the defaults choose by the numbers of devices and rows.

    Parameters are gathered and gradients scattered within a slice, where links are fast; only gradients are exchanged
    between slices. Devices share a row only if there are more devices than rows.
    """

    data: int = 0
    """Replicas of the parameters, each with its own rows; 0: one replica per slice."""
    fsdp: int = -1
    """Devices that share one copy of the parameters and optimizer state, each with its own rows; -1: all remaining
    devices."""
    tensor: int = 0
    """Devices that share each layer's heads and feed-forward width, on the same rows; 0: the smallest number that lets
    the other devices split the rows evenly."""

    def __post_init__(self) -> None:
        sizes = dataclasses.astuple(self)
        if any(size < -1 for size in sizes) or sizes.count(-1) > 1 or self.fsdp == 0:
            raise MeshError(
                "mesh axes must be positive, or 0 (data, tensor), at most one of them -1, "
                f"found {dataclasses.asdict(self)}"
            )

    def sizes(self, devices: int, slices: int = 1, rows: int | None = None) -> dict[str, int]:
        """Return the size of every axis.

        Args:
            devices: number of devices, in `slices` equal slices.
            rows: rows that are computed at a time, for an axis whose size is to be chosen.

        Raises:
            MeshError: the product of the sizes is not the number of devices.
        """
        sizes = dataclasses.asdict(self)
        sizes["data"] = sizes["data"] or slices
        if sizes["tensor"] == 0:
            ways = devices if rows is None else math.gcd(rows, devices)
            fixed = math.prod(sizes[name] for name in ("data", "fsdp") if sizes[name] != -1)
            sizes["tensor"] = devices // (ways if -1 in sizes.values() else fixed) or 1
        fixed = math.prod(size for size in sizes.values() if size != -1)
        sizes = {name: devices // fixed if size == -1 else size for name, size in sizes.items()}
        if math.prod(sizes.values()) != devices:
            raise MeshError(
                f"mesh {' x '.join(f'{name} {size}' for name, size in sizes.items())} does not use {devices} devices"
            )
        if sizes["data"] % slices:
            raise MeshError(
                f"mesh.data {sizes['data']} is not a multiple of the {slices} slices: only data spans slices"
            )
        return sizes


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
            return Mesh(mesh_utils.create_hybrid_device_mesh(inner, (slices, 1, 1), devices), AXES)
        return Mesh(mesh_utils.create_device_mesh(shape, devices), AXES)
    # Host by host, so that the rows of each host are contiguous.
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered).reshape(shape), AXES)


def slice_index(device: object) -> int:
    """The slice that a device belongs to; 0 for a device of a platform that knows no slices."""
    return getattr(device, "slice_index", None) or 0


def slice_count(devices: Iterable[object]) -> int:
    """The number of slices that the devices belong to."""
    return len({slice_index(device) for device in devices})
