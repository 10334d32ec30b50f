"""HuBERT and wav2vec 2.0: waveform to contextual frames.

One network serves the 25 Hz HuBERT that gives phonetic units and the wav2vec 2.0 that gives style units; only their
hyperparameters differ. Sources: wav2vec 2.0 (arXiv 2006.11477), HuBERT (arXiv 2106.07447) and, for the released
numerics, docs/formats.md, "HuBERT" and "Style encoder". Arrays are channels last, [B, T, C].

Clips of different lengths share a batch. With `lengths` in samples, every clip gives what it gives alone: the group
norm over time, the positional convolution and the attention, where padding could leak, see valid frames only.
Intermediate results are sown under `intermediates`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from spirit_jax import kernels
from spirit_jax.kernels.masked import valid_frames

Params = dict[str, Any]
ConvLayer = tuple[int, int, int]

_Samples = TypeVar("_Samples", int, Array, np.ndarray)


@dataclasses.dataclass(frozen=True)
class Wav2Vec2Config:
    """The shape of a HuBERT or wav2vec 2.0 encoder. The defaults are the released 25 Hz HuBERT."""

    conv_layers: tuple[ConvLayer, ...] = ((512, 10, 5),) + ((512, 3, 2),) * 4 + ((512, 2, 2),) * 3
    """(channels, kernel, stride) of each convolution of the feature extractor."""
    conv_norm: str = "group"
    """Norm of the feature extractor: `group` (over time, first layer only) or `layer` (over channels, every layer)."""
    conv_bias: bool = False
    """Whether the convolutions of the feature extractor have a bias."""
    project_features: bool = True
    """Whether a linear layer maps the features to `hidden_size`. Fairseq has none where the sizes are equal."""
    hidden_size: int = 768
    """Width of the transformer."""
    num_layers: int = 12
    """Number of transformer layers."""
    num_heads: int = 12
    """Number of attention heads."""
    intermediate_size: int = 3072
    """Width of the feed-forward layers."""
    position_kernel: int = 128
    """Width of the positional convolution, in frames."""
    position_groups: int = 16
    """Number of groups of the positional convolution."""
    position_norm: str = "weight"
    """Norm of the positional convolution: `weight` (a gain for each tap) or `batch` (of its input, as in inference)."""
    pre_norm: bool = False
    """Layer norm before each sub-layer and after the last layer, instead of after each sub-layer."""
    layer_norm_eps: float = 1e-5
    """Epsilon of every norm."""

    def __post_init__(self) -> None:
        for name, allowed in (("conv_norm", ("group", "layer")), ("position_norm", ("weight", "batch"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"Wav2Vec2Config.{name} is {getattr(self, name)!r}: expected one of {allowed}")
        if self.hidden_size % self.num_heads or self.hidden_size % self.position_groups:
            raise ValueError(
                f"Wav2Vec2Config.hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads} "
                f"and of position_groups {self.position_groups}"
            )

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Wav2Vec2Config":
        """The inverse of `dataclasses.asdict`, also for fields read from JSON."""
        return cls(**{**fields, "conv_layers": tuple(map(tuple, fields["conv_layers"]))})

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(stride for _, _, stride in self.conv_layers)

    @property
    def receptive_field(self) -> int:
        """Samples that one frame reads: the length of the shortest clip with a frame."""
        field, hop = 1, 1
        for _, kernel, stride in self.conv_layers:
            field, hop = field + (kernel - 1) * hop, hop * stride
        return field

    def frames(self, samples: _Samples) -> _Samples:
        """Number of frames of a clip of `samples` samples; 0 or less for a clip that is too short."""
        return (samples - self.receptive_field) // self.hop + 1


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


class EncoderLayer(nn.Module):
    """Bidirectional self-attention and feed-forward, each with a residual and a layer norm after (or before) it."""

    config: Wav2Vec2Config

    @nn.compact
    def __call__(
        self, x_btd: Float[Array, "B T D"], valid_bt: Bool[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], None]:
        """The carry of `nn.scan` after this layer; positions outside `valid_bt` are not attended to."""
        c = self.config
        size = c.hidden_size
        attention_norm, output_norm = _norm(c, "attention_norm"), _norm(c, "output_norm")

        h_btd = attention_norm(x_btd) if c.pre_norm else x_btd
        q, k, v = (nn.Dense(size, name=name)(h_btd) for name in ("query", "key", "value"))
        q, k, v = (x.reshape(*x.shape[:2], c.num_heads, size // c.num_heads) for x in (q, k, v))
        h_btd = kernels.bidirectional_attention(q, k, v, valid_bt).reshape(x_btd.shape)
        x_btd = x_btd + nn.Dense(size, name="out")(h_btd)
        if not c.pre_norm:
            x_btd = attention_norm(x_btd)

        h_btd = output_norm(x_btd) if c.pre_norm else x_btd
        h_btd = nn.Dense(size, name="down")(gelu(nn.Dense(c.intermediate_size, name="up")(h_btd)))
        x_btd = x_btd + h_btd if c.pre_norm else output_norm(x_btd + h_btd)
        self.sow("intermediates", "output", x_btd)
        return x_btd, None


def _norm(config: Wav2Vec2Config, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=config.layer_norm_eps, use_fast_variance=False, name=name)


def scanned_layers(config: Wav2Vec2Config, name: str) -> nn.Module:
    """All transformer layers as one scan; parameters are stacked along a leading axis of layers."""
    layers = nn.scan(
        EncoderLayer,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType] - flax says int
        length=config.num_layers,
    )
    return layers(config, name=name)


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

    @nn.compact
    def __call__(
        self, audio_br: Float[Array, "B R"], lengths_b: Int[Array, " B"] | None = None
    ) -> tuple[Float[Array, "B T D"], Int[Array, " B"]]:
        """Features and frames of each clip, all of R samples if `lengths_b` is None.

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
        x = _norm(config, "feature_norm")(x)
        self.sow("intermediates", "features", x)
        if config.project_features:
            x = nn.Dense(config.hidden_size, name="feature_projection")(x)
        self.sow("intermediates", "projected", x)

        valid_bt = valid_frames(frames_b, x.shape[1])
        valid_bt1 = valid_bt[:, :, None].astype(jnp.float32)
        x = x * valid_bt1
        x = x + self.parts.position(config, name="position")(x, valid_bt1)
        self.sow("intermediates", "encoder_input", x)
        if not config.pre_norm:
            x = _norm(config, "encoder_norm")(x)
        x, _ = self.parts.layers(config, name="layers")(x, valid_bt)
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
