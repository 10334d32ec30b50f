"""The device mesh: named axes over all devices of all hosts; one device is a mesh of one."""

import dataclasses
import math

import jax
import numpy as np
from jax.sharding import Mesh

AXES = ("data", "fsdp", "tensor")
"""Rows are split over data and fsdp, parameters over fsdp, heads and feed-forward widths over tensor."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices each axis of the mesh has; one axis may be -1, which takes all that are left."""

    data: int = 1
    """Replicas of the parameters, each with its own rows."""
    fsdp: int = -1
    """Devices that share one copy of the parameters and optimiser state, each with its own rows."""
    tensor: int = 1
    """Devices that share each layer's heads and feed-forward width, on the same rows."""

    def __post_init__(self) -> None:
        sizes = dataclasses.astuple(self)
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise ValueError(f"mesh axes must be positive, at most one of them -1, found {dataclasses.asdict(self)}")

    def sizes(self, devices: int) -> dict[str, int]:
        """The size of every axis for a number of devices.

        Raises:
            ValueError: the axes do not multiply to that number.
        """
        sizes = dataclasses.asdict(self)
        fixed = math.prod(size for size in sizes.values() if size != -1)
        sizes = {name: devices // fixed if size == -1 else size for name, size in sizes.items()}
        if math.prod(sizes.values()) != devices:
            raise ValueError(
                f"mesh {' x '.join(f'{name} {size}' for name, size in sizes.items())} does not use {devices} devices"
            )
        return sizes


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh over the given devices, by default all of all hosts, in an order that suits their interconnect.

    Raises:
        ValueError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = config.sizes(len(devices))
    shape = tuple(sizes[name] for name in AXES)
    if devices[0].platform == "tpu":
        from jax.experimental import mesh_utils

        return Mesh(mesh_utils.create_device_mesh(shape, devices), AXES)
    # host by host, so that each host's rows are contiguous
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered).reshape(shape), AXES)
