"""HuBERT and wav2vec 2.0 encoders, the CTC-style unit quantizer and the classifier that labels each second.

One network serves the 25 Hz HuBERT that gives phonetic units and the wav2vec2 that gives style units; they differ in
hyper-parameters only. Everything is channels last ([B, T, C]), convolution kernels are [width, in, out].

Clips of different lengths share a batch: pass `lengths` (samples) and every clip gives what it gives alone, because
each place where padding could leak sees valid frames only: the group norm over time, the positional convolution and
the attention. Sources: wav2vec 2.0 (arXiv 2006.11477), HuBERT (arXiv 2106.07447) and, for the released numerics,
FORMATS.md sections 2 and 3. Intermediate results are sown under `intermediates`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int

from spirit_jax.kernels.platform import platform

Params = dict[str, Any]
ConvLayer = tuple[int, int, int]

# Queries a block of attention: bounds the scores of a 100 s chunk (5000 frames) to 512 x 5000 a head.
QUERY_BLOCK = 512

# Samples whose convolutions a CPU does at once: what they make stays in cache, and 100 s need no more memory than 3 s.
CPU_TILE = 40_960


@dataclasses.dataclass(frozen=True)
class Wav2Vec2Config:
    """The shape of a HuBERT or wav2vec 2.0 encoder. The defaults are the released 25 Hz HuBERT."""

    conv_layers: tuple[ConvLayer, ...] = ((512, 10, 5),) + ((512, 3, 2),) * 4 + ((512, 2, 2),) * 3
    """(channels, kernel, stride) of each convolution of the feature extractor."""
    conv_norm: str = "group"
    """Norm in the feature extractor: `group` (over time, first layer only) or `layer` (over channels, every layer)."""
    conv_bias: bool = False
    """Whether the convolutions of the feature extractor have a bias."""
    project_features: bool = True
    """Whether a linear layer maps the features to `hidden_size` (fairseq has none where the sizes agree)."""
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
    """Norm of the positional convolution: `weight` (one gain a tap) or `batch` (of its input, running statistics)."""
    pre_norm: bool = False
    """Layer norm before each sub-layer and after the last layer, instead of after each sub-layer."""
    layer_norm_eps: float = 1e-5
    """Epsilon of every norm."""

    def __post_init__(self):
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
        """The inverse of `dataclasses.asdict`, also after a way through JSON."""
        return cls(**{**fields, "conv_layers": tuple(map(tuple, fields["conv_layers"]))})

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(stride for _, _, stride in self.conv_layers)

    @property
    def receptive_field(self) -> int:
        """Samples that one frame sees: the shortest clip that gives a frame."""
        field, hop = 1, 1
        for _, kernel, stride in self.conv_layers:
            field, hop = field + (kernel - 1) * hop, hop * stride
        return field

    def frames(self, samples):
        """Number of frames of a clip of `samples` samples (an int or an integer array); 0 for too short a clip."""
        return (samples - self.receptive_field) // self.hop + 1


def _valid(frames_b: Int[Array, " B"], size: int) -> Array:
    """[B, size, 1] float32: one where a frame is inside its clip."""
    return (jnp.arange(size)[None, :, None] < frames_b[:, None, None]).astype(jnp.float32)


def _time_sum(x_btc: Array) -> Array:
    """Sum over time in two levels: one running float32 sum over a 100 s chunk would lose three digits."""
    blocks = x_btc.shape[1] // 256
    head, tail = x_btc[:, : blocks * 256], x_btc[:, blocks * 256 :]
    head = head.reshape(x_btc.shape[0], blocks, 256, x_btc.shape[2])
    return head.sum(2).sum(1, keepdims=True) + tail.sum(1, keepdims=True)


def masked_standardize(x_btc: Array, frames_b: Int[Array, " B"], eps: float) -> Array:
    """(x - mean) / sqrt(variance + eps) of each channel over the valid frames of its clip; padding becomes zero."""
    valid = _valid(frames_b, x_btc.shape[1])
    count = frames_b[:, None, None].astype(jnp.float32)
    mean = _time_sum(x_btc * valid) / count
    centred = (x_btc - mean) * valid
    variance = _time_sum(jnp.square(centred)) / count
    return centred * lax.rsqrt(variance + eps)


def gelu(x: Array) -> Array:
    """The exact GELU. Written with erf: lowers to fewer operations than jax.nn.gelu's erfc, equal to float32 noise."""
    return 0.5 * x * (1.0 + lax.erf(x * math.sqrt(0.5)))


def layer_norm(x: Array, scale_c: Array, bias_c: Array, eps: float) -> Array:
    """Layer norm over the last axis, as flax's with `use_fast_variance=False`; a function, for use inside `lax.map`."""
    centred = x - x.mean(-1, keepdims=True)
    return centred * (lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps) * scale_c) + bias_c


def _conv(x_btc: Array, kernel: Array, stride: int = 1, padding=((0, 0),), groups: int = 1) -> Array:
    return lax.conv_general_dilated(
        x_btc, kernel, (stride,), padding, dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=groups
    )


def _frames(x_br: Array, width: int, stride: int) -> Array:
    """The stretches of `width` samples that a convolution sees, `stride` apart: [B, T, width]."""
    taps, count = -(-width // stride), (x_br.shape[1] - width) // stride + 1
    samples = (count + taps - 1) * stride
    x_br = jnp.pad(x_br, ((0, 0), (0, max(0, samples - x_br.shape[1]))))[:, :samples]
    blocks = x_br.reshape(x_br.shape[0], -1, stride)
    return jnp.concatenate([blocks[:, i : i + count] for i in range(taps)], -1)[..., :width]


@functools.cache
def _cosines(size: int) -> np.ndarray:
    """The orthonormal cosine transform (DCT-II), float32 [size, size], a column a frequency."""
    angles = np.pi / size * (np.arange(size)[:, None] + 0.5) * np.arange(size)
    return (np.cos(angles) * np.sqrt(np.where(np.arange(size) == 0, 1, 2) / size)).astype(np.float32)


def normalizing_kernel(
    frames_btw: Array, counts_b: Array, kernel_wc: Array, eps: float
) -> tuple[Float[Array, "B W C"], Float[Array, "B C"]]:
    """Kernel and bias with which the convolution of each clip's frames has mean 0 and variance 1 in every channel.

    That is the convolution and its norm over time (`masked_standardize`) in one pass: mean and variance of w.x follow
    from the mean and the W x W covariance of the frames x. Those are taken of their cosine transform, whose components
    hardly correlate in sound: a filter that hears little of what is loud would otherwise cancel the covariance's digits.
    """
    valid, count = _valid(counts_b, frames_btw.shape[1]), counts_b[:, None, None].astype(jnp.float32)
    basis = _cosines(frames_btw.shape[2])
    z = jnp.einsum("btw,wf->btf", frames_btw, basis)
    mean = _time_sum(z * valid) / count
    centred = (z - mean) * valid
    # Blocks of 256 frames, as in `_time_sum`.
    blocks = jnp.pad(centred, ((0, 0), (0, -centred.shape[1] % 256), (0, 0)))
    blocks = blocks.reshape(z.shape[0], -1, 256, z.shape[2])
    covariance = jnp.einsum("bktf,bktg->bkfg", blocks, blocks).sum(1) / count
    kernel_fc = basis.T @ kernel_wc
    variance = jnp.einsum("fc,bfg,gc->bc", kernel_fc, covariance, kernel_fc)
    gain = lax.rsqrt(jnp.maximum(variance, 0.0) + eps)
    return kernel_wc * gain[:, None], -(mean[:, 0] @ kernel_fc) * gain


class Affine(nn.Module):
    """The scale and bias of a norm."""

    size: int

    @nn.compact
    def __call__(self) -> tuple[Array, Array]:
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        return self.param("scale", ones, (self.size,)), self.param("bias", zeros, (self.size,))


class FeatureExtractor(nn.Module):
    """Waveform [B, R] to features [B, T, C] through strided convolutions without padding."""

    config: Wav2Vec2Config

    @nn.compact
    def __call__(self, audio_br: Float[Array, "B R"], lengths_b: Int[Array, " B"]) -> tuple[Array, Array]:
        config = self.config
        (channels, width, stride), *later = config.conv_layers
        zeros = nn.initializers.zeros
        fan_ins = [1, *(layer[0] for layer in config.conv_layers)]
        kernels = [
            self.param(f"conv_{i}", nn.initializers.he_normal(), (layer[1], fan_ins[i], layer[0]))
            for i, layer in enumerate(config.conv_layers)
        ]
        biases = [
            self.param(f"bias_{i}", zeros, (layer[0],)) if config.conv_bias else None
            for i, layer in enumerate(config.conv_layers)
        ]
        batch = audio_br.shape[0]
        if config.conv_norm == "group":  # a bias before this norm has no effect
            heard = (lengths_b - width) // stride + 1
            first, offset = normalizing_kernel(
                _frames(audio_br, width, stride), heard, kernels[0][:, 0], config.layer_norm_eps
            )
            scale = self.param("norm_scale", nn.initializers.ones, (channels,))
            first, offset = first * scale, offset * scale + self.param("norm_bias", zeros, (channels,))
            norms = [None] * len(kernels)
        else:
            first = jnp.broadcast_to(kernels[0][:, 0], (batch, width, channels))
            offset = jnp.broadcast_to(0.0 if biases[0] is None else biases[0], (batch, channels))
            norms = [Affine(layer[0], name=f"norm_{i}")() for i, layer in enumerate(config.conv_layers)]

        def activate(x, norm):
            return gelu(x if norm is None else layer_norm(x, *norm, config.layer_norm_eps))

        def convolve(clips):
            audio, kernel, bias = clips
            x = jnp.einsum("btw,bwc->btc", _frames(audio, width, stride), kernel)
            x = activate(x + bias[:, None], norms[0])
            for kernel, bias, norm, layer in zip(kernels[1:], biases[1:], norms[1:], later, strict=True):
                x = _conv(x, kernel, layer[2])
                x = activate(x if bias is None else x + bias, norm)
            return x

        x = _in_tiles(convolve, audio_br, (first, offset), config)
        return x, config.frames(lengths_b)


def _in_tiles(convolve: Callable, audio_br: Array, rows: tuple[Array, ...], config: Wav2Vec2Config) -> Array:
    """`convolve((audio, *rows))` of stretches of the audio that overlap as they must; on CPU, `CPU_TILE` samples at once."""
    batch, time = audio_br.shape[0], config.frames(audio_br.shape[1])
    limit = max(1, CPU_TILE // config.hop) if platform() == "cpu" else batch * time
    count = -(-time // limit)
    size = -(-time // count)  # frames a tile
    samples, hop = (size - 1) * config.hop + config.receptive_field, size * config.hop
    audio_br = jnp.pad(audio_br, ((0, 0), (0, max(0, (count - 1) * hop + samples - audio_br.shape[1]))))
    tiles = jnp.stack([audio_br[:, i * hop : i * hop + samples] for i in range(count)], 1)
    together = max(n for n in range(1, batch * count + 1) if batch * count % n == 0 and (n == 1 or n * size <= limit))

    def split(x):  # [batch, count, ...] to [steps, together, ...]
        return x.reshape(-1, together, *x.shape[2:])

    rows = tuple(split(jnp.repeat(row[:, None], count, 1)) for row in rows)
    return lax.map(convolve, (split(tiles), *rows)).reshape(batch, count * size, -1)[:, :time]


class PositionalConvolution(nn.Module):
    """Grouped convolution over time whose output, after GELU, is added to its input as a position embedding."""

    config: Wav2Vec2Config

    @nn.compact
    def __call__(self, x_btd: Array, valid_bt1: Array) -> Array:
        config = self.config
        width, groups = config.position_kernel, config.position_groups
        shape = (width, config.hidden_size // groups, config.hidden_size)
        if config.position_norm == "batch":
            zeros, ones, size = nn.initializers.zeros, nn.initializers.ones, (config.hidden_size,)
            mean, variance = self.param("running_mean", zeros, size), self.param("running_var", ones, size)
            gain = self.param("norm_scale", ones, size) * lax.rsqrt(variance + config.layer_norm_eps)
            # Zeroed again after this norm: it moves padding off zero, and a clip would feel the batch it is in.
            x_btd = ((x_btd - mean) * gain + self.param("norm_bias", zeros, size)) * valid_bt1
        if self.has_variable("params", "spectrum"):
            y = _convolve_by_spectrum(x_btd, self.get_variable("params", "spectrum"), width)
        else:
            params = {"kernel": self.param("kernel", nn.initializers.he_normal(), shape)}
            if config.position_norm == "weight":
                params["gain"] = self.param("gain", nn.initializers.ones, (width,))
            # An even width keeps the number of frames by dropping the last output: one zero less on the right.
            y = _conv(x_btd, _position_kernel(params), padding=((width // 2, (width - 1) // 2),), groups=groups)
        return gelu(y + self.param("bias", nn.initializers.zeros, (config.hidden_size,)))


def _position_kernel(params: Params) -> Array:
    """The kernel [K, D / groups, D] of the positional convolution; its gain, where there is one, is a tap's norm."""
    kernel = params["kernel"]
    if "gain" not in params:
        return kernel
    return kernel * (params["gain"] * lax.rsqrt(jnp.sum(jnp.square(kernel), axis=(1, 2))))[:, None, None]


def _convolve_by_spectrum(x_btd: Array, spectrum_fgio: Array, width: int) -> Array:
    """The positional convolution, as products of spectra of stretches of 2 K frames that give K + 1 each."""
    batch, time, size = x_btd.shape
    _, groups, inputs, _ = spectrum_fgio.shape
    hop = width + 1
    count = -(-time // hop)
    x_btd = jnp.pad(x_btd, ((0, 0), (width // 2, count * hop + width - 1 - time), (0, 0)))
    x = jnp.stack([x_btd[:, i * hop : i * hop + 2 * width] for i in range(count)], 1)
    z = jnp.fft.rfft(x.reshape(batch * count, 2 * width, size), axis=1)
    z = jnp.einsum("rfgi,fgio->rfgo", z.reshape(*z.shape[:2], groups, inputs), spectrum_fgio)
    y = jnp.fft.irfft(z.reshape(*z.shape[:2], size), 2 * width, axis=1)[:, :hop]
    return y.reshape(batch, count * hop, size)[:, :time]


def _attend(q_bnth: Array, k_bnsh: Array, v_bnsh: Array, bias_bs: Array) -> Array:
    """Softmax attention, heads before time throughout: XLA's CPU copies badly laid out operands of a batched product."""
    scores = jnp.einsum("bnth,bnsh->bnts", q_bnth, k_bnsh) + bias_bs[:, None, None, :]
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    return jnp.einsum("bnts,bnsh->bnth", weights, v_bnsh) / weights.sum(-1, keepdims=True)


class EncoderLayer(nn.Module):
    """Bidirectional self-attention and feed-forward, each with a residual and a layer norm after (or before) it."""

    config: Wav2Vec2Config

    @nn.compact
    def __call__(self, x_btd: Array, bias_bs: Array) -> tuple[Array, None]:
        config = self.config
        batch, time, size = x_btd.shape
        head_size = size // config.num_heads

        def heads(x):  # [B, T, D] to [B, N, T, H]
            return jnp.moveaxis(x.reshape(batch, -1, config.num_heads, head_size), 2, 1)

        def norm(name: str):
            return nn.LayerNorm(epsilon=config.layer_norm_eps, use_fast_variance=False, name=name)

        attention_norm, output_norm = norm("attention_norm"), norm("output_norm")
        h = attention_norm(x_btd) if config.pre_norm else x_btd
        q = heads(nn.Dense(size, name="query")(h) * head_size**-0.5)
        k, v = (heads(nn.Dense(size, name=name)(h)) for name in ("key", "value"))
        if time > 2 * QUERY_BLOCK:
            blocks = -(-time // QUERY_BLOCK)
            q = jnp.pad(q, ((0, 0), (0, 0), (0, blocks * QUERY_BLOCK - time), (0, 0)))
            q = jnp.moveaxis(q.reshape(batch, config.num_heads, blocks, QUERY_BLOCK, head_size), 2, 0)
            h = jnp.moveaxis(lax.map(lambda block: _attend(block, k, v, bias_bs), q), 0, 2)
            h = h.reshape(batch, config.num_heads, blocks * QUERY_BLOCK, head_size)[:, :, :time]
        else:
            h = _attend(q, k, v, bias_bs)
        h = jnp.moveaxis(h, 1, 2).reshape(batch, time, size)
        x = x_btd + nn.Dense(size, name="out")(h)
        if not config.pre_norm:
            x = attention_norm(x)
        h = output_norm(x) if config.pre_norm else x
        h = nn.Dense(size, name="down")(gelu(nn.Dense(config.intermediate_size, name="up")(h)))
        x = x + h if config.pre_norm else output_norm(x + h)
        self.sow("intermediates", "output", x)
        return x, None


class Wav2Vec2Model(nn.Module):
    """Waveform to contextual frames.

    `apply({"params": params}, audio_br, lengths_b)` gives (features [B, T, D], frames [B]): the output of the last
    layer, and how many of its frames belong to each clip. T = config.frames(R); what lies past a clip's frames is
    undefined. `truncate` gives the model that stops at an earlier layer. A clip shorter than
    `config.receptive_field` samples has no frame: do not pass one. Parameters may be those of `for_inference`.
    """

    config: Wav2Vec2Config
    final_norm: bool = True
    """Whether a pre-norm encoder ends with its layer norm: the last layer's output has it, earlier ones do not."""

    @nn.compact
    def __call__(
        self, audio_br: Float[Array, "B R"], lengths_b: Int[Array, " B"] | None = None
    ) -> tuple[Float[Array, "B T D"], Int[Array, " B"]]:
        config = self.config
        if audio_br.ndim != 2 or audio_br.shape[1] < config.receptive_field:
            raise ValueError(
                f"audio must be [B, R] with R >= {config.receptive_field} samples, found shape {audio_br.shape}"
            )
        if lengths_b is None:
            lengths_b = jnp.full(audio_br.shape[:1], audio_br.shape[1], jnp.int32)

        def norm(name: str):
            return nn.LayerNorm(epsilon=config.layer_norm_eps, use_fast_variance=False, name=name)

        x, frames = FeatureExtractor(config, name="feature_extractor")(audio_br, lengths_b)
        self.sow("intermediates", "conv", x)
        x = norm("feature_norm")(x)
        self.sow("intermediates", "features", x)
        if config.project_features:
            x = nn.Dense(config.hidden_size, name="feature_projection")(x)
        self.sow("intermediates", "projected", x)

        valid = _valid(frames, x.shape[1])
        x = x * valid
        x = x + PositionalConvolution(config, name="position")(x, valid)
        self.sow("intermediates", "encoder_input", x)
        if not config.pre_norm:
            x = norm("encoder_norm")(x)
        bias_bs = jnp.where(valid[:, :, 0] > 0, 0.0, jnp.finfo(jnp.float32).min)
        if self.has_variable("params", "layer_0"):
            for i in range(config.num_layers):
                x, _ = EncoderLayer(config, name=f"layer_{i}")(x, bias_bs)
        else:
            layers = nn.scan(
                EncoderLayer,
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=config.num_layers,
            )
            x, _ = layers(config, name="layers")(x, bias_bs)
        if config.pre_norm and self.final_norm:
            x = norm("encoder_norm")(x)
        return x, frames


def truncate(config: Wav2Vec2Config, params: Params, layer: int) -> tuple[Wav2Vec2Model, Params]:
    """The model whose output is that of layer `layer` (1-based, before any final norm), and its parameters."""
    if not 1 <= layer <= config.num_layers:
        raise ValueError(f"output layer {layer}: the encoder has layers 1 to {config.num_layers}")
    params = {**params, "layers": jax.tree.map(lambda leaf: leaf[:layer], params["layers"])}
    return Wav2Vec2Model(dataclasses.replace(config, num_layers=layer), final_norm=False), params


def for_inference(params: Params) -> Params:
    """Parameters in the form that computes fastest, equal up to rounding.

    Accelerators take them as they are: a loop over stacked layers compiles many times sooner. On CPU the layers stand apart,
    `layer_0`, `layer_1`, ..., and are read where they lie instead of being copied out of a stack, and, wide convolutions
    of few channels being slow there, `position` holds the `spectrum` complex64 [K + 1, groups, D / groups, D / groups] of its kernel.
    """
    if platform() != "cpu":
        return params
    params = dict(params)
    layers = params.pop("layers")
    for i in range(jax.tree.leaves(layers)[0].shape[0]):
        params[f"layer_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], layers)
    kernel = np.asarray(_position_kernel(params["position"]))
    width, inputs, _ = kernel.shape
    spectrum = np.conj(np.fft.rfft(kernel, 2 * width, axis=0)).reshape(width + 1, inputs, -1, inputs)
    position = {name: value for name, value in params["position"].items() if name not in ("kernel", "gain")}
    params["position"] = {**position, "spectrum": np.moveaxis(spectrum, 2, 1).astype(np.complex64)}
    return params


class LinearQuantizer(nn.Module):
    """Features [..., D] to logits [..., units + 1] over units and the CTC blank (the last class).

    Three linear layers with leaky ReLU; the widths shrink by a quarter and by a half of the way to the classes
    (floor division, and `upstream - classes` may be negative, then they grow).
    """

    dim: int = 768
    upstream_dim: int = 768
    units: int = 500

    @property
    def widths(self) -> tuple[int, int, int]:
        way = self.upstream_dim - (self.units + 1)
        return self.dim - way // 4, self.dim - way // 2, self.units + 1

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch K"]:
        first, second, classes = self.widths
        x = nn.leaky_relu(nn.Dense(first, name="dense_0")(x), 0.01)
        x = nn.leaky_relu(nn.Dense(second, name="dense_1")(x), 0.01)
        return nn.Dense(classes, name="dense_2")(x)


def nearest_centroid(x: Float[Array, "*batch D"], centroids_kd: Float[Array, "K D"]) -> Int[Array, "*batch"]:
    """Index of the nearest centroid of each vector (the k-means quantizer)."""
    squared = jnp.sum(jnp.square(centroids_kd), -1) - 2.0 * jnp.einsum("...d,kd->...k", x, centroids_kd)
    return jnp.argmin(squared, -1).astype(jnp.int32)


class WindowClassifier(nn.Module):
    """Waveform to one label for each window of 50 frames (one second): the style encoder.

    `apply(variables, audio_br, lengths_b)` normalises each clip to mean 0 and variance 1 (as the released feature
    extractor does, eps 1e-7), and gives (logits [B, K, labels], windows [B]); the last window may be short.
    """

    config: Wav2Vec2Config
    projection_size: int = 256
    num_labels: int = 100
    window: int = 50

    @nn.compact
    def __call__(
        self, audio_br: Float[Array, "B R"], lengths_b: Int[Array, " B"] | None = None
    ) -> tuple[Float[Array, "B K labels"], Int[Array, " B"]]:
        if lengths_b is None:
            lengths_b = jnp.full(audio_br.shape[:1], audio_br.shape[1], jnp.int32)
        audio_br = masked_standardize(audio_br[:, :, None], lengths_b, 1e-7)[:, :, 0]
        self.sow("intermediates", "normalized", audio_br)
        x, frames = Wav2Vec2Model(self.config, name="encoder")(audio_br, lengths_b)
        x = nn.Dense(self.projection_size, name="projector")(x)
        self.sow("intermediates", "projected", x)
        windows = -(-x.shape[1] // self.window)
        x = jnp.where(_valid(frames, x.shape[1]) > 0, x, 0.0)
        x = jnp.pad(x, ((0, 0), (0, windows * self.window - x.shape[1]), (0, 0)))
        total = x.reshape(x.shape[0], windows, self.window, -1).sum(2)
        count = jnp.clip(frames[:, None] - self.window * jnp.arange(windows), 1, self.window)
        x = total / count[:, :, None]
        self.sow("intermediates", "pooled", x)
        return nn.Dense(self.num_labels, name="classifier")(x), -(-frames // self.window)
