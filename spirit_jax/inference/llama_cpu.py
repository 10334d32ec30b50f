"""CPU implementation of the Llama decoder. Activations are [D, B, T]; weights and KV cache are stored per layer.

`models/llama.py` is the reference, and tests/inference/test_llama_cpu.py holds this implementation to it. It exists
because XLA:CPU runs it faster than stacked layers: a model of 135 M parameters in float32 on two cores decodes 1.8
times as many tokens a second at batch 1 and 1.6 times at batch 16, and reads prompts 1.5 and 1.1 times as fast
(`python -m benchmarks.generate` with and without `--stacked`). The reasons:

- Weights are [outputs, inputs] and stand on the left of each product. XLA:CPU multiplies the few columns of a decode
  step faster in this order than rows by [inputs, outputs].
- Layers are separate arrays. A loop over stacked layers copies each layer's weights and cache before it uses them.
- The cache keeps the slots of one head together, so that attention multiplies contiguous memory. It is float32 for both
  compute dtypes: XLA:CPU computes in float32 what it does with bfloat16, products of matrices aside, and would convert
  the whole cache twice a layer and token.
- Large batches of prompts are read in groups of rows (`_MOST_TOKENS`).
- Quantized weights become floats in blocks that a core's cache holds, never as a whole layer. A product reads a quarter
  or an eighth of the memory that float32 takes.
"""

import functools
import math
import operator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spirit_jax.kernels import causal_attention
from spirit_jax.kernels.reference import MASKED
from spirit_jax.models import llama, quantized
from spirit_jax.models.llama import DTYPES, LlamaConfig, Params

_SHORT_PROMPT = 128  # tokens of a row up to which the scores of all heads are computed at once
_MOST_TOKENS = 512
"""Tokens that are read at once. With more, the rows of an activation [D, B, T] lie on more pages of memory than a core
keeps the addresses of. With fewer, weights are read more often."""
_BLOCK_BYTES = 2**20
"""Most memory of a quantized weight's block in floats: half of what a core's second cache holds."""


class LayerCache(NamedTuple):
    """Keys and values of one layer: the token at position p of row b is in slot p of row b (see `llama.KVCache`)."""

    k_bksh: Float[Array, "B K S H"]
    v_bksh: Float[Array, "B K S H"]

    def write(
        self,
        rows_b: Int[Array, " B"],
        positions_bt: Int[Array, "B T"],
        k_bkth: Float[Array, "B K T H"],
        v_bkth: Float[Array, "B K T H"],
    ) -> "LayerCache":
        """Return the cache with these tokens stored, except at negative positions and beyond the last slot or row."""
        slots_bt = jnp.where(positions_bt < 0, self.k_bksh.shape[2], positions_bt)
        at = (rows_b[:, None, None], jnp.arange(self.k_bksh.shape[1])[:, None], slots_bt[:, None])
        return LayerCache(
            self.k_bksh.at[at].set(k_bkth.astype(self.k_bksh.dtype), mode="drop"),
            self.v_bksh.at[at].set(v_bkth.astype(self.v_bksh.dtype), mode="drop"),
        )


def init_cache(config: LlamaConfig, batch: int, length: int) -> tuple[LayerCache, ...]:
    """Return an empty cache of `length` slots for each of `batch` rows and each layer, in float32."""
    shape = (batch, config.num_key_value_heads, length, config.head_size)
    empty = jnp.zeros(shape, jnp.float32)
    return tuple(LayerCache(empty, empty) for _ in range(config.num_hidden_layers))


def arrange(config: LlamaConfig, params: Params) -> Params:
    """Return parameters in the layout that `forward` reads.

    Args:
        params: those of `models/llama.py`, in floats, 8 or 4 bits. Stacked ones may be any object whose `[index]` reads
            one layer.
    """
    layers = [
        _arrange_layer(config, jax.tree.map(operator.itemgetter(index), params["layers"]))
        for index in range(config.num_hidden_layers)
    ]
    head = {"lm_head": jax.tree.map(_transpose, params["lm_head"])} if "lm_head" in params else {}
    return {**params, **head, "layers": tuple(layers)}


_transpose = jax.jit(jnp.transpose)


@functools.partial(jax.jit, static_argnums=0)
def _arrange_layer(config: LlamaConfig, layer: Params) -> Params:
    """Return the weights of one layer, [outputs, inputs]. Query, key and value share one product; so do gate and up.

    qkv is [K, (N/K + 2) H, D]: each key-value head stands with its query heads, so that tensor parallelism splits whole
    groups. gate_up is [F, 2, D]. The parts of quantized weights are arranged like the weights.
    """

    def join_heads(*arrays: Float[Array, "D n H"]) -> Float[Array, "K j D"]:
        transposed = [jnp.moveaxis(x, 0, -1).reshape(config.num_key_value_heads, -1, x.shape[0]) for x in arrays]
        return jnp.concatenate(transposed, 1)

    heads, mlp = layer["self_attn"], layer["mlp"]
    return {
        "input_norm": layer["input_layernorm"]["weight"],
        "qkv": jax.tree.map(join_heads, heads["q_proj"], heads["k_proj"], heads["v_proj"]),
        "o_proj": jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]).T, heads["o_proj"]),
        "mlp_norm": layer["post_attention_layernorm"]["weight"],
        "gate_up": jax.tree.map(lambda *arrays: jnp.stack([x.T for x in arrays], 1), mlp["gate_proj"], mlp["up_proj"]),
        "down_proj": jax.tree.map(jnp.transpose, mlp["down_proj"]),
    }


def forward(
    config: LlamaConfig,
    params: Params,
    tokens_bt: Int[Array, "B T"],
    positions_bt: Int[Array, "B T"],
    cache: tuple[LayerCache, ...] | None,
    rows_b: Int[Array, " B"] | None,
    first: bool,
) -> tuple[Float[Array, "B T D"], tuple[LayerCache, ...] | None]:
    """Return what `network.forward` returns, with the same arguments, for parameters that `arrange` laid out.

    A batch with more tokens than `_MOST_TOKENS` is read in groups of rows, one after the other.
    """
    b, t = tokens_bt.shape
    rows = max(_MOST_TOKENS // t, 1)
    if b <= rows or b % rows or jax.sharding.get_abstract_mesh().size > 1:
        return _forward(config, params, tokens_bt, positions_bt, cache, rows_b, first)

    def read(cache: tuple[LayerCache, ...] | None, group: tuple[Array, ...]):
        hidden_rtd, cache = _forward(config, params, group[0], group[1], cache, group[2], first)
        return cache, hidden_rtd

    rows_b = jnp.arange(b) if rows_b is None else rows_b
    groups = jax.tree.map(lambda x: x.reshape(-1, rows, *x.shape[1:]), (tokens_bt, positions_bt, rows_b))
    cache, hidden_grtd = jax.lax.scan(read, cache, groups)
    return hidden_grtd.reshape(b, t, -1), cache


def _forward(
    config: LlamaConfig,
    params: Params,
    tokens_bt: Int[Array, "B T"],
    positions_bt: Int[Array, "B T"],
    cache: tuple[LayerCache, ...] | None,
    rows_b: Int[Array, " B"] | None,
    first: bool,
) -> tuple[Float[Array, "B T D"], tuple[LayerCache, ...] | None]:
    """`forward` for one group of rows."""
    dtype = DTYPES[config.dtype]
    slots = tokens_bt.shape[1] if cache is None else cache[0].k_bksh.shape[2]
    with jax.ensure_compile_time_eval():  # a constant: XLA would compute the sines again in every layer, for every head
        table = llama.rotary_embedding(config, jnp.arange(slots)[None])
    rotary = tuple(jnp.take(x[0, :, 0], positions_bt, axis=0, mode="clip")[:, None, None] for x in table)
    rows_btd = quantized.dequantize(
        jax.tree.map(lambda array: _take_rows(array, tokens_bt), params["embed_tokens"]), dtype
    )
    x_dbt = jnp.transpose(rows_btd, (2, 0, 1))
    caches: list[LayerCache] = []
    for index, layer in enumerate(params["layers"]):
        weights = _floats_to(layer, dtype)
        layer_cache = None if cache is None else cache[index]
        x_dbt, layer_cache = _block(config, weights, x_dbt, rotary, positions_bt, layer_cache, rows_b, first)
        if layer_cache is not None:
            caches.append(layer_cache)
    x_dbt = _rms_norm(config, params["norm"]["weight"], x_dbt)
    return jnp.transpose(x_dbt, (1, 2, 0)), None if cache is None else tuple(caches)


def logits(config: LlamaConfig, params: Params, hidden_bd: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """Return the scores of the next token, float32, for parameters as `arrange` returns them."""
    head_vd = _floats_to(params["embed_tokens" if config.tie_word_embeddings else "lm_head"], DTYPES[config.dtype])
    # The axis of size 1 keeps the product in bfloat16: XLA:CPU takes it only from operands without transposed layouts.
    # The barrier keeps the head on the left.
    hidden_db1 = jnp.moveaxis(hidden_bd, -1, 0)[..., None]
    logits_vb1 = jax.lax.optimization_barrier(_matmul("vd,d...->v...", head_vd, hidden_db1))
    return jnp.moveaxis(logits_vb1[..., 0], 0, -1)


def _block(
    config: LlamaConfig,
    weights: Params,
    x_dbt: Float[Array, "D B T"],
    rotary: tuple[Array, ...],
    positions_bt: Int[Array, "B T"],
    cache: LayerCache | None,
    rows_b: Int[Array, " B"] | None,
    first: bool,
) -> tuple[Float[Array, "D B T"], LayerCache | None]:
    """Apply one layer, as `llama.Block` does; `rows_b` and `first` as in `network.forward`."""
    b, t = x_dbt.shape[1:]
    k, g, h = config.num_key_value_heads, config.num_attention_heads // config.num_key_value_heads, config.head_size
    normed_dbt = _rms_norm(config, weights["input_norm"], x_dbt)
    qkv_kghbt = _matmul("kjd,dbt->kjbt", weights["qkv"], normed_dbt).reshape(k, g + 2, h, b, t)
    qkv_bkgth = jnp.transpose(qkv_kghbt.astype(x_dbt.dtype), (3, 0, 1, 4, 2))
    cos, sin = rotary
    q_bkgth = llama.apply_rotary(qkv_bkgth[:, :, :g], cos, sin)
    k_bkth = llama.apply_rotary(qkv_bkgth[:, :, g], cos[:, 0], sin[:, 0])
    v_bkth = qkv_bkgth[:, :, g + 1]
    with jax.named_scope("attention"):
        if cache is not None:
            cache = cache.write(jnp.arange(b) if rows_b is None else rows_b, positions_bt, k_bkth, v_bkth)
        if first and t > _SHORT_PROMPT:
            q_btnh = jnp.moveaxis(q_bkgth, 3, 1).reshape(b, t, k * g, h)
            out_btnh = causal_attention(q_btnh, jnp.swapaxes(k_bkth, 1, 2), jnp.swapaxes(v_bkth, 1, 2))
            out_bkgth = jnp.moveaxis(out_btnh.reshape(b, t, k, g, h), 1, 3)
        elif first:
            positions_bt = jnp.broadcast_to(jnp.arange(t), (b, t))
            out_bkgth = _cached_attention(q_bkgth, LayerCache(k_bkth, v_bkth), positions_bt)
        else:
            assert cache is not None, "without a cache, rows start at position 0"
            own = cache if rows_b is None else jax.tree.map(lambda x: jnp.take(x, rows_b, 0, mode="clip"), cache)
            out_bkgth = _cached_attention(q_bkgth, own, positions_bt)
    out_jbt = jnp.transpose(out_bkgth, (1, 2, 4, 0, 3)).reshape(-1, b, t)
    x_dbt += _matmul("dj,jbt->dbt", weights["o_proj"], out_jbt).astype(x_dbt.dtype)
    normed_dbt = _rms_norm(config, weights["mlp_norm"], x_dbt)
    gate_up_fcbt = _matmul("fcd,dbt->fcbt", weights["gate_up"], normed_dbt)
    hidden_fbt = (nn.silu(gate_up_fcbt[:, 0]) * gate_up_fcbt[:, 1]).astype(x_dbt.dtype)
    return x_dbt + _matmul("df,fbt->dbt", weights["down_proj"], hidden_fbt).astype(x_dbt.dtype), cache


def _rms_norm(config: LlamaConfig, weight_d: Float[Array, " D"], x_dbt: Float[Array, "D B T"]) -> Float[Array, "D B T"]:
    x = x_dbt.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=0, keepdims=True) + config.rms_norm_eps)
    return (x * weight_d[:, None, None]).astype(x_dbt.dtype)


def _take_rows(x: Float[Array, "V D"], tokens_bt: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Return the rows of an embedding.

    XLA:CPU computes in float32 what it does with bfloat16, products aside, and a loop over tokens would first convert
    the whole embedding. So bfloat16 is taken as integers, and the barrier keeps the loop from copying these.
    """
    x, tokens_bt = jax.lax.optimization_barrier((x, tokens_bt))
    if x.dtype != jnp.bfloat16:
        return jnp.take(x, tokens_bt, axis=0)
    bits_btd = jnp.take(jax.lax.bitcast_convert_type(x, jnp.uint16), tokens_bt, axis=0)
    return jax.lax.bitcast_convert_type(bits_btd, jnp.bfloat16)


def _floats_to(tree: Any, dtype: Any) -> Any:
    """Return parameters with their floats in a type; quantized weights stay as they are."""
    is_leaf = quantized.is_quantized
    return jax.tree.map(lambda node: node if is_leaf(node) else node.astype(dtype), tree, is_leaf=is_leaf)


def _matmul(equation: str, weight: Any, x: Float[Array, "D ..."]) -> Float[Array, "..."]:
    """Return the einsum that sums over the last axis of a weight and the first one of x, in float32.

    The factors are in the dtype of x. The weight may be quantized.

    XLA:CPU uses a CPU's instructions for bfloat16 matrices only if the sums are float32 and there are at least two
    columns; otherwise the product takes many times longer. So a single column is repeated.
    """
    if quantized.is_quantized(weight):
        return _quantized_matmul(weight, x)
    if single := x.dtype == jnp.bfloat16 and x.size == x.shape[0]:
        x = jnp.repeat(x, 2, axis=-1)
    result = jnp.einsum(equation, weight, x, preferred_element_type=jnp.float32)
    return result[..., :1] if single else result


def _quantized_matmul(weight: dict[str, Array], x: Float[Array, "D ..."]) -> Float[Array, "..."]:
    """Return the product of a quantized weight [outputs..., inputs] with x, float32.

    A loop works through blocks of outputs. On a mesh, each block holds rows of every device, so that none of them needs
    the rows of another.
    """
    outputs = weight["scale"].shape[:-1]
    x_dc, rows = x.reshape(x.shape[0], -1), math.prod(outputs)
    mesh = jax.sharding.get_abstract_mesh()
    devices = mesh.size if not mesh.empty and rows % mesh.size == 0 else 1
    most = max(_BLOCK_BYTES // (x_dc.shape[0] * x.dtype.itemsize), 1)
    size = max(size for size in range(1, most + 1) if (rows // devices) % size == 0)

    # Blocks are taken by their number. A loop over the arrays themselves would first copy all of them, once a layer.
    blocks = jax.tree.map(lambda array: array.reshape(devices, -1, size, array.shape[-1]), weight)

    def multiply(index: Int[Array, ""]) -> Float[Array, "p r c"]:
        block = jax.tree.map(lambda array: jax.lax.dynamic_index_in_dim(array, index, 1, keepdims=False), blocks)
        if "int8" in block:
            return _matmul("prd,dc->prc", quantized.to_float(block, x.dtype), x_dc)
        even, odd, _ = quantized.split_inputs(block, x.dtype)
        return _matmul("prd,dc->prc", even, x_dc[0::2]) + _matmul("prd,dc->prc", odd, x_dc[1::2])

    result = jax.lax.map(multiply, jnp.arange(rows // devices // size))
    return jnp.moveaxis(result, 0, 1).reshape(*outputs, *x.shape[1:])


def _cached_attention(
    q_bkgth: Float[Array, "B K G T H"], cache: LayerCache, positions_bt: Int[Array, "B T"]
) -> Float[Array, "B K G T H"]:
    """Return softmax(q k^T / sqrt(H)) v over the slots up to each query's own; the softmax is float32."""
    b, k, g, t, h = q_bkgth.shape
    dtype = jnp.float32 if t == 1 else q_bkgth.dtype  # only products of matrices gain from bfloat16
    cache = jax.tree.map(lambda x: x.astype(dtype), cache)
    s = cache.k_bksh.shape[2]
    q_bkrh = q_bkgth.astype(dtype).reshape(b, k, g * t, h)
    scores_bkrs = jnp.einsum("bkrh,bksh->bkrs", q_bkrh, cache.k_bksh, preferred_element_type=jnp.float32) * h**-0.5
    seen_bts = jnp.arange(s) <= positions_bt[:, :, None]
    scores_bkgts = jnp.where(seen_bts[:, None, None], scores_bkrs.reshape(b, k, g, t, s), MASKED)
    weights_bkrs = jax.nn.softmax(scores_bkgts, axis=-1).astype(dtype).reshape(scores_bkrs.shape)
    out_bkrh = jnp.einsum("bkrs,bksh->bkrh", weights_bkrs, cache.v_bksh, preferred_element_type=jnp.float32)
    return out_bkrh.astype(q_bkgth.dtype).reshape(q_bkgth.shape)
