"""The device mesh: named axes over all devices of all hosts and slices; one device is a mesh of one."""

import dataclasses
import math
from collections.abc import Iterable

import jax
import numpy as np
from jax.sharding import Mesh

AXES = ("data", "fsdp", "tensor")
"""Rows are split over data and fsdp, parameters over fsdp, heads and feed-forward widths over tensor."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices each axis of the mesh has; the defaults choose for the devices and the rows at hand.

    Parameters are gathered and gradients scattered within a slice, where links are fast; slices exchange gradients alone.
    Devices share a row only where there are more devices than rows.
    """

    data: int = 0
    """Replicas of the parameters, each with its own rows; 0: one for each slice."""
    fsdp: int = -1
    """Devices that share one copy of the parameters and optimiser state, each with its own rows; -1: all that are left."""
    tensor: int = 0
    """Devices that share each layer's heads and feed-forward width, on the same rows; 0: the fewest with which the rows
    can be split evenly over the others."""

    def __post_init__(self) -> None:
        sizes = dataclasses.astuple(self)
        if any(size < -1 for size in sizes) or sizes.count(-1) > 1 or self.fsdp == 0:
            raise ValueError(
                f"mesh axes must be positive, or 0 (data, tensor), at most one of them -1, found {dataclasses.asdict(self)}"
            )

    def sizes(self, devices: int, slices: int = 1, rows: int | None = None) -> dict[str, int]:
        """The size of every axis for a number of devices, in equal slices, and of rows that are worked on at a time.

        Raises:
            ValueError: the axes do not multiply to that number.
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
            raise ValueError(
                f"mesh {' x '.join(f'{name} {size}' for name, size in sizes.items())} does not use {devices} devices"
            )
        if sizes["data"] % slices:
            raise ValueError(
                f"mesh.data {sizes['data']} is not a multiple of the {slices} slices: only data spans slices"
            )
        return sizes


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None, rows: int | None = None) -> Mesh:
    """The mesh over the given devices, by default all of all hosts, in an order that suits their interconnect.

    Args:
        rows: how many are worked on at a time, for an axis that is to be chosen.

    Raises:
        ValueError: the axes do not multiply to the number of devices, or data not to that of the slices.
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
    # host by host, so that each host's rows are contiguous
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered).reshape(shape), AXES)


def slice_index(device: jax.Device) -> int:
    """The slice that a device belongs to; 0 where there is only one."""
    return getattr(device, "slice_index", None) or 0


def slice_count(devices: Iterable[jax.Device]) -> int:
    """The number of slices that the devices belong to."""
    return len({slice_index(device) for device in devices})
