"""Runs an attention kernel on each device's own rows and heads."""

import math
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from spirit_jax.core.mesh import mesh_axes

_AXES = ("batch", "sequence", "activation_heads", "head_dim")
_KV_AXES = ("batch", "sequence", "activation_kv_heads", "head_dim")


class CausalAttention(Protocol):
    """The signature of `reference.causal_attention`."""

    def __call__(
        self,
        q_btnh: Float[Array, "B T N H"],
        k_btkh: Float[Array, "B T K H"],
        v_btkh: Float[Array, "B T K H"],
        segment_ids_bt: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T N H"]: ...


def sharded(kernel: CausalAttention) -> CausalAttention:
    """The kernel under `shard_map`, with rows and heads split as the sharding rules say.

    The partitioner cannot look into a fused kernel, and would gather its arguments on every device. An axis that the
    mesh does not divide stays whole.
    """

    def call(
        q_btnh: Float[Array, "B T N H"],
        k_btkh: Float[Array, "B T K H"],
        v_btkh: Float[Array, "B T K H"],
        segment_ids_bt: Int[Array, "B T"] | None = None,
    ) -> Float[Array, "B T N H"]:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1:
            return kernel(q_btnh, k_btkh, v_btkh, segment_ids_bt)
        if segment_ids_bt is None:
            segment_ids_bt = jnp.zeros(q_btnh.shape[:2], jnp.int32)
        q, kv = partition_spec(_AXES, q_btnh.shape), partition_spec(_KV_AXES, k_btkh.shape)
        if kv[2] is None:  # fewer key-value heads than devices: each device would need other ones
            q = PartitionSpec(q[0], q[1], None, q[3])
        # check_vma: a Pallas call does not declare how its results vary over the mesh
        on_each_device = jax.shard_map(kernel, in_specs=(q, kv, kv, PartitionSpec(q[0])), out_specs=q, check_vma=False)
        return on_each_device(q_btnh, k_btkh, v_btkh, segment_ids_bt)

    return call


def partition_spec(axes: tuple[str, ...], shape: tuple[int, ...]) -> PartitionSpec:
    """The axes of the mesh in force that split an array with these logical axes, where they divide its shape."""
    mesh = jax.sharding.get_abstract_mesh()
    parts = [
        names if size % math.prod(mesh.shape[name] for name in names) == 0 else None
        for names, size in zip(map(mesh_axes, axes), shape, strict=True)
    ]
    return PartitionSpec(*parts)
