"""Number of devices on each axis of the mesh. Importing this module never starts JAX."""

import dataclasses
import math

from spirit_jax.core.errors import SpiritError


class MeshError(SpiritError):
    """A mesh that does not fit the devices; the message names the axes and their sizes."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Number of devices on each axis of the mesh. The defaults choose by the numbers of devices and rows.

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
