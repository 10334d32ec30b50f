"""The Llama language model in `flax.linen` (Touvron et al. 2023, arXiv 2302.13971 and 2307.09288).

A block is attention and a feed-forward layer, each applied to a normalized copy of the residual stream and added to it:
RMSNorm, rotary positions, grouped-query attention and SwiGLU. The letters of shapes are listed in `spirit_jax.models`.

Parameters are plain nested dicts at every boundary. Layers are stacked along a leading axis whether they are scanned
or unrolled, so that one checkpoint serves both:

    embed_tokens [V, D]
    layers/input_layernorm/weight [L, D]          layers/post_attention_layernorm/weight [L, D]
    layers/self_attn/{q_proj [L, D, N, H], k_proj, v_proj [L, D, K, H], o_proj [L, N, H, D]}
    layers/mlp/{gate_proj, up_proj [L, D, F], down_proj [L, F, D]}
    norm/weight [D]
    lm_head [D, V]                                 (absent where the head is tied to embed_tokens)

Weights and activations name their logical axes, which `spirit_jax.parallel.sharding` maps to the axes of a mesh.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from spirit_jax import kernels
from spirit_jax.kernels import remat
from spirit_jax.models import quantized
from spirit_jax.models.llama_config import LlamaConfig

Params = dict[str, Any]

DTYPES: Mapping[str, Any] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}

ADAPTER = "lora"
"""The collection of variables that holds low-rank updates of projections, by the names of their weights
(`models.lora`)."""


class KVCache(NamedTuple):
    """Keys and values of the tokens so far: the token at position p of row b is in slot p of row b.

    Rows may therefore have different lengths, and a prompt padded on the right needs no mask: no query sees slots past
    its own position, and decoding overwrites the padding's slots before it reaches them.
    """

    k_lbskh: Float[Array, "L B S K H"]
    v_lbskh: Float[Array, "L B S K H"]

    def write(
        self,
        layer: Int[Array, ""] | int,
        positions_bt: Int[Array, "B T"],
        k_btkh: Float[Array, "B T K H"],
        v_btkh: Float[Array, "B T K H"],
    ) -> "KVCache":
        """The cache with these tokens stored, except those at positions below 0 or beyond the last slot."""
        slots_bt = jnp.where(positions_bt < 0, self.k_lbskh.shape[2], positions_bt)
        rows_b1 = jnp.arange(positions_bt.shape[0])[:, None]
        if positions_bt.shape[1] == 1:
            return KVCache(
                self.k_lbskh.at[layer, rows_b1, slots_bt].set(k_btkh, mode="drop"),
                self.v_lbskh.at[layer, rows_b1, slots_bt].set(v_btkh, mode="drop"),
            )
        # For many tokens, XLA:TPU may copy the array that they are stored in: let it be that of one layer.
        return KVCache(
            self.k_lbskh.at[layer].set(self.k_lbskh[layer].at[rows_b1, slots_bt].set(k_btkh, mode="drop")),
            self.v_lbskh.at[layer].set(self.v_lbskh[layer].at[rows_b1, slots_bt].set(v_btkh, mode="drop")),
        )


def init_cache(config: LlamaConfig, batch: int, length: int) -> KVCache:
    """An empty cache of `length` slots for each of `batch` rows, in the type of matrix products."""
    shape = (config.num_hidden_layers, batch, length, config.num_key_value_heads, config.head_size)
    return KVCache(jnp.zeros(shape, DTYPES[config.dtype]), jnp.zeros(shape, DTYPES[config.dtype]))


def rope_frequencies(config: LlamaConfig) -> Float[Array, " H/2"]:
    """Angle in radians by which each pair of a head's features turns from one position to the next, float32."""
    half = config.head_size // 2
    frequencies = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if config.rope_scaling is None:
        return frequencies
    scaling = config.rope_scaling
    # How often a pair turns within the original context: low counts are stretched, high ones kept, others blended.
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = jnp.clip(keep, 0, 1)
    return frequencies * (keep + (1 - keep) / scaling.factor)


def rotary_embedding(
    config: LlamaConfig, positions_bt: Int[Array, "B T"]
) -> tuple[Float[Array, "B T 1 H/2"], Float[Array, "B T 1 H/2"]]:
    """Cosine and sine, float32, of the angle of each position and pair of features (RoFormer, arXiv 2104.09864)."""
    angles = positions_bt[:, :, None, None].astype(jnp.float32) * rope_frequencies(config)
    return jnp.cos(angles), jnp.sin(angles)


def apply_rotary(
    x_btnh: Float[Array, "*B H"], cos: Float[Array, "*#B H/2"], sin: Float[Array, "*#B H/2"]
) -> Float[Array, "*B H"]:
    """Turn the pairs (i, i + H/2) of each head, which is Hugging Face's layout. The axes before the last are free."""
    first, second = jnp.split(x_btnh.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_btnh.dtype)


def _parameter(
    module: nn.Module,
    config: LlamaConfig,
    name: str,
    init: nn.initializers.Initializer,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
) -> Float[Array, "..."]:
    """Declare a parameter with its logical axes."""
    init = nn.with_logical_partitioning(init, axes)
    # flax has taken the array out of the box that names its axes
    return cast(Array, module.param(name, init, shape, DTYPES[config.param_dtype]))


def _weight(
    module: nn.Module, config: LlamaConfig, name: str, shape: tuple[int, ...], axes: tuple[str, ...]
) -> Float[Array, "..."]:
    """Declare a weight matrix with its logical axes; returned in the type of matrix products.

    The parameters may hold the weight in 8 or 4 bits (`quantized`). In a scan, only one layer of it exists in floats.
    """
    if module.has_variable("params", name):
        stored = module.get_variable("params", name)
        if quantized.is_quantized(stored):  # flax would compare its shapes with that of the initializer
            return quantized.to_float(stored, DTYPES[config.dtype])
    init = nn.initializers.normal(config.initializer_range)
    return quantized.to_float(_parameter(module, config, name, init, shape, axes), DTYPES[config.dtype])


def _projection(
    module: nn.Module,
    config: LlamaConfig,
    name: str,
    x: Float[Array, "B T ..."],
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    contracted: int = 1,
) -> Float[Array, "B T ..."]:
    """The product of x with a weight matrix, which sums over the last `contracted` axes of x.

    If the collection `ADAPTER` holds a low-rank update of the weight, its product with x is added (`models.lora`).
    """
    y = kernels.matmul(x, _weight(module, config, name, shape, axes), contracted)
    if not module.has_variable(ADAPTER, name):
        return y
    update = cast(Mapping[str, Array], module.get_variable(ADAPTER, name))
    if module.has_rng("dropout"):
        kept = jax.random.bernoulli(module.make_rng("dropout"), update["keep"], x.shape)
        x = jnp.where(kept, x / update["keep"].astype(x.dtype), 0)
    narrow_btr = kernels.matmul(x, update["a"].astype(x.dtype), contracted)
    return y + kernels.matmul(narrow_btr, update["b"].astype(x.dtype), 1)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight in float32, returned in the dtype of x (arXiv 1910.07467)."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, x_btd: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        weight_d = _parameter(self, self.config, "weight", nn.initializers.ones, x_btd.shape[-1:], ("embed",))
        x = x_btd.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.config.rms_norm_eps)
        return (x * weight_d).astype(x_btd.dtype)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions."""

    config: LlamaConfig

    @nn.compact
    def __call__(
        self,
        x_btd: Float[Array, "B T D"],
        rotary: tuple[Array, Array],
        positions_bt: Int[Array, "B T"],
        segment_ids_bt: Int[Array, "B T"] | None = None,
        cache: KVCache | None = None,
        layer: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """The update of the residual stream, and the cache with these tokens in it.

        Args:
            rotary: cosine and sine of `rotary_embedding`.
            layer: index of this layer in the cache.
        """
        c = self.config
        d, n, k, h = c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_size
        q_btnh = _projection(self, c, "q_proj", x_btd, (d, n, h), ("embed", "heads", "head_dim"))
        k_btkh = _projection(self, c, "k_proj", x_btd, (d, k, h), ("embed", "kv_heads", "head_dim"))
        v_btkh = _projection(self, c, "v_proj", x_btd, (d, k, h), ("embed", "kv_heads", "head_dim"))

        kv_axes = ("batch", "sequence", "activation_kv_heads", "head_dim")
        q_btnh = apply_rotary(q_btnh, *rotary)
        q_btnh = with_logical_constraint(q_btnh, ("batch", "sequence", "activation_heads", "head_dim"))
        k_btkh = with_logical_constraint(apply_rotary(k_btkh, *rotary), kv_axes)
        v_btkh = with_logical_constraint(v_btkh, kv_axes)
        q_btnh, k_btkh, v_btkh = map(checkpoint_name, (q_btnh, k_btkh, v_btkh), ("query", "key", "value"))

        with jax.named_scope("attention"):
            if cache is None:
                out_btnh = kernels.causal_attention(q_btnh, k_btkh, v_btkh, segment_ids_bt)
            else:
                cache = cache.write(layer, positions_bt, k_btkh, v_btkh)
                out_btnh = kernels.cached_attention(q_btnh, cache.k_lbskh[layer], cache.v_lbskh[layer], positions_bt)
        return _projection(self, c, "o_proj", out_btnh, (n, h, d), ("heads", "head_dim", "embed"), 2), cache


class MLP(nn.Module):
    """SwiGLU feed-forward layer: (silu(x W_gate) * x W_up) W_down."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, x_btd: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        c = self.config
        d, f = c.hidden_size, c.intermediate_size
        gate_btf = _projection(self, c, "gate_proj", x_btd, (d, f), ("embed", "mlp"))
        up_btf = _projection(self, c, "up_proj", x_btd, (d, f), ("embed", "mlp"))
        gate_btf, up_btf = checkpoint_name(gate_btf, "gate"), checkpoint_name(up_btf, "up")
        hidden_btf = kernels.swiglu(gate_btf, up_btf)
        hidden_btf = with_logical_constraint(hidden_btf, ("batch", "sequence", "activation_mlp"))
        return _projection(self, c, "down_proj", hidden_btf, (f, d), ("mlp", "embed"))


class Block(nn.Module):
    """One layer: attention and feed-forward, each on a normalized copy of the residual stream and added to it."""

    config: LlamaConfig

    @nn.compact
    def __call__(
        self,
        carry: tuple[Float[Array, "B T D"], KVCache | None],
        layer: Int[Array, ""] | int,
        rotary: tuple[Array, Array],
        positions_bt: Int[Array, "B T"],
        segment_ids_bt: Int[Array, "B T"] | None,
    ) -> tuple[tuple[Float[Array, "B T D"], KVCache | None], None]:
        """The carry of `nn.scan` after this layer: the residual stream and the KV cache of all layers, or None."""
        x_btd, cache = carry
        normed = RMSNorm(self.config, name="input_layernorm")(x_btd)
        update, cache = Attention(self.config, name="self_attn")(
            normed, rotary, positions_bt, segment_ids_bt, cache, layer
        )
        x_btd = checkpoint_name(_residual(x_btd + update), "attention_residual")
        update = MLP(self.config, name="mlp")(RMSNorm(self.config, name="post_attention_layernorm")(x_btd))
        return (_residual(x_btd + update), cache), None


def _residual(x_btd: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """The residual stream with its logical axes."""
    return with_logical_constraint(x_btd, ("batch", "sequence", "activation_embed"))


class Llama(nn.Module):
    """Token ids to final hidden states, and those to logits. `Llama(config).apply({"params": params}, tokens_bt)`."""

    config: LlamaConfig

    def setup(self) -> None:
        c = self.config
        self.embed_tokens = _weight(self, c, "embed_tokens", (c.vocab_size, c.hidden_size), ("vocab", "embed"))
        self.layers = nn.scan(
            remat.rematerialized(Block, c.remat, scanned=c.scan_layers),
            variable_axes={"params": 0, ADAPTER: 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, *[nn.broadcast] * 3),  # pyright: ignore[reportArgumentType] - flax says int
            length=c.num_hidden_layers,
            unroll=1 if c.scan_layers else c.num_hidden_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c)
        self.norm = RMSNorm(c)
        if not c.tie_word_embeddings:
            self.lm_head = _weight(self, c, "lm_head", (c.hidden_size, c.vocab_size), ("embed", "vocab"))

    def __call__(
        self,
        tokens_bt: Int[Array, "B T"],
        positions_bt: Int[Array, "B T"] | None = None,
        segment_ids_bt: Int[Array, "B T"] | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Hidden states after the final norm, in the type of matrix products, and the cache with these tokens in it.

        Args:
            tokens_bt: ids. An id outside the vocabulary gives NaN instead of another token's row.
            positions_bt: position of each token in its document; None means 0, 1, 2, ... in every row.
            segment_ids_bt: document of each token in a packed row, 0 for padding; None means one document a row.
            cache: keys and values of the tokens before these (`init_cache`). Each row is then one document. A token at
                position p is stored in slot p and sees slots 0..p. A token at a position below 0 is not stored and its
                output is undefined, so that rows may be idle or padded.

        Raises:
            ValueError: both segment ids and a cache.
        """
        if cache is not None and segment_ids_bt is not None:
            raise ValueError("a row of the KV cache holds one document: segment_ids_bt and cache exclude each other")
        if positions_bt is None:
            positions_bt = jnp.broadcast_to(jnp.arange(tokens_bt.shape[1]), tokens_bt.shape)
        x_btd = _residual(jnp.take(self.embed_tokens, tokens_bt, axis=0, mode="fill"))
        rotary = rotary_embedding(self.config, positions_bt)
        layers = jnp.arange(self.config.num_hidden_layers)
        (x_btd, cache), _ = self.layers((x_btd, cache), layers, rotary, positions_bt, segment_ids_bt)
        return self.norm(x_btd), cache

    def logits(self, hidden_btd: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Scores of the next token, float32, from the final hidden states."""
        head = self.embed_tokens.T if self.config.tie_word_embeddings else self.lm_head
        logits = jnp.einsum("btd,dv->btv", hidden_btd, head, preferred_element_type=jnp.float32)
        return with_logical_constraint(logits, ("batch", "sequence", "activation_vocab"))


def _init(config: LlamaConfig, key: Array) -> Params:
    """Fresh parameters in flax's boxes, which carry the logical axes."""
    return cast(Params, Llama(config).init(key, jnp.zeros((1, 1), jnp.int32))["params"])


def init_params(config: LlamaConfig, key: Array) -> Params:
    """Fresh random parameters as plain nested dicts. The function can be jitted with `out_shardings`."""
    return nn.unbox(_init(config, key))


@functools.cache  # tracing the network takes a quarter of a second, and its shapes are asked for again and again
def _boxed_shapes(config: LlamaConfig) -> Params:
    return jax.eval_shape(lambda: _init(config, jax.random.key(0)))


def _map_boxes(function: Callable[[nn.LogicallyPartitioned], Any], config: LlamaConfig) -> Params:
    return jax.tree.map(function, _boxed_shapes(config), is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def abstract_params(config: LlamaConfig) -> Params:
    """Shapes and dtypes of the parameters; takes no memory."""
    return _map_boxes(lambda box: box.value, config)


def logical_axes(config: LlamaConfig) -> Params:
    """The tree of parameters with a tuple of logical axis names in place of each array."""
    return _map_boxes(lambda box: box.names, config)


def head_weight(config: LlamaConfig, params: Params) -> Float[Array, "D V"]:
    """The matrix from final hidden states to logits, whether the head is tied or not."""
    return params["embed_tokens"].T if config.tie_word_embeddings else params["lm_head"]


def parameter_count(config: LlamaConfig) -> int:
    """Number of parameters, embedding and head included (a tied head counts once)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(config)))


def flops_per_token(config: LlamaConfig, sequence_length: int) -> float:
    """Floating-point operations of training on one token, forward and backward, without recomputation.

    Each weight of a matrix product costs 6: 2 forward and 4 backward. The head counts, the embedding is a lookup. The
    two products of attention are over the (sequence_length + 1) / 2 keys that a causal query sees on average.
    """
    c = config
    attention_weights = 2 * c.hidden_size * c.head_size * (c.num_attention_heads + c.num_key_value_heads)
    layer_weights = attention_weights + 3 * c.hidden_size * c.intermediate_size
    weights = c.num_hidden_layers * layer_weights + c.hidden_size * c.vocab_size
    keys = (sequence_length + 1) / 2
    return 6 * weights + 12 * c.num_hidden_layers * c.num_attention_heads * c.head_size * keys
