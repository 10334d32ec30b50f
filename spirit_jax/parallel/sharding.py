"""One table maps logical axes of weights and activations to mesh axes; everything sharded is sharded by it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
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
def logical_rules(mesh: Mesh) -> Iterator[None]:
    """Within it, the models' logical constraints are resolved by the table on this mesh."""
    with jax.set_mesh(mesh), nn.logical_axis_rules(tuple(RULES.items())):
        yield


def batch_sharding(mesh: Mesh, rows: int) -> NamedSharding:
    """Rows over the batch axes, everything else whole.

    Raises:
        ValueError: the mesh does not divide the rows.
    """
    return named_sharding(mesh, ("batch",), (rows,), "global_batch_size")


def local_rows(mesh: Mesh, rows: int) -> tuple[int, int]:
    """Which share of a batch's rows this process feeds: `(index, count)`, share `index` of `count` equal ones.

    Processes that hold the same rows (tensor parallelism across hosts) have the same index.

    Raises:
        ValueError: this process's rows are not one contiguous share, which the mesh's order of devices prevents.
    """
    slices = batch_sharding(mesh, rows).addressable_devices_indices_map((rows,)).values()
    owned = sorted({row for (part,) in slices for row in range(*part.indices(rows))})
    start, count = owned[0], rows // len(owned)
    if owned != list(range(start, start + len(owned))) or rows % len(owned) or start % len(owned):
        raise ValueError(
            f"process {jax.process_index()} holds rows {owned} of {rows}: not one contiguous share; reorder the mesh"
        )
    return start // len(owned), count


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray], rows: int) -> dict[str, jax.Array]:
    """Global arrays out of this process's rows."""
    sharding = batch_sharding(mesh, rows)
    return {
        name: jax.make_array_from_process_local_data(sharding, value, (rows, *value.shape[1:]))
        for name, value in batch.items()
    }
