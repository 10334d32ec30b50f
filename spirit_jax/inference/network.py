"""The Llama decoder with a KV cache, on a mesh, with weights in floats, 8 or 4 bits.

There are two layouts of parameters and cache. Accelerators loop over stacked layers (`models/llama.py`) and carry the
cache through the loop; CPUs run one tree of weights per layer (`llama_cpu.py`). `arrange` chooses the layout, and every
function here follows the layout of the parameters that it is given.
"""

from typing import Any, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from spirit_jax.inference import llama_cpu
from spirit_jax.kernels.platform import REFERENCE, kernels_in_use
from spirit_jax.models import llama, quantized
from spirit_jax.models.llama import DTYPES, KVCache, LlamaConfig, Params
from spirit_jax.models.llama_config import Quantization
from spirit_jax.parallel.sharding import abstract_result, named_sharding, tree_shardings, with_shardings

Cache = KVCache | tuple[llama_cpu.LayerCache, ...]
"""A KV cache: all layers stacked, or one cache per layer."""


def runs_llama_cpu(mesh: Mesh) -> bool:
    """Return whether a mesh runs `llama_cpu`: its devices are CPUs, and nobody asks for the plain formulas."""
    return mesh.devices.flat[0].platform == "cpu" and kernels_in_use() != REFERENCE


def is_per_layer(params: Params) -> bool:
    """Return whether parameters have the layout of `llama_cpu`."""
    return isinstance(params["layers"], tuple)


def arrange(config: LlamaConfig, params: Params, mesh: Mesh) -> Params:
    """Return parameters in the layout that the devices of the mesh run best."""
    return llama_cpu.arrange(config, params) if runs_llama_cpu(mesh) and not is_per_layer(params) else params


def forward(
    config: LlamaConfig,
    params: Params,
    tokens_bt: Int[Array, "B T"],
    positions_bt: Int[Array, "B T"] | None = None,
    cache: Cache | None = None,
    rows_b: Int[Array, " B"] | None = None,
    first: bool = False,
) -> tuple[Float[Array, "B T D"], Cache | None]:
    """Return final hidden states, and the cache with these tokens in it, as `Llama.__call__` does.

    Quantized weights are converted one layer at a time, so that only one layer exists in floats; `llama_cpu` converts
    even less at once.

    Args:
        positions_bt: position of each token; negative positions are not stored. None means 0, 1, 2, ... in every row.
        cache: the layout must be that of the parameters.
        rows_b: the row of the cache that each row of tokens belongs to; rows beyond the last are not stored. None means
            all rows in order.
        first: all rows start at position 0, so no earlier tokens are read from the cache.
    """
    dtype = DTYPES[config.dtype]
    if positions_bt is None:
        positions_bt = jnp.broadcast_to(jnp.arange(tokens_bt.shape[1]), tokens_bt.shape)
    if is_per_layer(params):
        assert not isinstance(cache, KVCache), "the cache and the parameters have different layouts"
        return llama_cpu.forward(config, params, tokens_bt, positions_bt, cache, rows_b, first or cache is None)
    rotary = llama.rotary_embedding(config, positions_bt)
    block, norm = llama.Block(config), llama.RMSNorm(config)
    embedded = jax.tree.map(lambda array: jnp.take(array, tokens_bt, axis=0), params["embed_tokens"])

    def layer(carry, inputs):
        weights, index = inputs
        return block.apply({"params": quantized.dequantize(weights, dtype)}, carry, index, rotary, positions_bt, None)

    layers = (params["layers"], jnp.arange(config.num_hidden_layers))
    own = cache if rows_b is None else jax.tree.map(lambda array: jnp.take(array, rows_b, 1, mode="clip"), cache)
    (x_btd, own), _ = jax.lax.scan(layer, (quantized.dequantize(embedded, dtype), own), layers)
    if rows_b is not None:
        own = jax.tree.map(lambda old, new: old.at[:, rows_b].set(new, mode="drop"), cache, own)
    return cast(Array, norm.apply({"params": params["norm"]}, x_btd)), own


def head_weight(config: LlamaConfig, params: Params) -> Float[Array, "D V"]:
    """Return the matrix from final hidden states to logits, in the compute dtype."""
    head = quantized.to_float(params["embed_tokens" if config.tie_word_embeddings else "lm_head"], DTYPES[config.dtype])
    return head.T if config.tie_word_embeddings or is_per_layer(params) else head


def logits(config: LlamaConfig, params: Params, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """Return the scores of the next token, float32."""
    if is_per_layer(params):
        return llama_cpu.logits(config, params, hidden)
    return jnp.einsum("...d,dv->...v", hidden, head_weight(config, params), preferred_element_type=jnp.float32)


def init_cache(config: LlamaConfig, params: Params, batch: int, length: int) -> Cache:
    """Return an empty cache in the layout of the parameters: `length` slots for each of `batch` rows."""
    init = llama_cpu.init_cache if is_per_layer(params) else llama.init_cache
    return init(config, batch, length)


def cache_sharding(config: LlamaConfig, mesh: Mesh, cache: Cache) -> NamedSharding:
    """Return the sharding of a cache's arrays: rows over the batch axes of the mesh, heads over its tensor axis."""
    if isinstance(cache, KVCache):
        axes = ("layers", "batch", "cache_sequence", "activation_kv_heads", "head_dim")
    else:
        axes = ("batch", "activation_kv_heads", "cache_sequence", "head_dim")
    return named_sharding(mesh, axes, jax.tree.leaves(cache)[0].shape, "KV cache")


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that keeps a whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def param_shardings(config: LlamaConfig, mesh: Mesh) -> Any:
    """Return where each stacked parameter lies on a mesh, by the table of sharding rules."""
    return tree_shardings(mesh, llama.logical_axes(config), llama.abstract_params(config))


def sharded_abstract_params(config: LlamaConfig, mesh: Mesh, quantize: Quantization | None = None) -> Params:
    """Return shapes, dtypes and shardings of the stacked parameters, so that files load straight into shards.

    Args:
        quantize: the form that loaded parameters have; None for floats.
    """
    params = with_shardings(llama.abstract_params(config), param_shardings(config, mesh))
    if quantize is None:
        return params
    return jax.tree_util.tree_map_with_path(
        lambda path, array: abstract_result(lambda weight: quantized.quantize_leaf(path, weight, quantize), array),
        params,
    )
