"""The Llama as generation runs it, weights in full or as int8, on a mesh.

Accelerators loop over stacked layers and carry the KV cache through the loop; CPUs run `columns`. Which of the two is
seen by the parameters: `arrange` gives them their form, and `forward`, `logits` and the caches follow it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from spirit_jax.inference import llama_cpu as columns
from spirit_jax.inference.int8 import dense
from spirit_jax.models import llama
from spirit_jax.models.llama import DTYPES, KVCache, LlamaConfig, Params
from spirit_jax.parallel.sharding import named_sharding, tree_shardings, with_shardings

Cache = KVCache | tuple[columns.HeadCache, ...]
"""Of all layers stacked, or one a layer."""


def forward(
    config: LlamaConfig,
    params: Params,
    tokens_bt: Int[Array, "B T"],
    positions_bt: Int[Array, "B T"] | None = None,
    cache: Cache | None = None,
    rows_b: Int[Array, " B"] | None = None,
    first: bool = False,
) -> tuple[Float[Array, "B T D"], Cache | None]:
    """Final hidden states and the cache with these tokens in it; as `Llama.__call__`, but for int8 weights too.

    Weights in int8 become dense a layer at a time, so that only one layer exists in full.

    Args:
        rows_b: which row of the cache each row of tokens belongs to; beyond the last one, it is not stored. None: all.
        first: rows start at position 0, so that nothing before them has to be read.
    """
    dtype = DTYPES[config.dtype]
    if positions_bt is None:
        positions_bt = jnp.broadcast_to(jnp.arange(tokens_bt.shape[1]), tokens_bt.shape)
    if _apart(params):
        return columns.forward(config, params, tokens_bt, positions_bt, cache, rows_b, first or cache is None)
    rotary = llama.rotary_embedding(config, positions_bt)
    block, norm = llama.Block(config), llama.RMSNorm(config)
    rows = jax.tree.map(lambda array: jnp.take(array, tokens_bt, axis=0), params["embed_tokens"])

    def layer(carry, inputs):
        weights, index = inputs
        return block.apply({"params": dense(weights, dtype)}, carry, index, rotary, positions_bt, None)

    layers = (params["layers"], jnp.arange(config.num_hidden_layers))
    own = cache if rows_b is None else jax.tree.map(lambda array: jnp.take(array, rows_b, 1, mode="clip"), cache)
    (x_btd, own), _ = jax.lax.scan(layer, (dense(rows, dtype), own), layers)
    if rows_b is not None:
        own = jax.tree.map(lambda old, new: old.at[:, rows_b].set(new, mode="drop"), cache, own)
    return norm.apply({"params": params["norm"]}, x_btd), own


def _apart(params: Params) -> bool:
    return isinstance(params["layers"], tuple)


def arrange(config: LlamaConfig, params: Params, mesh: Mesh) -> Params:
    """The parameters in the form that the mesh's devices run best; those that have it already stay as they are."""
    return columns.arrange(config, params) if on_cpu(mesh) and not _apart(params) else params


def on_cpu(mesh: Mesh) -> bool:
    """Whether a mesh is of CPUs, which run `columns`."""
    return mesh.devices.flat[0].platform == "cpu"


def empty_cache(config: LlamaConfig, params: Params, batch: int, length: int) -> Cache:
    """A cache in the form of the parameters."""
    init = columns.empty_cache if _apart(params) else llama.init_cache
    return init(config, batch, length)


def head_weight(config: LlamaConfig, params: Params) -> Float[Array, "D V"]:
    """The matrix from final hidden states to logits, dense, in the compute dtype."""
    head = dense(params["embed_tokens" if config.tie_word_embeddings else "lm_head"], DTYPES[config.dtype])
    return head.T if config.tie_word_embeddings or _apart(params) else head


def logits(config: LlamaConfig, params: Params, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """Scores of the next token, float32."""
    if _apart(params):
        return columns.logits(config, params, hidden)
    return jnp.einsum("...d,dv->...v", hidden, head_weight(config, params), preferred_element_type=jnp.float32)


def cache_sharding(config: LlamaConfig, mesh: Mesh, cache: Cache) -> NamedSharding:
    """Rows over the batch axes of the mesh, key-value heads over its tensor axis."""
    axes = ("batch", "activation_kv_heads", "cache_sequence", "head_dim")
    if isinstance(cache, KVCache):
        axes = ("layers", "batch", "cache_sequence", "activation_kv_heads", "head_dim")
    return named_sharding(mesh, axes, jax.tree.leaves(cache)[0].shape, "KV cache")


def whole(mesh: Mesh) -> NamedSharding:
    """Every device holds all of it."""
    return NamedSharding(mesh, PartitionSpec())


def batch_ways(mesh: Mesh) -> int:
    """Into how many parts the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def param_shardings(config: LlamaConfig, mesh: Mesh) -> Any:
    """Where each parameter lies on a mesh, by the table of rules."""
    return tree_shardings(mesh, llama.logical_axes(config), llama.abstract_params(config))


def sharded_abstract_params(config: LlamaConfig, mesh: Mesh) -> Params:
    """Shapes, dtypes and shardings of the parameters: what loads straight into shards."""
    return with_shardings(llama.abstract_params(config), param_shardings(config, mesh))
