"""Mapping tables: how the names and shapes of a released network map to its JAX parameters, for import and for export.

A table is a tuple of rows that a reader can check by eye:

    ROWS = (
        Row("encoder.layers.{l}.fc1.weight", "layers/fc1/kernel", "l f d -> l d f"),
        Row("encoder.layers.{l}.fc1.bias", "layers/fc1/bias", "l f -> l f"),
        Row("encoder.layers.{l}.self_attn.q_proj.weight", "layers/attention/query/kernel", "l (n h) d -> l d n h"),
        Row("feature_extractor.conv_layers.{i}.0.weight", "conv_{i}/kernel", "o i k -> k i o"),
        Kept("mask_emb"),
    )

* The first column is the name of the PyTorch tensor. The second column is the path in the tree of JAX parameters,
  joined by "/".
* `{l}` matches 0, 1, 2, ...; `{p:q,k,v}` matches one of the words. If the JAX path has the index too, each tensor is an
  array of its own. If it lacks the index, the tensors are stacked along an axis with this letter: first on the left of
  the third column, anywhere on the right.
* The third column is the layout, PyTorch -> JAX. Letters are axes, `(n h)` is one axis that holds two (n is the slower
  one), `1` is an axis of size one. A layout only reorders values, so reading it from right to left inverts it, and
  nothing is rounded. A dense kernel is "o i -> i o", a convolution kernel "o i k -> k i o", a transposed convolution
  "i o k -> k i o", and an unchanged array "a b -> a b".
* The first column may be a tuple of alternative names, of which a file has one (`weight_g` or
  `parametrizations.weight.original0`).
* `Kept(pattern)`: a known tensor that the JAX network does not use (`*` matches anything). It is stored beside the
  parameters, so that an export returns every tensor. A tensor that no row names stops the conversion.
* `Same(name, other)`: a second name of the same tensor (tied embeddings). Its values must be equal. An export writes it
  if the released file had it.

To add a network, write `components/<network>.py` with two functions and name its files in `parts.py`:

* `rows(config)` returns the rows. `config` is the part's config.json (see `parts.py`); most tables use little of it.
* `shapes(config)` returns {path: shape}, what the JAX network expects, from `parameter_shapes`.

Shapes always come from the JAX network. A missing, unknown or mis-shaped tensor is therefore found by comparing the
file with what the network needs, and not with the file itself. Write variants (`conv_pos_batch_norm`) as an `if` on the
config around whole rows.
"""

import fnmatch
import functools
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from spirit_jax.checkpoint import flatten
from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.formats.arrays import LazyArray, ReadableArray, SliceableArray, StackedArray, same_bits
from spirit_jax.convert.layout import Layout
from spirit_jax.core.files import shown

_INDEX = re.compile(r"\{(\w+)(?::([^}]*))?\}")

MAX_TENSORS = 100_000
"""PyTorch tensors that a config may ask for."""

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each JAX array by path."""


@dataclass(frozen=True)
class Row:
    """The name of a PyTorch tensor (or alternative names), the path of its JAX array, and its layout."""

    torch: str | tuple[str, ...]
    jax: str
    layout: str

    @property
    def names(self) -> tuple[str, ...]:
        """All names that the PyTorch tensor may have."""
        return (self.torch,) if isinstance(self.torch, str) else self.torch


@dataclass(frozen=True)
class Kept:
    """PyTorch tensors that the JAX network does not read and that an export writes back."""

    pattern: str


@dataclass(frozen=True)
class Same:
    """The PyTorch tensor `name` holds the same values as `other`."""

    name: str
    other: str


Rows = tuple[Row | Kept | Same, ...]


@dataclass(frozen=True)
class TensorMapping:
    """One PyTorch tensor, which `layout` makes of `array[index]`, where `array` is the JAX array at `path`."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    path: str
    index: tuple[int | slice, ...]
    layout: Layout
    sizes: dict[str, int]


def tensor_mappings(rows: Rows, shapes: Shapes) -> list[TensorMapping]:
    """Every PyTorch tensor that JAX arrays with these shapes are made of.

    Raises:
        ConversionError: a JAX array that no row, or more than one, names, or whose shape does not fit its layout.
    """
    table = [(_pattern(row.jax), row, Layout.parse(row.layout)) for row in rows if isinstance(row, Row)]
    found: list[TensorMapping] = []
    for path, shape in shapes.items():
        matches = [(match, row, layout) for pattern, row, layout in table if (match := pattern.fullmatch(path))]
        if len(matches) != 1:
            raise ConversionError(
                f"the JAX array {path} {list(shape)} is named by {len(matches)} rows of its table, 1 expected"
            )
        match, row, layout = matches[0]
        words = {name: options.split(",") if options else None for name, options in _INDEX.findall(row.names[0])}
        stacked = tuple(name for name in words if name not in match.groupdict())
        try:
            solved = layout.sizes(tuple(shape))
        except ValueError as error:
            raise ConversionError(
                f"the JAX array {path} {list(shape)} does not fit the layout {row.layout!r}: {error}"
            ) from error
        if max((solved[name] for name in stacked), default=0) > MAX_TENSORS:
            raise ConversionError(f"the config asks for more than {MAX_TENSORS} tensors")
        counts = [words[name] or [str(i) for i in range(solved[name])] for name in stacked]
        for name, options in zip(stacked, counts, strict=True):
            if len(options) != solved[name]:
                raise ConversionError(
                    f"the JAX array {path} {list(shape)}: axis {name} should have the size {len(options)}"
                )
        one = layout.without(stacked)
        for combination in itertools.product(*(range(len(options)) for options in counts)):
            values = match.groupdict() | {name: counts[k][combination[k]] for k, name in enumerate(stacked)}
            at = dict(zip(stacked, combination, strict=True))
            index = tuple(at[group[0]] if len(group) == 1 and group[0] in at else slice(None) for group in layout.jax)
            names = tuple(_fill(name, values) for name in row.names)
            found.append(TensorMapping(names, one.torch_shape(solved), path, index, one, solved))
    return found


def _pattern(text: str) -> re.Pattern[str]:
    """A regular expression of a name with {indices}."""
    parts, last = [], 0
    for match in _INDEX.finditer(text):
        words = "|".join(map(re.escape, match[2].split(","))) if match[2] else r"0|[1-9]\d*"
        parts += [re.escape(text[last : match.start()]), f"(?P<{match[1]}>{words})"]
        last = match.end()
    return re.compile("".join([*parts, re.escape(text[last:])]))


def _fill(text: str, values: Mapping[str, str]) -> str:
    """A name with values in the place of its {indices}."""
    return _INDEX.sub(lambda match: values[match[1]], text)


def to_jax(
    rows: Rows, tensors: Mapping[str, np.ndarray], shapes: Shapes, where: str
) -> tuple[dict[str, np.ndarray | StackedArray], dict[str, np.ndarray]]:
    """Map PyTorch tensors to JAX arrays, as views: values are read when they are used.

    Args:
        where: the file, for messages.

    Returns:
        The JAX arrays by path, and the kept tensors by name.

    Raises:
        ConversionError: lists every missing, unused and mis-shaped tensor, with expected and found shapes; or every
            name has a prefix that a wrapper put before it.
    """
    problems: list[str] = []
    pieces: dict[str, list[tuple[tuple[int | slice, ...], np.ndarray]]] = {path: [] for path in shapes}
    used: set[str] = set()
    mappings = tensor_mappings(rows, shapes)
    _check_prefix(mappings, tensors, where)
    for mapping in mappings:
        present = [name for name in mapping.names if name in tensors]
        if len(present) != 1:
            what = "missing" if not present else f"{len(present)} names of one tensor:"
            problems.append(f"{what} {' or '.join(mapping.names)}: expected {list(mapping.shape)}")
            continue
        name = present[0]
        used.add(name)
        tensor = tensors[name]
        if tuple(tensor.shape) != mapping.shape:
            problems.append(f"mis-shaped {name}: expected {list(mapping.shape)}, found {list(tensor.shape)}")
            continue
        piece = mapping.layout.to_jax(tensor, mapping.sizes)
        others = pieces[mapping.path]
        if others and others[0][1].dtype != piece.dtype:
            problems.append(
                f"mixed types in {mapping.path}: {name} is {piece.dtype}, the tensors before it {others[0][1].dtype}"
            )
        others.append((mapping.index, piece))
    patterns = [row.pattern for row in rows if isinstance(row, Kept)]
    kept = {n: t for n, t in tensors.items() if n not in used and any(fnmatch.fnmatchcase(n, p) for p in patterns)}
    same = {row.name: row.other for row in rows if isinstance(row, Same)}
    for name, tensor in tensors.items():
        if name in used or name in kept:
            continue
        if name not in same:
            problems.append(f"unused {name}: {list(tensor.shape)} is in no row of the table")
        elif same[name] in tensors and not same_bits(tensor, tensors[same[name]]):
            problems.append(f"different {name}: should equal {same[name]}, to which it is tied")
    if problems:
        raise ConversionError(f"{where} does not match the component ({len(problems)} tensors):", problems)
    return {path: _join(shapes[path], parts) for path, parts in pieces.items()}, kept


def _check_prefix(mappings: Sequence[TensorMapping], tensors: Mapping[str, np.ndarray], where: str) -> None:
    """Check that no wrapper of the network, such as `torch.nn.DataParallel`, put its name before every tensor's.

    Raises:
        ConversionError: names the prefix.
    """
    first = mappings[0].names if mappings else ()
    for name, known in itertools.product(tensors, first):
        prefix = name.removesuffix(known)
        if prefix in ("", name):
            continue
        if all(any(prefix + other in tensors for other in mapping.names) for mapping in mappings):
            raise ConversionError(
                f"{where}: the names of all tensors begin with {shown(prefix)}, as a wrapper of the network such as "
                "torch.nn.DataParallel saves them, which is not supported: save the wrapped network, as in "
                "torch.save(model.module.state_dict(), FILE)"
            )


def _join(
    shape: tuple[int, ...], pieces: list[tuple[tuple[int | slice, ...], np.ndarray]]
) -> np.ndarray | StackedArray:
    """The array that the pieces make: the only one, if it is the whole array."""
    if len(pieces) == 1 and all(isinstance(axis, slice) for axis in pieces[0][0]):
        return pieces[0][1]
    return StackedArray(tuple(shape), pieces[0][1].dtype, tuple(pieces))


def to_torch(
    rows: Rows,
    arrays: Mapping[str, SliceableArray],
    kept: Mapping[str, ReadableArray] | None = None,
    names: Iterable[str] = (),
) -> dict[str, ReadableArray]:
    """Map JAX arrays to PyTorch tensors by name, each of which is read when it is used.

    Args:
        kept: tensors that `to_jax` returned as kept.
        names: the keys of the released file, if known; they choose among alternative names and give the order.

    Raises:
        ConversionError: as `tensor_mappings`.
    """
    names = list(names)
    known = set(names)
    tensors: dict[str, ReadableArray] = dict(kept or {})
    for mapping in tensor_mappings(rows, {path: tuple(array.shape) for path, array in arrays.items()}):
        name = next((name for name in mapping.names if name in known), mapping.names[0])
        array = arrays[mapping.path]
        tensors[name] = LazyArray(mapping.shape, np.dtype(array.dtype), _reader(array, mapping))
    for row in rows:
        if isinstance(row, Same) and row.name in known:
            tensors[row.name] = tensors[row.other]
    order = {name: position for position, name in enumerate(names)}
    return dict(sorted(tensors.items(), key=lambda item: order.get(item[0], len(order))))


def _reader(array: SliceableArray, mapping: TensorMapping) -> Callable[[], np.ndarray]:
    return lambda: mapping.layout.to_torch(np.asarray(array[mapping.index]), mapping.sizes)


def shapes_of(tree: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """{path: shape} of a tree of arrays or of `jax.ShapeDtypeStruct`s."""
    return {path: tuple(leaf.shape) for path, leaf in flatten(tree).items()}


def parameter_shapes(network: nn.Module, *inputs: jax.ShapeDtypeStruct) -> dict[str, tuple[int, ...]]:
    """{path: shape} of a network's parameters, from the shapes of its inputs alone; nothing is computed."""
    return dict(_parameter_shapes(network, *inputs))


@functools.cache  # tracing a network takes up to a second, and a conversion asks for its shapes several times
def _parameter_shapes(network: nn.Module, *inputs: jax.ShapeDtypeStruct) -> dict[str, tuple[int, ...]]:
    return shapes_of(jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"])
