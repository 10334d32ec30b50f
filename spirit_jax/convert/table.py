"""How the names and shapes of a released component map to ours: one table a component, for import and for export.

A table is a tuple of rows that a reader can check by eye:

    ROWS = (
        Row("encoder.layers.{l}.fc1.weight", "layers/fc1/kernel", "l f d -> l d f"),
        Row("encoder.layers.{l}.fc1.bias", "layers/fc1/bias", "l f -> l f"),
        Row("encoder.layers.{l}.self_attn.q_proj.weight", "layers/attention/query/kernel", "l (n h) d -> l d n h"),
        Row("feature_extractor.conv_layers.{i}.0.weight", "conv_{i}/kernel", "o i k -> k i o"),
        Kept("mask_emb"),
    )

* The first column is the name of the PyTorch tensor, the second the path in our tree of parameters, joined by "/".
* `{l}` stands for 0, 1, 2, ...; `{p:q,k,v}` for one of the words. An index that our path has too names one array each. An index that it
  lacks is stacked, and is an axis of its own: first on the left of the third column, anywhere on the right.
* The third column is the layout, theirs -> ours: letters are axes, `(n h)` is one axis that holds two (n the slower), `1` is an axis of
  size one. It only reorders, so its inverse is itself read from right to left and nothing is rounded. A dense kernel is
  "o i -> i o", a convolution kernel "o i k -> k i o", a transposed convolution's "i o k -> k i o", anything unchanged "a b -> a b".
* The first column may be a tuple of names of which a file has one (`weight_g` or `parametrizations.weight.original0`).
* `Kept(pattern)`: a known tensor that our network has no use for (`*` matches anything). It is stored beside our parameters, so that
  an export gives back every tensor. A tensor that no row names stops the conversion.
* `Same(name, other)`: a second name of the same tensor (tied embeddings). Must be equal; export writes it where the file had it.

To add a component, write `convert/<component>.py` with
    rows(config) -> tuple of rows        `config` is the part's config.json (see `parts.py`); most tables ignore most of it
    shapes(config) -> {path: shape}      what our network expects: `table.shapes_of(jax.eval_shape(module.init, ...)["params"])`
and name its files in `parts.py`. Shapes always come from our network, so a missing, unknown or mis-shaped tensor is found by comparing
the file with what we need, not with itself. Write variants (`conv_pos_batch_norm`) as an `if` on the config around whole rows.
"""

import fnmatch
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spirit_jax.checkpoint import flatten
from spirit_jax.convert.formats.files import ConversionError, LazyArray

_INDEX = re.compile(r"\{(\w+)(?::([^}]*))?\}")


@dataclass(frozen=True)
class Row:
    """One PyTorch name (or alternatives), our path, and the layout "theirs -> ours"."""

    theirs: str | tuple[str, ...]
    ours: str
    layout: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


@dataclass(frozen=True)
class Kept:
    """Tensors that our network does not read; kept for export."""

    pattern: str


@dataclass(frozen=True)
class Same:
    """`name` holds the same values as `other`."""

    name: str
    other: str


Rows = tuple[Row | Kept | Same, ...]


@dataclass(frozen=True)
class Slot:
    """One PyTorch tensor and its place in ours: `ours[index]`, rearranged by `layout`, is the tensor."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    path: str
    index: tuple[int | slice, ...]
    layout: "Layout"
    sizes: dict[str, int]


@dataclass(frozen=True)
class Stacked:
    """An array of ours made of several PyTorch tensors, read slice by slice. `numpy.asarray` puts it together."""

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: tuple[tuple[tuple[int | slice, ...], np.ndarray], ...]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = np.empty(self.shape, self.dtype if dtype is None else dtype)
        for index, piece in self.pieces:
            whole[index] = piece
        return whole


class Layout:
    """ "l (n h) d -> l d n h": the axes of theirs and of ours."""

    def __init__(self, text: str):
        self.text = text
        theirs, arrow, ours = text.partition("->")
        self.theirs, self.ours = _axes(theirs), _axes(ours)
        left, right = sorted(itertools.chain(*self.theirs)), sorted(itertools.chain(*self.ours))
        if not arrow or left != right or len(set(left)) != len(left):
            raise ValueError(f"layout {text!r}: both sides need the same axes, each once")

    def without(self, stacked: tuple[str, ...]) -> "Layout":
        """The layout of one slice."""
        if self.theirs[: len(stacked)] != tuple((name,) for name in stacked) or any(
            (n,) not in self.ours for n in stacked
        ):
            raise ValueError(
                f"layout {self.text!r}: {stacked} must come first on the left and stand alone on the right"
            )
        slice_ = Layout.__new__(Layout)
        slice_.text = self.text
        slice_.theirs = self.theirs[len(stacked) :]
        slice_.ours = tuple(group for group in self.ours if group not in {(name,) for name in stacked})
        return slice_


def _axes(text: str) -> tuple[tuple[str, ...], ...]:
    """ "(n h) d 1" -> (("n", "h"), ("d",), ())."""
    groups = re.findall(r"\(([^)]*)\)|(\S+)", text.strip())
    return tuple(tuple(group.split()) if group else () if single == "1" else (single,) for group, single in groups)


def _solve(axes: tuple[tuple[str, ...], ...], shape: tuple[int, ...], sizes: Mapping[str, int]) -> dict[str, int]:
    """The size of every letter, or ValueError where the shape does not fit."""
    if len(axes) != len(shape):
        raise ValueError(f"{len(axes)} axes expected, {len(shape)} found")
    solved = dict(sizes)
    for group, size in zip(axes, shape, strict=True):
        unknown = [name for name in group if name not in solved]
        known = int(np.prod([solved[name] for name in group if name in solved], dtype=np.int64))
        if len(unknown) > 1:
            raise ValueError(f"the sizes of {unknown} are not known")
        if unknown:
            solved[unknown[0]], known = size // known, known * (size // known)
        if known != size:
            raise ValueError(f"axis ({' '.join(group)}) is {size}, {known} expected")
    return solved


def _rearrange(array: np.ndarray, source: tuple, target: tuple, sizes: Mapping[str, int]) -> np.ndarray:
    flat_source, flat_target = list(itertools.chain(*source)), list(itertools.chain(*target))
    split = array.reshape([sizes[name] for name in flat_source])
    moved = split.transpose([flat_source.index(name) for name in flat_target])
    return moved.reshape(_shape(target, sizes))


def _shape(axes: tuple, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(int(np.prod([sizes[name] for name in group], dtype=np.int64)) for group in axes)


def _pattern(text: str) -> re.Pattern:
    """A regular expression of a name with {indices}."""
    parts, last = [], 0
    for match in _INDEX.finditer(text):
        words = "|".join(map(re.escape, match[2].split(","))) if match[2] else r"0|[1-9]\d*"
        parts += [re.escape(text[last : match.start()]), f"(?P<{match[1]}>{words})"]
        last = match.end()
    return re.compile("".join([*parts, re.escape(text[last:])]))


def _fill(text: str, values: Mapping[str, str]) -> str:
    return _INDEX.sub(lambda match: values[match[1]], text)


def slots(rows: Rows, shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int] | None = None) -> list[Slot]:
    """Every PyTorch tensor that arrays of ours with these shapes come from. `sizes` gives axes that our shapes leave open.

    Raises `ConversionError` for an array of ours that no row, or more than one, names.
    """
    table = [(_pattern(row.ours), row, Layout(row.layout)) for row in rows if isinstance(row, Row)]
    found: list[Slot] = []
    for path, shape in shapes.items():
        matches = [(match, row, layout) for pattern, row, layout in table if (match := pattern.fullmatch(path))]
        if len(matches) != 1:
            raise ConversionError(
                f"our array {path} {list(shape)} is named by {len(matches)} rows of its table, 1 expected"
            )
        match, row, layout = matches[0]
        words = {name: options.split(",") if options else None for name, options in _INDEX.findall(row.names[0])}
        stacked = tuple(name for name in words if name not in match.groupdict())
        one = layout.without(stacked)
        try:
            solved = _solve(layout.ours, tuple(shape), sizes or {})
        except ValueError as error:
            raise ConversionError(
                f"our array {path} {list(shape)} does not fit the layout {row.layout!r}: {error}"
            ) from error
        counts = [words[name] or [str(i) for i in range(solved[name])] for name in stacked]
        for name, options in zip(stacked, counts, strict=True):
            if len(options) != solved[name]:
                raise ConversionError(
                    f"our array {path} {list(shape)}: axis {name} should have the size {len(options)}"
                )
        for combination in itertools.product(*(range(len(options)) for options in counts)):
            values = dict(match.groupdict())
            values |= {name: counts[k][combination[k]] for k, name in enumerate(stacked)}
            at = dict(zip(stacked, combination, strict=True))
            index = tuple(at[group[0]] if len(group) == 1 and group[0] in at else slice(None) for group in layout.ours)
            names = tuple(_fill(name, values) for name in row.names)
            found.append(Slot(names, _shape(one.theirs, solved), path, index, one, solved))
    return found


def to_ours(
    rows: Rows,
    tensors: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
    sizes: Mapping[str, int] | None = None,
) -> tuple[dict[str, np.ndarray | Stacked], dict[str, Any]]:
    """PyTorch tensors to (our arrays by path, the kept tensors by name). Views only: values are read when used.

    Raises `ConversionError` listing every missing, unused and mis-shaped tensor, with expected and found shapes.
    """
    problems: list[str] = []
    pieces: dict[str, list[tuple[tuple, np.ndarray]]] = {path: [] for path in shapes}
    used: dict[str, str] = {}
    for slot in slots(rows, shapes, sizes):
        present = [name for name in slot.names if name in tensors]
        if len(present) != 1:
            what = "missing " if not present else f"{len(present)} names of one tensor:"
            problems.append(f"{what} {' or '.join(slot.names)}: expected {list(slot.shape)}")
            continue
        name = present[0]
        used[name] = slot.path
        tensor = tensors[name]
        if tuple(tensor.shape) != slot.shape:
            problems.append(f"mis-shaped {name}: expected {list(slot.shape)}, found {list(tensor.shape)}")
            continue
        piece = _rearrange(tensor, slot.layout.theirs, slot.layout.ours, slot.sizes)
        if pieces[slot.path] and pieces[slot.path][0][1].dtype != piece.dtype:
            first = pieces[slot.path][0][1].dtype
            problems.append(f"mixed types in {slot.path}: {name} is {piece.dtype}, the one before {first}")
        pieces[slot.path].append((slot.index, piece))
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
        raise ConversionError(
            "\n  ".join([f"{where} does not match the component ({len(problems)} tensors):", *problems])
        )
    return {path: _join(shapes[path], parts) for path, parts in pieces.items()}, kept


def _join(shape: tuple[int, ...], parts: list[tuple[tuple, np.ndarray]]) -> np.ndarray | Stacked:
    if len(parts) == 1 and all(isinstance(axis, slice) for axis in parts[0][0]):
        return parts[0][1]
    return Stacked(tuple(shape), parts[0][1].dtype, tuple(parts))


def to_theirs(
    rows: Rows,
    arrays: Mapping[str, Any],
    kept: Mapping[str, Any] | None = None,
    names: Iterable[str] = (),
    sizes: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Our arrays by path to PyTorch tensors by name, each read when used. Of an array only `shape`, `dtype` and `array[index]` are used.

    `names`: the keys of the released file, if known. They choose among alternative names and give the order.
    """
    names = list(names)
    known = set(names)
    tensors: dict[str, Any] = dict(kept or {})
    for slot in slots(rows, {path: tuple(array.shape) for path, array in arrays.items()}, sizes):
        name = next((name for name in slot.names if name in known), slot.names[0])
        tensors[name] = LazyArray(slot.shape, np.dtype(arrays[slot.path].dtype), _reader(arrays[slot.path], slot))
    for row in rows:
        if isinstance(row, Same) and row.name in known:
            tensors[row.name] = tensors[row.other]
    order = {name: position for position, name in enumerate(names)}
    return dict(sorted(tensors.items(), key=lambda item: order.get(item[0], len(order))))


def _reader(array: Any, slot: Slot) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        return _rearrange(np.asarray(array[slot.index]), slot.layout.ours, slot.layout.theirs, slot.sizes)

    return read


def same_bits(one: Any, other: Any) -> bool:
    """Whether two arrays have the same type, shape and bytes (so NaNs are equal to themselves and 0 differs from -0)."""
    if tuple(one.shape) != tuple(other.shape) or np.dtype(one.dtype) != np.dtype(other.dtype):
        return False
    as_raw = [np.ascontiguousarray(np.asarray(array)).reshape(-1).view(np.uint8) for array in (one, other)]
    return bool(np.array_equal(*as_raw))


def shapes_of(tree: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """{path: shape} of a tree of arrays or of `jax.ShapeDtypeStruct`s."""
    return {path: tuple(leaf.shape) for path, leaf in flatten(tree).items()}
