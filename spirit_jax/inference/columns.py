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
from spirit_jax.models import llama
from spirit_jax.models.attention import MASKED, attention
from spirit_jax.models.llama import DTYPES, LlamaConfig, Params


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


def _layer_weights(config: LlamaConfig, index: int, layers: Params) -> Params:
    """One layer's, all [outputs, inputs]; queries, keys and values in one product, and so gate and up.

    qkv is [K, (N/K + 2) H, D], each key-value head with its query heads, so that tensor parallelism keeps them together;
    gate_up is [F, 2, D]. Weights in int8 are arranged like their scales.
    """

    def together(*arrays: Float[Array, "D n H"]) -> Float[Array, "K j D"]:
        columns = [jnp.moveaxis(x, 0, -1).reshape(config.num_key_value_heads, -1, x.shape[0]) for x in arrays]
        return jnp.concatenate(columns, 1)

    own = jax.tree.map(operator.itemgetter(index), layers)
    heads, mlp = own["self_attn"], own["mlp"]
    return {
        "input_norm": own["input_layernorm"]["weight"],
        "qkv": jax.tree.map(together, heads["q_proj"], heads["k_proj"], heads["v_proj"]),
        "o_proj": jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]).T, heads["o_proj"]),
        "mlp_norm": own["post_attention_layernorm"]["weight"],
        "gate_up": jax.tree.map(lambda *arrays: jnp.stack([x.T for x in arrays], 1), mlp["gate_proj"], mlp["up_proj"]),
        "down_proj": jax.tree.map(jnp.transpose, mlp["down_proj"]),
    }


@functools.partial(jax.jit, static_argnums=0)
def arrange(config: LlamaConfig, params: Params) -> Params:
    """Parameters as `forward` takes them."""
    layers = tuple(_layer_weights(config, index, params["layers"]) for index in range(config.num_hidden_layers))
    head = {"lm_head": jax.tree.map(jnp.transpose, params["lm_head"])} if "lm_head" in params else {}
    return {**params, **head, "layers": layers}


def _norm(config: LlamaConfig, weight_d: Float[Array, " D"], x_dbt: Float[Array, "D B T"]) -> Float[Array, "D B T"]:
    x = x_dbt.astype(jnp.float32)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=0, keepdims=True) + config.rms_norm_eps)
    return (x * weight_d[:, None, None]).astype(x_dbt.dtype)


def _cached_attention(
    q_bnth: Float[Array, "B N T H"], cache: HeadCache, positions_bt: Int[Array, "B T"]
) -> Float[Array, "B N T H"]:
    """softmax(q k^T / sqrt(H)) v over the slots up to each query's own; the softmax is float32."""
    b, n, t, h = q_bnth.shape
    k, s = cache.k_bksh.shape[1:3]
    q_bkrh = q_bnth.reshape(b, k, n // k * t, h)
    scores_bkrs = jnp.einsum("bkrh,bksh->bkrs", q_bkrh, cache.k_bksh, preferred_element_type=jnp.float32) * h**-0.5
    seen_bts = jnp.arange(s) <= positions_bt[:, :, None]
    scores_bkgts = jnp.where(seen_bts[:, None, None], scores_bkrs.reshape(b, k, n // k, t, s), MASKED)
    weights_bkrs = jax.nn.softmax(scores_bkgts, axis=-1).astype(q_bnth.dtype).reshape(scores_bkrs.shape)
    return jnp.einsum("bkrs,bksh->bkrh", weights_bkrs, cache.v_bksh).reshape(b, n, t, h)


def _layer(config, weights, x_dbt, rotary, positions_bt, cache, rows_b, first):
    """One block: as `llama.Block`; `rows_b` and `first` as in `network.forward`."""
    b, t = x_dbt.shape[1:]
    k, g, h = config.num_key_value_heads, config.num_attention_heads // config.num_key_value_heads, config.head_size
    normed_dbt = _norm(config, weights["input_norm"], x_dbt)
    qkv_kgbth = jnp.einsum("kjd,dbt->kjbt", weights["qkv"], normed_dbt).reshape(k, g + 2, h, b, t)
    qkv_btkgh = jnp.transpose(qkv_kgbth, (3, 4, 0, 1, 2))
    q_btnh = llama.apply_rotary(qkv_btkgh[:, :, :, :g].reshape(b, t, k * g, h), *rotary)
    k_btkh, v_btkh = llama.apply_rotary(qkv_btkgh[:, :, :, g], *rotary), qkv_btkgh[:, :, :, g + 1]
    with jax.named_scope("attention"):
        if cache is not None:
            rows = jnp.arange(b) if rows_b is None else rows_b
            cache = cache.write(rows, positions_bt, jnp.swapaxes(k_btkh, 1, 2), jnp.swapaxes(v_btkh, 1, 2))
        if first:
            out_btnh = attention(q_btnh, k_btkh, v_btkh)
        else:
            read = cache if rows_b is None else jax.tree.map(lambda x: jnp.take(x, rows_b, 0, mode="clip"), cache)
            out_btnh = jnp.swapaxes(_cached_attention(jnp.swapaxes(q_btnh, 1, 2), read, positions_bt), 1, 2)
    out_jbt = jnp.transpose(out_btnh, (2, 3, 0, 1)).reshape(-1, b, t)
    x_dbt += jnp.einsum("dj,jbt->dbt", weights["o_proj"], out_jbt)
    normed_dbt = _norm(config, weights["mlp_norm"], x_dbt)
    gate_up_fbt = jnp.einsum("fcd,dbt->fcbt", weights["gate_up"], normed_dbt)
    hidden_fbt = nn.silu(gate_up_fbt[:, 0]) * gate_up_fbt[:, 1]
    return x_dbt + jnp.einsum("df,fbt->dbt", weights["down_proj"], hidden_fbt), cache


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
    rotary = llama.rotary_embedding(config, positions_bt)
    rows_btd = dense(jax.tree.map(lambda array: jnp.take(array, tokens_bt, axis=0), params["embed_tokens"]), dtype)
    x_dbt = jnp.transpose(rows_btd, (2, 0, 1))
    caches = []
    for weights, own in zip(params["layers"], cache or [None] * config.num_hidden_layers, strict=True):
        x_dbt, own = _layer(config, dense(weights, dtype), x_dbt, rotary, positions_bt, own, rows_b, first)
        caches.append(own)
    x_dbt = _norm(config, params["norm"]["weight"], x_dbt)
    return jnp.transpose(x_dbt, (1, 2, 0)), None if cache is None else tuple(caches)


def logits(config: LlamaConfig, params: Params, hidden_bd: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """`network.logits` for parameters out of `arrange`."""
    head_vd = dense(params["embed_tokens" if config.tie_word_embeddings else "lm_head"], DTYPES[config.dtype])
    scores = jnp.einsum("vd,...d->v...", head_vd, hidden_bd, preferred_element_type=jnp.float32)
    return jnp.moveaxis(scores, 0, -1)
