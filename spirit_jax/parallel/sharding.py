"""One table maps logical axes of weights and activations to mesh axes; everything sharded is sharded by it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

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


def partition_spec(axes: tuple[str | None, ...], name: str = "array") -> PartitionSpec:
    """The mesh axes of an array whose dimensions carry these logical axes.

    Raises:
        ValueError: an axis that the table does not know, or two dimensions that want the same mesh axis.
    """
    parts, used = [], {}
    for axis in axes:
        if axis is not None and axis not in RULES:
            raise ValueError(f"{name}: no sharding rule for the logical axis {axis!r}; known are {', '.join(RULES)}")
        part = None if axis is None else RULES[axis]
        for mesh_axis in (part,) if isinstance(part, str) else part or ():
            if mesh_axis in used:
                raise ValueError(
                    f"{name}: logical axes {used[mesh_axis]!r} and {axis!r} both want the mesh axis {mesh_axis!r}"
                )
            used[mesh_axis] = axis
        parts.append(part)
    return PartitionSpec(*parts)


def named_sharding(
    mesh: Mesh, axes: tuple[str | None, ...], shape: tuple[int, ...], name: str = "array"
) -> NamedSharding:
    """The sharding of one array on a mesh.

    Raises:
        ValueError: as `partition_spec`, or a dimension that its mesh axes do not divide; names the array.
    """
    spec = partition_spec(axes, name)
    for size, axis, part in zip(shape, axes, spec, strict=True):
        ways = math.prod(mesh.shape[mesh_axis] for mesh_axis in ((part,) if isinstance(part, str) else part or ()))
        if size % ways:
            raise ValueError(
                f"{name}: its {axis!r} axis has size {size}, which {ways} devices of mesh axis {part!r} do not divide"
            )
    return NamedSharding(mesh, spec)


def tree_shardings(mesh: Mesh, axes: Any, shapes: Any) -> Any:
    """Shardings for a nested dict of arrays: `axes` holds a tuple of logical axes where `shapes` holds a shaped leaf."""

    def leaf(path, shaped, names):
        name = "/".join(str(getattr(key, "key", key)) for key in path)
        return named_sharding(mesh, names, shaped.shape, name)

    return jax.tree_util.tree_map_with_path(leaf, shapes, axes)


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """Abstract arrays that carry their shardings, what Orbax and `jit(...).lower` take."""
    return jax.tree.map(
        lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, shardings
    )


@contextmanager
def tracing(mesh: Mesh, dtype: str) -> Iterator[None]:
    """What a program of a model is traced in: logical constraints are resolved by the table on this mesh, and matrix
    products of a model in float32 are float32 products, whose inputs TPUs and GPUs otherwise round (JAX's default)."""
    precision = jax.default_matmul_precision("float32") if dtype == "float32" else nullcontext()
    with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(RULES.items())), precision:
        yield


def batch_sharding(mesh: Mesh, rows: int) -> NamedSharding:
    """Rows over the batch axes, everything else whole.

    Raises:
        ValueError: the mesh does not divide the rows.
    """
    return named_sharding(mesh, ("batch",), (rows,), "global_batch_size")


def _shares(mesh: Mesh, rows: int) -> dict[int, list[int]]:
    """The rows of a batch that each process holds, in their order."""
    held: dict[int, set[int]] = {}
    for device, (part,) in batch_sharding(mesh, rows).devices_indices_map((rows,)).items():
        held.setdefault(device.process_index, set()).update(range(*part.indices(rows)))
    return {process: sorted(numbers) for process, numbers in held.items()}


def local_rows(mesh: Mesh, rows: int, process: int | None = None) -> tuple[int, int]:
    """Which share of a batch's rows a process feeds, by default this one: `(index, count)`, share `index` of `count` equal ones.

    Processes that hold the same rows (tensor parallelism across hosts) have the same index. On a torus the rows of a share
    need not stand side by side in the array (`put_batch` knows where), as the loss does not depend on their order.

    Raises:
        ValueError: the processes' rows are not equal shares of the batch, which the mesh's order of devices prevents.
    """
    held = _shares(mesh, rows)
    shares = sorted(set(map(tuple, held.values())))
    if len(set(map(len, shares))) > 1 or sum(map(len, shares)) != rows:
        raise ValueError(
            f"the processes hold {', '.join(map(str, map(len, shares)))} of {rows} rows: not equal shares; reorder the mesh"
        )
    own = held[jax.process_index() if process is None else process]
    return shares.index(tuple(own)), len(shares)


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray], rows: int) -> dict[str, jax.Array]:
    """Global arrays out of this process's rows."""
    sharding, own = batch_sharding(mesh, rows), _shares(mesh, rows)[jax.process_index()]

    def put(value: np.ndarray) -> jax.Array:
        def shard(index):
            start, stop, _ = index[0].indices(rows)
            return value[own.index(start) :][: stop - start]

        return jax.make_array_from_callback((rows, *value.shape[1:]), sharding, shard)

    return {name: put(value) for name, value in batch.items()}
