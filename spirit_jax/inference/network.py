"""The Llama as generation runs it: a loop over layers with the KV cache carried along, on a mesh."""

import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from spirit_jax.models import llama
from spirit_jax.models.llama import KVCache, LlamaConfig, Params
from spirit_jax.parallel.sharding import named_sharding, tree_shardings, with_shardings

_CACHE_AXES = ("layers", "batch", "cache_sequence", "activation_kv_heads", "head_dim")


def forward(
    config: LlamaConfig,
    params: Params,
    tokens_bt: Int[Array, "B T"],
    positions_bt: Int[Array, "B T"] | None = None,
    cache: KVCache | None = None,
) -> tuple[Float[Array, "B T D"], KVCache | None]:
    """Final hidden states and the cache with these tokens in it; arguments as `Llama.__call__`."""
    return llama.Llama(config).apply({"params": params}, tokens_bt, positions_bt, cache=cache)


def logits(config: LlamaConfig, params: Params, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """Scores of the next token, float32."""
    head = llama.head_weight(config, params).astype(hidden.dtype)
    return jnp.einsum("...d,dv->...v", hidden, head, preferred_element_type=jnp.float32)


def cache_sharding(config: LlamaConfig, mesh: Mesh) -> NamedSharding:
    """Rows over the batch axes of the mesh, key-value heads over its tensor axis."""
    shape = (config.num_hidden_layers, batch_ways(mesh), 1, config.num_key_value_heads, config.head_size)
    return named_sharding(mesh, _CACHE_AXES, shape, "KV cache")


def whole(mesh: Mesh) -> NamedSharding:
    """Every device holds all of it."""
    return NamedSharding(mesh, PartitionSpec())


def batch_ways(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def sharded_abstract_params(config: LlamaConfig, mesh: Mesh) -> Params:
    """Shapes, dtypes and shardings of the parameters: what loads straight into shards."""
    shapes = llama.abstract_params(config)
    return with_shardings(shapes, tree_shardings(mesh, llama.logical_axes(config), shapes))
