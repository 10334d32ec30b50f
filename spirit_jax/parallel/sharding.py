"""Sharding: one table maps the logical axes of weights and activations to mesh axes, and everything is split by it."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from spirit_jax.core.errors import SpiritError

RULES: dict[str, str | tuple[str, ...] | None] = {
    # activations
    "batch": ("data", "fsdp"),
    "sequence": None,
    "cache_sequence": None,
    "activation_embed": None,
    "activation_heads": "tensor",
    "activation_kv_heads": "tensor",
    "activation_mlp": "tensor",
    "activation_vocab": "tensor",
    # weights
    "layers": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "head_dim": None,
}
"""Logical axis -> mesh axis or axes that split it; None keeps it whole on every device."""


class ShardingError(SpiritError):
    """An array that cannot be split over a mesh; the message names the array and the axis."""


def axis_names(part: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of one entry of `RULES` or of a `PartitionSpec`, as a tuple."""
    return () if part is None else (part,) if isinstance(part, str) else part


def partition_spec(axes: tuple[str | None, ...], name: str = "array") -> PartitionSpec:
    """Return the mesh axes that split an array.

    Args:
        axes: logical axis of each dimension; None keeps a dimension whole.
        name: the array's name in error messages.

    Raises:
        ShardingError: the table does not know an axis, or two dimensions need the same mesh axis.
    """
    parts, used = [], {}
    for axis in axes:
        if axis is not None and axis not in RULES:
            raise ShardingError(f"{name}: no sharding rule for the logical axis {axis!r}; known are {', '.join(RULES)}")
        part = None if axis is None else RULES[axis]
        for mesh_axis in axis_names(part):
            if mesh_axis in used:
                raise ShardingError(
                    f"{name}: logical axes {used[mesh_axis]!r} and {axis!r} both want the mesh axis {mesh_axis!r}"
                )
            used[mesh_axis] = axis
        parts.append(part)
    return PartitionSpec(*parts)


def named_sharding(
    mesh: Mesh | AbstractMesh, axes: tuple[str | None, ...], shape: tuple[int, ...], name: str = "array"
) -> NamedSharding:
    """Return the sharding of one array on a mesh; arguments as for `partition_spec`.

    Raises:
        ShardingError: as `partition_spec`, or a dimension is not divisible by its mesh axes.
    """
    spec = partition_spec(axes, name)
    for size, axis, part in zip(shape, axes, spec, strict=True):
        ways = math.prod(mesh.shape[mesh_axis] for mesh_axis in axis_names(part))
        if size % ways:
            raise ShardingError(
                f"{name}: its {axis!r} axis has size {size}, which {ways} devices of mesh axis {part!r} do not divide"
            )
    return NamedSharding(mesh, spec)


def tree_shardings(mesh: Mesh | AbstractMesh, axes: Any, shapes: Any) -> Any:
    """Return the shardings of a nested dict of arrays.

    Args:
        axes: holds a tuple of logical axes where `shapes` holds a leaf.
        shapes: arrays, or anything else with a shape.

    Raises:
        ShardingError: as `named_sharding`; the message names the array by its path.
    """

    def leaf(path, shaped, names):
        name = "/".join(str(getattr(key, "key", key)) for key in path)
        return named_sharding(mesh, names, shaped.shape, name)

    return jax.tree_util.tree_map_with_path(leaf, shapes, axes)


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """Return abstract arrays that carry their shardings, as Orbax and `jit(...).lower` take them."""
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, shardings
    )


def fitting(sharding: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
    """Return a sharding without the mesh axes that do not divide an array of this shape."""
    ways = [math.prod(sharding.mesh.shape[axis] for axis in axis_names(part)) for part in sharding.spec]
    parts = [part if size % way == 0 else None for size, way, part in zip(shape, ways, sharding.spec, strict=False)]
    return NamedSharding(sharding.mesh, PartitionSpec(*parts))


def abstract_result(function: Callable[[Any], Any], array: jax.ShapeDtypeStruct) -> Any:
    """Return the abstract arrays that a function makes of one, each split as that one is, where the mesh divides it.

    Args:
        function: keeps the number and order of the axes.
        array: carries a `NamedSharding`.
    """
    sharding = array.sharding
    assert isinstance(sharding, NamedSharding)
    shapes = jax.eval_shape(function, array)
    return with_shardings(shapes, jax.tree.map(lambda shape: fitting(sharding, shape.shape), shapes))


def apply_split(function: Callable[..., Any], array: jax.Array, *static: Any) -> Any:
    """Return `function(array, *static)`, compiled, with its results split as `abstract_result` has them.

    Left to itself, the partitioner may split a result unevenly, which JAX refuses.

    Args:
        function: a function of a module, because programs are kept for it.
        array: split by a `NamedSharding`.
        static: hashable arguments.
    """
    return _jit_split(function, jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding), static)(array)


@functools.cache
def _jit_split(function: Callable[..., Any], like: jax.ShapeDtypeStruct, static: tuple[Any, ...]) -> Any:
    def call(array: jax.Array) -> Any:
        return function(array, *static)

    return jax.jit(call, out_shardings=jax.tree.map(lambda shape: shape.sharding, abstract_result(call, like)))


@contextmanager
def tracing(mesh: Mesh, dtype: str) -> Iterator[None]:
    """The context in which a model's program is traced.

    The table resolves logical constraints on this mesh. The matrix products of a model in float32 are computed in
    float32; by JAX's default, TPUs and GPUs round their inputs.
    """
    precision = jax.default_matmul_precision("float32") if dtype == "float32" else nullcontext()
    with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(RULES.items())), precision:
        yield


class HostShare(NamedTuple):
    """One of `count` equal shares of a batch's rows."""

    index: int
    count: int


@dataclasses.dataclass(frozen=True)
class BatchLayout:
    """Split of the rows of a global batch over the devices of a mesh and over the parts of a step.

    Raises:
        ShardingError: the rows cannot be split evenly.
    """

    mesh: Mesh
    rows: int
    """Rows of the global batch, over all hosts."""
    accumulate: int = 1
    """Parts that a step works through one after the other (gradient accumulation)."""

    def __post_init__(self) -> None:
        ways = math.prod(self.mesh.shape[axis] for axis in axis_names(RULES["batch"]))
        if self.rows % (self.accumulate * ways):
            raise ShardingError(
                f"global_batch_size {self.rows} is not a multiple of accumulate {self.accumulate} x {ways} devices "
                "of the mesh axes data and fsdp"
            )

    @property
    def sharding(self) -> NamedSharding:
        """Sharding of every array of a batch: rows over the batch axes, everything else whole."""
        return named_sharding(self.mesh, ("batch",), (self.rows,), "global_batch_size")

    def rows_by_process(self) -> dict[int, list[int]]:
        """Row numbers that each process holds, in ascending order, by process index."""
        held: dict[int, set[int]] = {}
        for device, (part,) in self.sharding.devices_indices_map((self.rows,)).items():
            held.setdefault(device.process_index, set()).update(range(*part.indices(self.rows)))
        return {process: sorted(numbers) for process, numbers in held.items()}

    def share(self, process: int | None = None) -> HostShare:
        """Return the share of a batch's rows that a process feeds, by default this process.

        Processes that hold the same rows (tensor parallelism across hosts) have the same share. On a torus, the rows of
        a share need not be contiguous in the array: `put` places them, and the loss does not depend on their order.

        Raises:
            ShardingError: the order of the mesh's devices gives the processes unequal shares.
        """
        held = self.rows_by_process()
        shares = sorted(set(map(tuple, held.values())))
        if len(set(map(len, shares))) > 1 or sum(map(len, shares)) != self.rows:
            raise ShardingError(
                f"the processes hold {', '.join(map(str, map(len, shares)))} of {self.rows} rows: not equal shares; "
                "reorder the mesh"
            )
        own = held[jax.process_index() if process is None else process]
        return HostShare(index=shares.index(tuple(own)), count=len(shares))

    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Build the global arrays of a batch from this process's rows of it."""
        own = self.rows_by_process()[jax.process_index()]

        def put(value: np.ndarray) -> jax.Array:
            def shard(index):
                start, stop, _ = index[0].indices(self.rows)
                return value[own.index(start) :][: stop - start]

            return jax.make_array_from_callback((self.rows, *value.shape[1:]), self.sharding, shard)

        return {name: put(value) for name, value in batch.items()}
