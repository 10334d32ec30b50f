"""TPU topologies that need not be owned: what a name stands for, the chips' limits, and devices to compile for.

Names are `v5e:16x16` (chips along each dimension of the torus) or Cloud TPU's `v5e-256`, `v5p-128`, `v6e-256`, `v4-128`, which
count chips for v5e and v6e but TensorCores, two a chip, for v4 and v5p: v5p-128 is v5p:4x4x4, 64 chips. A chip of v4 or v5p
is one device (megacore). `2xv5e:16x16` are two such slices.
"""

import dataclasses
import math
import os
import re
from collections.abc import Sequence

import jax

from spirit_jax.core.hardware import CHIPS, Chip
from spirit_jax.parallel.mesh import slice_index

# Shapes that Cloud TPU gives for a number of chips, where the name says no more
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
_DIMENSIONS = {"v4": 3, "v5e": 2, "v5p": 3, "v6e": 2}


_ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or more equal slices of a TPU pod."""

    name: str
    """Of a slice, as the compiler knows it: v5e:16x16."""
    slices: int = 1

    @classmethod
    def parse(cls, text: str) -> "Topology":
        """
        Raises:
            ValueError: a name that is none; says what names look like.
        """
        found = re.fullmatch(r"(?:(\d+)x)?(v\w+)([:-])(\d+(?:x\d+)*)", text)
        slices, kind, separator, size = found.groups() if found else ("", "", "", "")
        if kind not in CHIPS:
            raise ValueError(
                f"topology {text!r}: expected a generation of {', '.join(CHIPS)} and a size, as in v5e:16x16, v5p-128 or 2xv5e:16x16"
            )
        dimensions = _DIMENSIONS[kind]
        if separator == "-":
            cores = CHIPS[kind].cores_in_name
            shape = _SHAPES[dimensions].get(int(size) // cores) if size.isdecimal() and int(size) % cores == 0 else None
            if shape is None:
                known = ", ".join(f"{kind}-{chips * cores}" for chips in _SHAPES[dimensions])
                raise ValueError(
                    f"topology {text!r}: known sizes are {known}; or name the shape, as in {kind}:{'x'.join(['4'] * dimensions)}"
                )
            size = shape
        elif len(size.split("x")) != dimensions:
            raise ValueError(f"topology {text!r}: a slice of {kind} has {dimensions} dimensions")
        return cls(f"{kind}:{size}", int(slices or 1))

    @property
    def chip(self) -> Chip:
        return CHIPS[self.name.split(":")[0]]

    @property
    def shape(self) -> tuple[int, ...]:
        """Chips along each dimension of a slice."""
        return tuple(map(int, self.name.split(":")[1].split("x")))

    @property
    def chips(self) -> int:
        """Of all slices."""
        return self.slices * math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.slices}x{self.name}" if self.slices > 1 else self.name

    def devices(self) -> list[jax.Device]:
        """Devices that can be compiled for and do not exist.

        Raises:
            ValueError: the TPU compiler is not installed, or does not know the shape.
        """
        # no TPU is asked about itself, and none is taken from another process
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if not jax.config.jax_platforms:  # what is not compiled for the pod runs here, on a CPU
            jax.config.update("jax_platforms", "cpu")
        from jax.experimental import topologies

        options = dict(self.chip.options) | ({"num_slices": self.slices} if self.slices > 1 else {})
        try:
            return list(topologies.get_topology_desc(self.name, "tpu", **options).devices)
        except (RuntimeError, NotImplementedError, FileNotFoundError, ModuleNotFoundError) as error:
            raise ValueError(
                f"no TPU compiler for {self}: {' '.join(str(error).split())[:300]} (pip install 'spirit_jax[tpu]')"
            ) from error

    def seconds(self, kind: str, size: float, members: Sequence[jax.Device]) -> float:
        """The least time of a collective between devices of one group.

        In a slice, rings along every dimension of the torus that the group extends over carry it in both directions (in
        one where a dimension is not closed); between slices each device sends over the data centre network.

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
        extent = [len(set(along)) for along in zip(*(device.coords for device in members), strict=True)]
        links = sum(
            2 if length == whole and whole % self.chip.ring == 0 else 1
            for length, whole in zip(extent, (*self.shape, 1), strict=False)
            if length > 1
        )
        if kind == "collective-permute":
            return size / self.chip.link_bandwidth
        return moved / (max(links, 1) * self.chip.link_bandwidth)
