"""Layouts such as "l (n h) d -> l d n h": how the axes of a PyTorch tensor become those of a JAX array, and back."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Axes = tuple[tuple[str, ...], ...]
"""One group of letters for each axis: "(n h) d 1" is (("n", "h"), ("d",), ())."""


@dataclass(frozen=True)
class Layout:
    """The axes of a PyTorch tensor and of the JAX array that holds its values, each letter once on both sides."""

    text: str
    torch: Axes
    jax: Axes

    @classmethod
    def parse(cls, text: str) -> "Layout":
        """A layout from its text.

        Raises:
            ValueError: the sides differ in their letters, or a letter occurs twice on a side.
        """
        before, arrow, after = text.partition("->")
        torch, jax = _parse_axes(before), _parse_axes(after)
        left, right = sorted(itertools.chain(*torch)), sorted(itertools.chain(*jax))
        if not arrow or left != right or len(set(left)) != len(left):
            raise ValueError(f"layout {text!r}: both sides need the same axes, each once")
        return cls(text, torch, jax)

    def without(self, stacked: tuple[str, ...]) -> "Layout":
        """The layout of one slice of the JAX array, whose `stacked` axes count PyTorch tensors.

        Raises:
            ValueError: a stacked axis is not first on the left, or is grouped with another one.
        """
        groups = tuple((name,) for name in stacked)
        if self.torch[: len(stacked)] != groups or any(group not in self.jax for group in groups):
            raise ValueError(
                f"layout {self.text!r}: {stacked} must come first on the left and stand alone on the right"
            )
        return Layout(self.text, self.torch[len(stacked) :], tuple(group for group in self.jax if group not in groups))

    def sizes(self, jax_shape: tuple[int, ...]) -> dict[str, int]:
        """The size of every letter, from the shape of the JAX array.

        Raises:
            ValueError: the shape does not fit the layout, or an axis of the JAX array groups letters.
        """
        if len(self.jax) != len(jax_shape):
            raise ValueError(f"{len(self.jax)} axes expected, {len(jax_shape)} found")
        sizes: dict[str, int] = {}
        for group, size in zip(self.jax, jax_shape, strict=True):
            if len(group) > 1:
                raise ValueError(f"the sizes of {list(group)} are not known")
            if not group and size != 1:
                raise ValueError(f"axis 1 is {size}, 1 expected")
            sizes |= dict.fromkeys(group, size)
        return sizes

    def torch_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of the PyTorch tensor."""
        return _shape(self.torch, sizes)

    def to_jax(self, array: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """Rearrange a PyTorch tensor; a view where NumPy can make one."""
        return _rearrange(array, self.torch, self.jax, sizes)

    def to_torch(self, array: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """The inverse of `to_jax`."""
        return _rearrange(array, self.jax, self.torch, sizes)


def _parse_axes(text: str) -> Axes:
    groups = re.findall(r"\(([^)]*)\)|(\S+)", text.strip())
    return tuple(tuple(group.split()) if group else () if single == "1" else (single,) for group, single in groups)


def _rearrange(array: np.ndarray, source: Axes, target: Axes, sizes: Mapping[str, int]) -> np.ndarray:
    """Split the axes of `source` into letters, reorder the letters, and join them into the axes of `target`."""
    flat_source, flat_target = list(itertools.chain(*source)), list(itertools.chain(*target))
    split = array.reshape([sizes[name] for name in flat_source])
    moved = split.transpose([flat_source.index(name) for name in flat_target])
    return moved.reshape(_shape(target, sizes))


def _shape(axes: Axes, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(int(np.prod([sizes[name] for name in group], dtype=np.int64)) for group in axes)
