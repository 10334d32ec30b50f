"""TPU topologies that need not exist here: their names, the limits of their chips, and devices to compile for.

A name is `v5e:16x16` (chips along each dimension of the torus), or Cloud TPU's `v5e-256`, `v5p-128`, `v6e-256`,
`v4-128`, `tpu7x-128`. The latter count chips for v5e and v6e, but TensorCores, two per chip, for v4, v5p and TPU7x:
v5p-128 is v5p:4x4x4, 64 chips. A chip of v4 or v5p is one device (megacore), a chip of TPU7x is two. `2xv5e:16x16`
means two such slices.
"""

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Protocol

import jax

from spirit_jax.core.errors import SpiritError
from spirit_jax.core.hardware import CHIPS, DIE_LINKS, Chip
from spirit_jax.parallel.mesh import Device, slice_index

# Shapes that Cloud TPU gives for a number of chips if the name gives only the number, by number of dimensions.
_SHAPES = {
    2: {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"},
    3: {
        4: "2x2x1",
        8: "2x2x2",
        16: "2x2x4",
        32: "2x4x4",
        64: "4x4x4",
        128: "4x4x8",
        256: "4x8x8",
        512: "8x8x8",
        1024: "8x8x16",
    },
}
_DIMENSIONS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2, "tpu7x": 3}

_ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


class TopologyError(SpiritError):
    """A topology that is unknown or cannot be compiled for; the message says what is expected."""


class TopologyDevice(Protocol):
    """A device of a topology."""

    @property
    def coords(self) -> Sequence[int]:
        """Its place along each dimension of the torus."""
        ...


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or more equal slices of a TPU pod."""

    name: str
    """Name of a slice: v5e:16x16."""
    slices: int = 1

    @classmethod
    def parse(cls, text: str) -> "Topology":
        """Parse a name.

        Raises:
            TopologyError: it is no topology's name; the message says what names look like.
        """
        found = re.fullmatch(r"(?:(\d+)x)?(v\w+|tpu7x)([:-])(\d+(?:x\d+)*)", text)
        slices, kind, separator, size = found.groups() if found else ("", "", "", "")
        if kind not in CHIPS:
            raise TopologyError(
                f"topology {text!r}: expected a generation of {', '.join(CHIPS)} and a size, "
                "as in v5e:16x16, v5p-128 or 2xv5e:16x16"
            )
        dimensions = _DIMENSIONS[kind]
        if separator == "-":
            cores = CHIPS[kind].cores_in_name
            shape = _SHAPES[dimensions].get(int(size) // cores) if size.isdecimal() and int(size) % cores == 0 else None
            if shape is None:
                known = ", ".join(f"{kind}-{chips * cores}" for chips in _SHAPES[dimensions])
                example = f"{kind}:{'x'.join(['4'] * dimensions)}"
                raise TopologyError(f"topology {text!r}: known sizes are {known}; or name the shape, as in {example}")
            size = shape
        elif len(size.split("x")) != dimensions:
            raise TopologyError(f"topology {text!r}: a slice of {kind} has {dimensions} dimensions")
        return cls(name=f"{kind}:{size}", slices=int(slices or 1))

    @property
    def chip(self) -> Chip:
        """The limits of its chips."""
        return CHIPS[self.name.split(":")[0]]

    @property
    def shape(self) -> tuple[int, ...]:
        """Chips along each dimension of a slice."""
        return tuple(map(int, self.name.split(":")[1].split("x")))

    @property
    def chips(self) -> int:
        """Number of chips of all slices."""
        return self.slices * math.prod(self.shape)

    def __str__(self) -> str:
        """The name, with the number of slices if there are several."""
        return f"{self.slices}x{self.name}" if self.slices > 1 else self.name

    def devices(self) -> list[Device]:
        """Return devices that programs can be compiled for, but not run on.

        Raises:
            TopologyError: the TPU compiler is not installed, or does not know the shape.
        """
        # The compiler must not look for a TPU here, nor take one from another process.
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # JAX adds the attributes of its config at run time.
        platforms: str | None = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
        if not platforms:  # Everything that is not compiled for the pod runs here, on a CPU.
            jax.config.update("jax_platforms", "cpu")
        from jax.experimental import topologies

        options = dict(self.chip.options) | ({"num_slices": self.slices} if self.slices > 1 else {})
        if math.prod(self.shape) == 1:  # otherwise the compiler expects a host of four chips
            options["chips_per_host_bounds"] = [1, 1, 1]
        try:
            name = self.name.replace("tpu7x", "TPU7x")  # as the compiler spells it
            return list(topologies.get_topology_desc(name, "tpu", **options).devices)
        except (RuntimeError, NotImplementedError, FileNotFoundError, ModuleNotFoundError) as error:
            raise TopologyError(
                f"no TPU compiler for {self}: {' '.join(str(error).split())[:300]} (pip install 'spirit_jax[tpu]')"
            ) from error

    def seconds(self, kind: str, size: float, members: Sequence[TopologyDevice]) -> float:
        """Return the least time of a collective between the devices of one group.

        Within a slice, rings along every dimension of the torus that the group extends over carry it in both
        directions, or in one direction if the dimension is not closed to a ring. A group that has one device of each
        chip shares the links with the group of the others. Between slices, each device sends over the data center
        network.

        Args:
            kind: all-gather, reduce-scatter, all-reduce, all-to-all or collective-permute.
            size: bytes of the whole array: gathered, or before it is scattered or reduced.
            members: the group's devices.
        """
        count = len(members)
        if count < 2:
            return 0.0
        moved = size * (count - 1) / count * {"all-reduce": 2, "all-to-all": 0.25}.get(kind, 1)
        if len({slice_index(device) for device in members}) > 1:
            return moved / self.chip.network_bandwidth
        chips = len({tuple(device.coords) for device in members})
        if chips == 1:
            return moved / (DIE_LINKS * self.chip.link_bandwidth)
        link = self.chip.link_bandwidth * count / chips / self.chip.devices
        if kind == "collective-permute":
            return size / link
        extent = [len(set(along)) for along in zip(*(device.coords for device in members), strict=True)]
        links = sum(
            2 if length == whole and whole % self.chip.ring == 0 else 1
            for length, whole in zip(extent, (*self.shape, 1), strict=False)
            if length > 1
        )
        return moved / (max(links, 1) * link)
