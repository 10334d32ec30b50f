"""The Llama as generation runs it: a loop over layers that carries the KV cache, weights in full or as int8, on a mesh."""

import dataclasses
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from spirit_jax.inference.int8 import dense
from spirit_jax.models import llama
from spirit_jax.models.llama import DTYPES, KVCache, LlamaConfig, Params
from spirit_jax.parallel.sharding import named_sharding, tree_shardings, with_shardings

_CACHE_AXES = ("layers", "batch", "cache_sequence", "activation_kv_heads", "head_dim")


def forward(
    config: LlamaConfig,
    params: Params,
    tokens_bt: Int[Array, "B T"],
    positions_bt: Int[Array, "B T"] | None = None,
    cache: KVCache | tuple[KVCache, ...] | None = None,
) -> tuple[Float[Array, "B T D"], KVCache | tuple[KVCache, ...] | None]:
    """Final hidden states and the cache with these tokens in it; as `Llama.__call__`, but for int8 weights too.

    Weights in int8 become dense a layer at a time, so that only one layer exists in full. With a tuple of layers
    (`arrange`) the cache is a tuple too.
    """
    dtype = DTYPES[config.dtype]
    if positions_bt is None:
        positions_bt = jnp.broadcast_to(jnp.arange(tokens_bt.shape[1]), tokens_bt.shape)
    rotary = llama.rotary_embedding(config, positions_bt)
    block, norm = llama.Block(config), llama.RMSNorm(config)
    rows = jax.tree.map(lambda array: jnp.take(array, tokens_bt, axis=0), params["embed_tokens"])
    x_btd = dense(rows, dtype)

    def layer(carry, inputs):
        weights, index = inputs
        return block.apply({"params": dense(weights, dtype)}, carry, index, rotary, positions_bt, None)

    if isinstance(params["layers"], tuple):
        caches = []
        for weights, own in zip(params["layers"], cache or [None] * config.num_hidden_layers, strict=True):
            (x_btd, own), _ = layer((x_btd, own), (weights, 0))
            caches.append(own)
        cache = None if cache is None else tuple(caches)
    else:
        layers = (params["layers"], jnp.arange(config.num_hidden_layers))
        (x_btd, cache), _ = jax.lax.scan(layer, (x_btd, cache), layers)
    return norm.apply({"params": params["norm"]}, x_btd), cache


@functools.partial(jax.jit, static_argnums=0)
def _unstack(count: int, layers: Params) -> tuple[Params, ...]:
    return tuple(jax.tree.map(operator.itemgetter(index), layers) for index in range(count))


def arrange(config: LlamaConfig, params: Params, mesh: Mesh) -> Params:
    """The parameters as `forward` runs them best: on CPUs a tree a layer, because there a loop over stacked layers copies
    each layer's weights and cache before it reads them, which decoding does for every token."""
    if mesh.devices.flat[0].platform != "cpu" or isinstance(params["layers"], tuple):
        return params
    return {**params, "layers": _unstack(config.num_hidden_layers, params["layers"])}


def empty_cache(config: LlamaConfig, params: Params, batch: int, length: int) -> KVCache | tuple[KVCache, ...]:
    """A cache in the form of the parameters: of all layers, or one a layer."""
    if not isinstance(params["layers"], tuple):
        return llama.init_cache(config, batch, length)
    one = dataclasses.replace(config, num_hidden_layers=1)
    return tuple(llama.init_cache(one, batch, length) for _ in params["layers"])


def head_weight(config: LlamaConfig, params: Params) -> Float[Array, "D V"]:
    """The matrix from final hidden states to logits, dense, in the compute dtype."""
    dtype = DTYPES[config.dtype]
    if config.tie_word_embeddings:
        return dense(params["embed_tokens"], dtype).T
    return dense(params["lm_head"], dtype)


def logits(config: LlamaConfig, params: Params, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """Scores of the next token, float32."""
    return jnp.einsum("...d,dv->...v", hidden, head_weight(config, params), preferred_element_type=jnp.float32)


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


def param_shardings(config: LlamaConfig, mesh: Mesh) -> Any:
    """Where each parameter lies on a mesh, by the table of rules."""
    return tree_shardings(mesh, llama.logical_axes(config), llama.abstract_params(config))


def sharded_abstract_params(config: LlamaConfig, mesh: Mesh) -> Params:
    """Shapes, dtypes and shardings of the parameters: what loads straight into shards."""
    return with_shardings(llama.abstract_params(config), param_shardings(config, mesh))
