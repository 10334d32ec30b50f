"""HuBERT and wav2vec 2.0: waveform to contextual frames.

One network serves the 25 Hz HuBERT that gives phonetic units and the wav2vec 2.0 that gives style units; only their
hyperparameters differ. Sources: wav2vec 2.0 (arXiv 2006.11477), HuBERT (arXiv 2106.07447) and, for the released
numerics, docs/formats.md, "HuBERT" and "Style encoder". Arrays are channels last, [B, T, C].

Clips of different lengths share a batch. With `lengths` in samples, every clip gives what it gives alone: the group
norm over time, the positional convolution and the attention, where padding could leak, see valid frames only.
Intermediate results are sown under `intermediates`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from spirit_jax import kernels
from spirit_jax.kernels.masked import valid_frames
from spirit_jax.models.wav2vec2_config import Wav2Vec2Config, Wav2Vec2Noise

Params = dict[str, Any]


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The exact GELU: x times the normal distribution function of x."""
    return 0.5 * x * (1.0 + lax.erf(x * math.sqrt(0.5)))


def layer_norm(
    x_btc: Float[Array, "B T C"], scale: Float[Array, " C"], bias: Float[Array, " C"], eps: float
) -> Float[Array, "B T C"]:
    """Layer norm over the last axis."""
    centered = x_btc - x_btc.mean(-1, keepdims=True)
    return centered * (lax.rsqrt(jnp.square(centered).mean(-1, keepdims=True) + eps) * scale) + bias


def _norm_parameters(key: Array, size: int) -> dict[str, Float[Array, " C"]]:
    return {"scale": jnp.ones(size), "bias": jnp.zeros(size)}


class FeatureExtractor(nn.Module):
    """Waveform [B, R] to features [B, T, C] through strided convolutions without padding, each followed by GELU."""

    config: Wav2Vec2Config

    def setup(self) -> None:
        c, zeros = self.config, nn.initializers.zeros
        sizes = [channels for channels, _, _ in c.conv_layers]
        self.kernels = [
            self.param(f"conv_{i}", nn.initializers.he_normal(), (width, inputs, channels))
            for i, ((channels, width, _), inputs) in enumerate(zip(c.conv_layers, (1, *sizes), strict=False))
        ]
        self.biases = [self.param(f"bias_{i}", zeros, (n,)) if c.conv_bias else 0.0 for i, n in enumerate(sizes)]
        if c.conv_norm == "group":
            self.norm_scale = self.param("norm_scale", nn.initializers.ones, sizes[:1])
            self.norm_bias = self.param("norm_bias", zeros, sizes[:1])
        else:
            self.norms = [self.param(f"norm_{i}", _norm_parameters, n) for i, n in enumerate(sizes)]

    def __call__(
        self, audio_br: Float[Array, "B R"], lengths_b: Int[Array, " B"]
    ) -> tuple[Float[Array, "B T C"], Int[Array, " B"]]:
        """Features, and how many of its frames belong to each clip of `lengths_b` samples."""
        c = self.config
        if c.conv_norm == "group":  # over time; a bias before this norm has no effect
            x = kernels.normalized_convolution(
                audio_br,
                lengths_b,
                kernel_wc=self.kernels[0][:, 0],
                scale_c=self.norm_scale,
                bias_c=self.norm_bias,
                stride=c.conv_layers[0][2],
                eps=c.layer_norm_eps,
            )
            x = self.later_layers(gelu(x))
        else:
            x = self.later_layers(audio_br[:, :, None], first=0)
        return x, c.frames(lengths_b)

    def later_layers(self, x_btc: Float[Array, "B T C"], first: int = 1) -> Float[Array, "B T C"]:
        """The layers from `first` on."""
        c = self.config
        for i in range(first, len(c.conv_layers)):
            x_btc = lax.conv_general_dilated(
                x_btc, self.kernels[i], (c.conv_layers[i][2],), ((0, 0),), dimension_numbers=("NWC", "WIO", "NWC")
            )
            x_btc = x_btc + self.biases[i]
            if c.conv_norm == "layer":
                x_btc = layer_norm(x_btc, **self.norms[i], eps=c.layer_norm_eps)
            x_btc = gelu(x_btc)
        return x_btc


class PositionalConvolution(nn.Module):
    """Grouped convolution over time whose output, after GELU, is added to its input as a position embedding."""

    config: Wav2Vec2Config

    @nn.compact
    def __call__(self, x_btd: Float[Array, "B T D"], valid_bt1: Float[Array, "B T 1"]) -> Float[Array, "B T D"]:
        """The position embedding; `valid_bt1` is 1 inside each clip and 0 in its padding."""
        c = self.config
        ones, zeros, size = nn.initializers.ones, nn.initializers.zeros, (c.hidden_size,)
        params = {
            "kernel": self.param(
                "kernel",
                nn.initializers.he_normal(),
                (c.position_kernel, c.hidden_size // c.position_groups, c.hidden_size),
            )
        }
        if c.position_norm == "weight":
            params["gain"] = self.param("gain", ones, (c.position_kernel,))
        else:
            params |= {name: self.param(name, zeros, size) for name in ("running_mean", "norm_bias")}
            params |= {name: self.param(name, ones, size) for name in ("running_var", "norm_scale")}
            x_btd = batch_norm(params, x_btd, c.layer_norm_eps) * valid_bt1
        y_btd = kernels.convolution(x_btd, position_kernel(params), groups=c.position_groups)
        return gelu(y_btd + self.param("bias", zeros, size))


def batch_norm(params: Mapping[str, Array], x_btd: Float[Array, "B T D"], eps: float) -> Float[Array, "B T D"]:
    """Batch norm by running statistics. It moves padding off zero, which must be zeroed again after it."""
    gain_d = params["norm_scale"] * lax.rsqrt(params["running_var"] + eps)
    return (x_btd - params["running_mean"]) * gain_d + params["norm_bias"]


def position_kernel(params: Mapping[str, Array]) -> Float[Array, "K I O"]:
    """The kernel of the positional convolution. Its gain, if any, is the norm of each tap (arXiv 1602.07868)."""
    kernel = params["kernel"]
    if "gain" not in params:
        return kernel
    return kernel * (params["gain"] * lax.rsqrt(jnp.sum(jnp.square(kernel), axis=(1, 2))))[:, None, None]


def _dropout(x: Float[Array, "*shape"], rate: float) -> Float[Array, "*shape"]:
    """Leave out elements at random, inside a compact method; the random numbers are those of "noise"."""
    return nn.Dropout(rate, rng_collection="noise", deterministic=rate == 0)(x)


def dropped_attention(
    q_btnh: Float[Array, "B T N H"],
    k_bsnh: Float[Array, "B S N H"],
    v_bsnh: Float[Array, "B S N H"],
    valid_bs: Bool[Array, "B S"],
    rate: float,
    key: Array,
) -> Float[Array, "B T N H"]:
    """`kernels.bidirectional_attention` that leaves out attention weights at random."""
    scores_bnts = jnp.einsum("btnh,bsnh->bnts", q_btnh, k_bsnh) * q_btnh.shape[-1] ** -0.5
    weights_bnts = jax.nn.softmax(jnp.where(valid_bs[:, None, None], scores_bnts, jnp.finfo(jnp.float32).min))
    keep_bnts = jax.random.bernoulli(key, 1 - rate, weights_bnts.shape)
    return jnp.einsum("bnts,bsnh->btnh", jnp.where(keep_bnts, weights_bnts / (1 - rate), 0), v_bsnh)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def scale_gradient(x: Float[Array, "*shape"], factor: float) -> Float[Array, "*shape"]:
    """Return x; its gradient is multiplied by a factor."""
    return x


scale_gradient.defvjp(lambda x, factor: (x, None), lambda factor, _, gradient: (gradient * factor,))


class EncoderLayer(nn.Module):
    """Bidirectional self-attention and feed-forward, each with a residual and a layer norm after (or before) it."""

    config: Wav2Vec2Config
    noise: Wav2Vec2Noise | None = None
    """Dropout and layer drop, in training."""

    @nn.compact
    def __call__(
        self, x_btd: Float[Array, "B T D"], valid_bt: Bool[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], None]:
        """The carry of `nn.scan` after this layer; positions outside `valid_bt` are not attended to."""
        c, noise = self.config, self.noise or _NO_NOISE
        size, input_btd = c.hidden_size, x_btd
        attention_norm, output_norm = _norm(c, "attention_norm"), _norm(c, "output_norm")

        h_btd = attention_norm(x_btd) if c.pre_norm else x_btd
        q, k, v = (nn.Dense(size, name=name)(h_btd) for name in ("query", "key", "value"))
        q, k, v = (x.reshape(*x.shape[:2], c.num_heads, size // c.num_heads) for x in (q, k, v))
        if noise.attention_dropout:
            h_btnh = dropped_attention(q, k, v, valid_bt, noise.attention_dropout, self.make_rng("noise"))
        else:
            h_btnh = kernels.bidirectional_attention(q, k, v, valid_bt)
        x_btd = x_btd + _dropout(nn.Dense(size, name="out")(h_btnh.reshape(x_btd.shape)), noise.dropout)
        if not c.pre_norm:
            x_btd = attention_norm(x_btd)

        h_btd = output_norm(x_btd) if c.pre_norm else x_btd
        h_btd = nn.Dense(size, name="down")(gelu(nn.Dense(c.intermediate_size, name="up")(h_btd)))
        h_btd = _dropout(h_btd, noise.dropout)
        x_btd = x_btd + h_btd if c.pre_norm else output_norm(x_btd + h_btd)
        if noise.layer_drop:
            x_btd = jnp.where(jax.random.bernoulli(self.make_rng("noise"), noise.layer_drop), input_btd, x_btd)
        self.sow("intermediates", "output", x_btd)
        return x_btd, None


def _norm(config: Wav2Vec2Config, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=config.layer_norm_eps, use_fast_variance=False, name=name)


_NO_NOISE = Wav2Vec2Noise(0.0, 0.0, 0.0, 0.0, 1.0)


def scanned_layers(config: Wav2Vec2Config, name: str, noise: Wav2Vec2Noise | None = None) -> nn.Module:
    """All transformer layers as one scan; parameters are stacked along a leading axis of layers."""
    layers = nn.scan(
        EncoderLayer,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "noise": True},
        in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType] - flax says int
        length=config.num_layers,
    )
    return layers(config, noise, name=name)


class EncoderParts(NamedTuple):
    """Constructors that make each part of the network from its config and name.

    A platform that computes a part faster from parameters in another form brings its own, as
    `spirit_jax.speech.released.wav2vec2_cpu` does.
    """

    features: Callable[..., nn.Module] = FeatureExtractor
    position: Callable[..., nn.Module] = PositionalConvolution
    layers: Callable[..., nn.Module] = scanned_layers


class Wav2Vec2Model(nn.Module):
    """Waveform to contextual frames.

    `apply({"params": params}, audio_br, lengths_b)` gives the output of the last layer [B, T, D] and how many of its
    frames belong to each clip. T is config.frames(R), and frames past those of a clip are undefined. `truncate` gives
    the model that stops at an earlier layer.
    """

    config: Wav2Vec2Config
    final_norm: bool = True
    """Whether a pre-norm encoder ends with its layer norm. The last layer's output has it, earlier ones do not."""
    parts: EncoderParts = EncoderParts()
    noise: Wav2Vec2Noise | None = None
    """Dropout and layer drop, in training, from the random numbers of the collection "noise". It replaces the layers
    of `parts` by plain ones."""

    @nn.compact
    def __call__(
        self,
        audio_br: Float[Array, "B R"],
        lengths_b: Int[Array, " B"] | None = None,
        masked_bt: Bool[Array, "B T"] | None = None,
        mask_d: Float[Array, " D"] | None = None,
    ) -> tuple[Float[Array, "B T D"], Int[Array, " B"]]:
        """Features and frames of each clip, all of R samples if `lengths_b` is None.

        Args:
            audio_br: samples at 16 kHz; zeros after those of a clip.
            lengths_b: samples of each clip.
            masked_bt: frames whose projected features are replaced by `mask_d`, in training.
            mask_d: what replaces them.

        Raises:
            ValueError: audio of another rank, or too short for one frame (`Wav2Vec2Config.receptive_field`).
        """
        config = self.config
        if audio_br.ndim != 2 or audio_br.shape[1] < config.receptive_field:
            raise ValueError(
                f"audio must be [B, R] with R >= {config.receptive_field} samples, found shape {audio_br.shape}"
            )
        if lengths_b is None:
            lengths_b = jnp.full(audio_br.shape[:1], audio_br.shape[1], jnp.int32)

        x, frames_b = self.parts.features(config, name="feature_extractor")(audio_br, lengths_b)
        self.sow("intermediates", "conv", x)
        if self.noise is not None:
            x = scale_gradient(x, self.noise.feature_gradient)
        self.sow("features", "conv", x)  # by itself, for HuBERT's penalty, which needs nothing of the layers
        x = _norm(config, "feature_norm")(x)
        self.sow("intermediates", "features", x)
        if config.project_features:
            x = nn.Dense(config.hidden_size, name="feature_projection")(x)
        self.sow("intermediates", "projected", x)
        if self.noise is not None:
            x = _dropout(x, self.noise.input_dropout)
        if masked_bt is not None and mask_d is not None:
            x = jnp.where(masked_bt[:, :, None], mask_d, x)

        valid_bt = valid_frames(frames_b, x.shape[1])
        valid_bt1 = valid_bt[:, :, None].astype(jnp.float32)
        x = x * valid_bt1
        x = x + self.parts.position(config, name="position")(x, valid_bt1)
        self.sow("intermediates", "encoder_input", x)
        if not config.pre_norm:
            x = _norm(config, "encoder_norm")(x)
        if self.noise is None:
            layers = self.parts.layers(config, name="layers")
        else:
            x = _dropout(x, self.noise.dropout)
            layers = scanned_layers(config, "layers", self.noise)
        x, _ = layers(x, valid_bt)
        if config.pre_norm and self.final_norm:
            x = _norm(config, "encoder_norm")(x)
        return x, frames_b


def truncate(config: Wav2Vec2Config, params: Params, layer: int) -> tuple[Wav2Vec2Model, Params]:
    """The model whose output is that of layer `layer` (from 1, before any final norm), and its parameters.

    Raises:
        ValueError: the encoder has no such layer.
    """
    if not 1 <= layer <= config.num_layers:
        raise ValueError(f"output layer {layer}: the encoder has layers 1 to {config.num_layers}")
    params = {**params, "layers": jax.tree.map(lambda leaf: leaf[:layer], params["layers"])}
    return Wav2Vec2Model(dataclasses.replace(config, num_layers=layer), final_norm=False), params
