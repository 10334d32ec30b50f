"""The Llama as CPUs generate with it best: tokens are columns, a tree of weights and a cache for each layer.

Every weight is kept [outputs, inputs] and stands on the left of its product with the hidden states [D, B, T]. For the few
columns of a decoding step XLA's products on CPU run faster so than rows times [inputs, outputs], and layers that stand
apart are read in place, where a loop over stacked ones copies each layer's weights and cache first.
The cache keeps the slots of a head together, so that scores and sums are products over contiguous memory.
"""

import functools
import operator
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spirit_jax.inference.int8 import dense
from spirit_jax.kernels.attention import MASKED, attention
from spirit_jax.models import llama
from spirit_jax.models.llama import DTYPES, LlamaConfig, Params

_SHORT = 128  # tokens of a row up to which all heads' scores are made at once


class HeadCache(NamedTuple):
    """One layer's keys and values: the token at position p of row b lives in slot p of row b (see `llama.KVCache`)."""

    k_bksh: Float[Array, "B K S H"]
    v_bksh: Float[Array, "B K S H"]

    def write(
        self,
        rows_b: Int[Array, " B"],
        positions_bt: Int[Array, "B T"],
        k_bkth: Float[Array, "B K T H"],
        v_bkth: Float[Array, "B K T H"],
    ) -> "HeadCache":
        """The cache with these tokens stored; positions below 0, slots or rows beyond the last one are not."""
        slots_bt = jnp.where(positions_bt < 0, self.k_bksh.shape[2], positions_bt)
        at = (rows_b[:, None, None], jnp.arange(self.k_bksh.shape[1])[:, None], slots_bt[:, None])
        return HeadCache(
            self.k_bksh.at[at].set(k_bkth, mode="drop"),
            self.v_bksh.at[at].set(v_bkth, mode="drop"),
        )


def empty_cache(config: LlamaConfig, batch: int, length: int) -> tuple[HeadCache, ...]:
    """A cache of `length` slots for each of `batch` rows and each layer, in the compute dtype."""
    shape = (batch, config.num_key_value_heads, length, config.head_size)
    one = jnp.zeros(shape, DTYPES[config.dtype])
    return tuple(HeadCache(one, one) for _ in range(config.num_hidden_layers))


@functools.partial(jax.jit, static_argnums=0)
def _layer_weights(config: LlamaConfig, own: Params) -> Params:
    """One layer's, all [outputs, inputs]; queries, keys and values in one product, and so gate and up.

    qkv is [K, (N/K + 2) H, D], each key-value head with its query heads, so that tensor parallelism keeps them together;
    gate_up is [F, 2, D]. Weights in int8 are arranged like their scales.
    """

    def together(*arrays: Float[Array, "D n H"]) -> Float[Array, "K j D"]:
        columns = [jnp.moveaxis(x, 0, -1).reshape(config.num_key_value_heads, -1, x.shape[0]) for x in arrays]
        return jnp.concatenate(columns, 1)

    heads, mlp = own["self_attn"], own["mlp"]
    return {
        "input_norm": own["input_layernorm"]["weight"],
        "qkv": jax.tree.map(together, heads["q_proj"], heads["k_proj"], heads["v_proj"]),
        "o_proj": jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]).T, heads["o_proj"]),
        "mlp_norm": own["post_attention_layernorm"]["weight"],
        "gate_up": jax.tree.map(lambda *arrays: jnp.stack([x.T for x in arrays], 1), mlp["gate_proj"], mlp["up_proj"]),
        "down_proj": jax.tree.map(jnp.transpose, mlp["down_proj"]),
    }


_transposed = jax.jit(jnp.transpose)


def arrange(config: LlamaConfig, params: Params) -> Params:
    """Parameters as `forward` takes them, layer by layer: stacked ones may be anything that `[index]` reads a layer of."""
    layers = [
        _layer_weights(config, jax.tree.map(operator.itemgetter(index), params["layers"]))
        for index in range(config.num_hidden_layers)
    ]
    head = {"lm_head": jax.tree.map(_transposed, params["lm_head"])} if "lm_head" in params else {}
    return {**params, **head, "layers": tuple(layers)}


def _norm(config: LlamaConfig, weight_d: Float[Array, " D"], x_dbt: Float[Array, "D B T"]) -> Float[Array, "D B T"]:
    x = x_dbt.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=0, keepdims=True) + config.rms_norm_eps)
    return (x * weight_d[:, None, None]).astype(x_dbt.dtype)


def _product(equation: str, weight: Float[Array, "..."], x: Float[Array, "D ..."]) -> Float[Array, "..."]:
    """The einsum that sums over the first axis of x, multiplied in the dtype of x and summed in float32, which it returns.

    XLA:CPU has a CPU's instructions for bfloat16 matrices used for sums in float32, and from two columns on; what it does
    otherwise takes many times longer.
    """
    if alone := x.dtype == jnp.bfloat16 and x.size == x.shape[0]:
        x = jnp.repeat(x, 2, axis=-1)
    result = jnp.einsum(equation, weight, x, preferred_element_type=jnp.float32)
    return result[..., :1] if alone else result


def _cached_attention(
    q_bkgth: Float[Array, "B K G T H"], cache: HeadCache, positions_bt: Int[Array, "B T"]
) -> Float[Array, "B K G T H"]:
    """softmax(q k^T / sqrt(H)) v over the slots up to each query's own; the softmax is float32."""
    b, k, g, t, h = q_bkgth.shape
    s = cache.k_bksh.shape[2]
    q_bkrh = q_bkgth.reshape(b, k, g * t, h)
    scores_bkrs = jnp.einsum("bkrh,bksh->bkrs", q_bkrh, cache.k_bksh, preferred_element_type=jnp.float32) * h**-0.5
    seen_bts = jnp.arange(s) <= positions_bt[:, :, None]
    scores_bkgts = jnp.where(seen_bts[:, None, None], scores_bkrs.reshape(b, k, g, t, s), MASKED)
    weights_bkrs = jax.nn.softmax(scores_bkgts, axis=-1).astype(q_bkgth.dtype).reshape(scores_bkrs.shape)
    out_bkrh = jnp.einsum("bkrs,bksh->bkrh", weights_bkrs, cache.v_bksh, preferred_element_type=jnp.float32)
    return out_bkrh.astype(q_bkgth.dtype).reshape(q_bkgth.shape)


def _layer(config, weights, x_dbt, rotary, positions_bt, cache, rows_b, first):
    """One block: as `llama.Block`; `rows_b` and `first` as in `network.forward`."""
    b, t = x_dbt.shape[1:]
    k, g, h = config.num_key_value_heads, config.num_attention_heads // config.num_key_value_heads, config.head_size
    normed_dbt = _norm(config, weights["input_norm"], x_dbt)
    qkv_kghbt = _product("kjd,dbt->kjbt", weights["qkv"], normed_dbt).reshape(k, g + 2, h, b, t)
    qkv_bkgth = jnp.transpose(qkv_kghbt.astype(x_dbt.dtype), (3, 0, 1, 4, 2))
    q_bkgth = llama.apply_rotary(qkv_bkgth[:, :, :g], *rotary)
    k_bkth, v_bkth = llama.apply_rotary(qkv_bkgth[:, :, g], *(x[:, 0] for x in rotary)), qkv_bkgth[:, :, g + 1]
    with jax.named_scope("attention"):
        if cache is not None:
            cache = cache.write(jnp.arange(b) if rows_b is None else rows_b, positions_bt, k_bkth, v_bkth)
        if first and t > _SHORT:
            q_btnh = jnp.moveaxis(q_bkgth, 3, 1).reshape(b, t, k * g, h)
            out_btnh = attention(q_btnh, jnp.swapaxes(k_bkth, 1, 2), jnp.swapaxes(v_bkth, 1, 2))
            out_bkgth = jnp.moveaxis(out_btnh.reshape(b, t, k, g, h), 1, 3)
        elif first:
            positions_bt = jnp.broadcast_to(jnp.arange(t), (b, t))
            out_bkgth = _cached_attention(q_bkgth, HeadCache(k_bkth, v_bkth), positions_bt)
        else:
            read = cache if rows_b is None else jax.tree.map(lambda x: jnp.take(x, rows_b, 0, mode="clip"), cache)
            out_bkgth = _cached_attention(q_bkgth, read, positions_bt)
    out_jbt = jnp.transpose(out_bkgth, (1, 2, 4, 0, 3)).reshape(-1, b, t)
    x_dbt += _product("dj,jbt->dbt", weights["o_proj"], out_jbt).astype(x_dbt.dtype)
    normed_dbt = _norm(config, weights["mlp_norm"], x_dbt)
    gate_up_fbt = _product("fcd,dbt->fcbt", weights["gate_up"], normed_dbt)
    hidden_fbt = (nn.silu(gate_up_fbt[:, 0]) * gate_up_fbt[:, 1]).astype(x_dbt.dtype)
    return x_dbt + _product("df,fbt->dbt", weights["down_proj"], hidden_fbt).astype(x_dbt.dtype), cache


def forward(
    config: LlamaConfig,
    params: Params,
    tokens_bt: Int[Array, "B T"],
    positions_bt: Int[Array, "B T"],
    cache: tuple[HeadCache, ...] | None,
    rows_b: Int[Array, " B"] | None,
    first: bool,
) -> tuple[Float[Array, "B T D"], tuple[HeadCache, ...] | None]:
    """`network.forward` for parameters out of `arrange`."""
    dtype = DTYPES[config.dtype]
    slots = tokens_bt.shape[1] if cache is None else cache[0].k_bksh.shape[2]
    with jax.ensure_compile_time_eval():  # looked up: XLA would compute sines again in every layer, for every head
        table = llama.rotary_embedding(config, jnp.arange(slots)[None])
    rotary = tuple(jnp.take(x[0, :, 0], positions_bt, axis=0, mode="clip")[:, None, None] for x in table)
    rows_btd = dense(jax.tree.map(lambda array: jnp.take(array, tokens_bt, axis=0), params["embed_tokens"]), dtype)
    x_dbt = jnp.transpose(rows_btd, (2, 0, 1))
    caches = []
    for weights, own in zip(params["layers"], cache or [None] * config.num_hidden_layers, strict=True):
        weights = dense(weights, dtype, after=x_dbt)
        x_dbt, own = _layer(config, weights, x_dbt, rotary, positions_bt, own, rows_b, first)
        caches.append(own)
    x_dbt = _norm(config, params["norm"]["weight"], x_dbt)
    return jnp.transpose(x_dbt, (1, 2, 0)), None if cache is None else tuple(caches)


def logits(config: LlamaConfig, params: Params, hidden_bd: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """`network.logits` for parameters out of `arrange`."""
    head_vd = dense(params["embed_tokens" if config.tie_word_embeddings else "lm_head"], DTYPES[config.dtype])
    return jnp.moveaxis(_product("vd,d...->v...", head_vd, jnp.moveaxis(hidden_bd, -1, 0)), 0, -1)
