"""Which axes of the mesh in force split a logical axis."""

import jax
from flax.linen.spmd import logical_to_mesh_axes


def mesh_axes(logical_axis: str) -> tuple[str, ...]:
    """Axes of the mesh in force, of more than one device, over which the sharding rules split a logical axis."""
    mesh = jax.sharding.get_abstract_mesh()
    part = (logical_to_mesh_axes((logical_axis,)) or (None,))[0] or ()
    names = (part,) if isinstance(part, str) else part
    return tuple(name for name in names if mesh.shape.get(name, 1) > 1)
