"""HiFi-GAN on speech units: the Base and Expressive vocoders of Spirit LM, and their duration predictor.

HiFi-GAN is Kong et al. 2020 (arXiv 2010.05646), on units Polyak et al. 2021 (arXiv 2104.00355); the released numerics
are those of docs/formats.md, "Vocoders". Activations are [B, T, C] and kernels [K, I, O], also those of transposed
convolutions. The network reads plain kernels. Checkpoints and training keep each kernel as the two factors of a weight
norm: `fold_weight_norm` multiplies them out, differentiably, and `split_weight_norm` is its inverse.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from spirit_jax import kernels
from spirit_jax.models.hifigan_config import HifiGanConfig
from spirit_jax.models.hifigan_window import Window

STAGE_SLOPE = 0.1
FINAL_SLOPE = 0.01
"""Slopes of the leaky ReLUs inside the network and before its last convolution (PyTorch's default there)."""


PUBLISHED_CHANNELS = 512
"""Channels before the first stage as published."""


def fold_weight_norm(params: dict) -> dict:
    """The parameters with every `{weight_g, weight_v}` multiplied out to its kernel, g * v / ||v|| (arXiv 1602.07868).

    `weight_v` is [K, I, O]. `weight_g` has size 1 in the dimensions that the norm is taken over: [1, 1, O], or
    [1, I, 1] for a transposed convolution, whose dimension 0 in PyTorch is the input.
    """
    if {"weight_g", "weight_v"} <= params.keys():
        rest = {name: value for name, value in params.items() if name not in ("weight_g", "weight_v")}
        weight_g, weight_v = params["weight_g"], params["weight_v"]
        return {"kernel": weight_v * (weight_g / _norm(weight_v, weight_g.shape)), **rest}
    return {name: fold_weight_norm(value) if isinstance(value, dict) else value for name, value in params.items()}


def split_weight_norm(params: dict) -> dict:
    """The inverse of `fold_weight_norm`: each kernel of the generator as `weight_g`, its norm, and `weight_v`, itself.

    Embeddings and the duration predictor stay as they are, as in the released files.
    """

    def split(name: str, layer: dict) -> dict:
        if "kernel" not in layer:
            return {name: split(name, value) for name, value in layer.items()}
        rest = {name: value for name, value in layer.items() if name != "kernel"}
        _, inputs, outputs = layer["kernel"].shape
        shape = (1, inputs, 1) if name.startswith("ups_") else (1, 1, outputs)
        return {"weight_g": _norm(layer["kernel"], shape), "weight_v": layer["kernel"], **rest}

    plain = ("embedding", "duration_predictor")
    return {name: value if name.endswith(plain) else split(name, value) for name, value in params.items()}


def initialize(config: HifiGanConfig, key: Array) -> dict:
    """Fresh parameters for training, weight norm in two factors.

    Kernels after the first convolution have the published standard deviation of 0.01 in the published width. In
    narrower networks it grows, so that each layer amplifies as much.
    """
    params: Any = HifiGan(config).init(key, jnp.zeros((1, 1), jnp.int32))["params"]
    gain = math.sqrt(PUBLISHED_CHANNELS / config.upsample_initial_channel)

    def scaled(name: str, tree: dict) -> dict:
        if name in ("conv_pre", "duration_predictor") or name.endswith("embedding"):
            return tree
        return {
            part: scaled(part, leaf) if isinstance(leaf, dict) else leaf * gain if part == "kernel" else leaf
            for part, leaf in tree.items()
        }

    return split_weight_norm({name: scaled(name, tree) for name, tree in params.items()})


def _norm(kernel, shape: tuple[int, ...]):
    """The norm over the axes where the shape is 1. NumPy in, NumPy out: loading a checkpoint compiles nothing."""
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1)
    xp = np if isinstance(kernel, np.ndarray) else jnp
    return xp.sqrt(xp.sum(xp.square(kernel), axis=axes, keepdims=True))


class Convolution(nn.Module):
    """Convolution over time with a bias and zeros around."""

    features: int
    width: int
    dilation: int = 1

    @nn.compact
    def __call__(self, x_btc: Float[Array, "B T C"]) -> Float[Array, "B T O"]:
        shape = (self.width, x_btc.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.01), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return kernels.convolution(x_btc, kernel, self.dilation) + bias


class Upsampling(nn.Module):
    """Transposed convolution over time with a bias."""

    features: int
    width: int
    rate: int

    @nn.compact
    def __call__(self, x_btc: Float[Array, "B T C"]) -> Float[Array, "B T*rate O"]:
        shape = (self.width, x_btc.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.01), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return kernels.transposed_convolution(x_btc, kernel, self.rate) + bias


class VocoderLayers(NamedTuple):
    """The classes of the generator's convolutions.

    A platform that computes them faster from parameters in another form brings its own, as
    `spirit_jax.speech.released.hifigan_cpu` does.
    """

    convolution: type[nn.Module] = Convolution
    upsampling: type[nn.Module] = Upsampling


class ResBlock(nn.Module):
    """For each dilation, x + conv(lrelu(conv_dilated(lrelu(x)))), with zeros outside the utterance before each."""

    channels: int
    width: int
    dilations: tuple[int, ...]
    convolution: Callable[..., nn.Module] = Convolution

    @nn.compact
    def __call__(self, x_btc: Float[Array, "B T C"], window: Window) -> Float[Array, "B T C"]:
        for i, dilation in enumerate(self.dilations):
            first = self.convolution(self.channels, self.width, dilation, name=f"convs1_{i}")
            second = self.convolution(self.channels, self.width, name=f"convs2_{i}")
            h_btc = first(nn.leaky_relu(window.keep(x_btc), STAGE_SLOPE))
            h_btc = second(nn.leaky_relu(window.keep(h_btc), STAGE_SLOPE))
            x_btc = x_btc + h_btc
        return x_btc


class DurationPredictor(nn.Module):
    """Embeddings of units to their log durations."""

    hidden: int

    @nn.compact
    def __call__(self, x_bte: Float[Array, "B T E"], window: Window) -> Float[Array, "B T"]:
        h_bth = x_bte
        for i in (1, 2):
            h_bth = nn.relu(Convolution(self.hidden, 3, name=f"conv{i}")(window.keep(h_bth)))
            h_bth = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=f"ln{i}")(h_bth)
        return nn.Dense(1, name="proj")(h_bth)[..., 0]


def durations(log_durations: Float[Array, "..."]) -> Int[Array, "..."]:
    """Frames of each unit: exp(l) - 1 rounded half to even, at least 1."""
    return jnp.maximum(jnp.round(jnp.exp(log_durations) - 1.0), 1.0).astype(jnp.int32)


class HifiGan(nn.Module):
    """Unit vocoder. Methods for `apply`: `generate` (frames to audio) and `log_durations` (deduplicated units).

    `__call__` runs both, to initialize. Parameters are plain kernels: see `fold_weight_norm`.
    """

    config: HifiGanConfig
    layers: VocoderLayers = VocoderLayers()

    def setup(self) -> None:
        cfg = self.config

        def embedding(rows: int) -> nn.Embed:
            return nn.Embed(rows, cfg.embedding_dim, embedding_init=nn.initializers.normal(1.0))

        self.unit_embedding = embedding(cfg.num_embeddings)
        self.f0_embedding = embedding(cfg.num_f0_tokens) if cfg.num_f0_tokens else None
        self.style_embedding = embedding(cfg.num_style_tokens) if cfg.num_style_tokens else None
        self.speaker_embedding = embedding(cfg.num_speakers) if cfg.num_speakers else None
        self.global_style_embedding = embedding(cfg.num_styles) if cfg.num_styles else None
        self.duration_predictor = DurationPredictor(cfg.duration_hidden_dim) if cfg.duration_hidden_dim else None
        self.conv_pre = self.layers.convolution(cfg.upsample_initial_channel, 7)
        self.ups = [
            self.layers.upsampling(cfg.channels(stage), width, rate)
            for stage, (width, rate) in enumerate(zip(cfg.upsample_kernel_sizes, cfg.upsample_rates, strict=True))
        ]
        shapes = list(zip(cfg.resblock_kernel_sizes, cfg.resblock_dilation_sizes, strict=True))
        self.resblocks = [
            ResBlock(cfg.channels(stage), width, tuple(dilations), self.layers.convolution)
            for stage in range(len(cfg.upsample_rates))
            for width, dilations in shapes
        ]
        self.conv_post = self.layers.convolution(1, 7)

    def log_durations(
        self, units_bt: Int[Array, "B T"], first_b: Int[Array, " B"], last_b: Int[Array, " B"]
    ) -> Float[Array, "B T"]:
        """Predicted log(frames + 1) of each unit, which `durations` rounds; `first_b` and `last_b` as in `generate`.

        Receptive field: two units on each side.
        """
        assert self.duration_predictor is not None, "this vocoder has no duration predictor"
        window = Window(halo=(0, 0), first_b=first_b, last_b=last_b)
        return self.duration_predictor(self.unit_embedding(units_bt), window)

    def generate(
        self,
        units_bt: Int[Array, "B T"],
        f0_bt: Int[Array, "B T"] | None = None,
        styles_bt: Int[Array, "B T"] | None = None,
        speaker_b: Int[Array, " B"] | None = None,
        style_b: Int[Array, " B"] | None = None,
        first_b: Int[Array, " B"] | None = None,
        last_b: Int[Array, " B"] | None = None,
        context: tuple[int, int] = (0, 0),
    ) -> Float[Array, "B R"]:
        """Audio of frames of units, in [-1, 1].

        Args:
            units_bt, f0_bt, styles_bt: int32 codes of each frame, the last two for vocoders that read them.
            speaker_b, style_b: int32 rows of the speaker and global style tables, for vocoders that have them.
            first_b, last_b: frames of the row that belong to the utterance, first <= frame < last; None for all. The
                network hears silence outside, so that padding does not reach the audio.
            context: frames at the left and right end that are context only and get no audio. With `config.context`
                the audio equals that stretch of the whole utterance's audio.

        Returns:
            float32 [B, (T - context) * code_hop_size]. Samples outside the utterance are undefined.
        """
        x_btc = self.conditioning(units_bt, f0_bt, styles_bt, speaker_b, style_b)
        x_btc, window = self.begin(x_btc, first_b, last_b, context)
        for stage in range(len(self.ups)):
            x_btc, window = self.stage(stage, x_btc, window)
        return self.end(x_btc, window)

    def conditioning(
        self,
        units_bt: Int[Array, "B T"],
        f0_bt: Int[Array, "B T"] | None,
        styles_bt: Int[Array, "B T"] | None,
        speaker_b: Int[Array, " B"] | None,
        style_b: Int[Array, " B"] | None,
    ) -> Float[Array, "B T D"]:
        """The embeddings of every frame side by side: unit, pitch, style, speaker, global style; those that exist."""
        pairs = (
            (self.unit_embedding, units_bt),
            (self.f0_embedding, f0_bt),
            (self.style_embedding, styles_bt),
            (self.speaker_embedding, None if speaker_b is None else speaker_b[:, None]),
            (self.global_style_embedding, None if style_b is None else style_b[:, None]),
        )
        found = [table(ids) for table, ids in pairs if table is not None]
        shape = (*units_bt.shape, self.config.embedding_dim)
        return jnp.concatenate([jnp.broadcast_to(embedding, shape) for embedding in found], axis=-1)

    def begin(
        self,
        x_btd: Float[Array, "B T D"],
        first_b: Int[Array, " B"] | None,
        last_b: Int[Array, " B"] | None,
        context: tuple[int, int],
    ) -> tuple[Float[Array, "B T C"], Window]:
        """The first convolution of the conditioning, and the window of its frames; arguments as in `generate`."""
        batch, time, _ = x_btd.shape
        if first_b is None or last_b is None:
            first_b, last_b = jnp.zeros(batch, jnp.int32), jnp.full(batch, time)
        window = Window(halo=context, first_b=first_b - context[0], last_b=last_b - context[0])
        return self.conv_pre(window.keep(x_btd)), window

    def stage(self, stage: int, x_btc: Float[Array, "B T C"], window: Window) -> tuple[Float[Array, "B T C"], Window]:
        """One upsampling and the mean of its residual blocks."""
        cfg, blocks = self.config, len(self.config.resblock_kernel_sizes)
        needed, (left, right) = cfg.stage_context[stage : stage + 2]
        x_btc, window = window.crop(x_btc, needed)
        x_btc = self.ups[stage](nn.leaky_relu(window.keep(x_btc), STAGE_SLOPE))
        window = window.upsampled(cfg.upsample_rates[stage])
        x_btc, window = window.crop(x_btc, (left + cfg.reach, right + cfg.reach))
        residual_blocks = self.resblocks[stage * blocks : (stage + 1) * blocks]
        total_btc = functools.reduce(jnp.add, [block(x_btc, window) for block in residual_blocks])
        return total_btc / blocks, window

    def end(self, x_btc: Float[Array, "B T C"], window: Window) -> Float[Array, "B R"]:
        """The last convolution: the audio of the window without its context."""
        x_btc, window = window.crop(x_btc, self.config.stage_context[-1])
        x_bt1, window = window.crop(self.conv_post(nn.leaky_relu(window.keep(x_btc), FINAL_SLOPE)), (0, 0))
        return jnp.tanh(x_bt1[..., 0])

    def __call__(self, units_bt: Int[Array, "B T"]) -> tuple[Float[Array, "B R"], Float[Array, "B T"] | None]:
        """Audio and log durations of units in the first speaker and styles. It uses every parameter, for `init`."""
        zeros_b = jnp.zeros(units_bt.shape[0], jnp.int32)
        zeros_bt = jnp.zeros_like(units_bt)
        audio_br = self.generate(units_bt, zeros_bt, zeros_bt, zeros_b, zeros_b)
        has_durations = self.duration_predictor is not None
        return audio_br, self.log_durations(units_bt, zeros_b, zeros_b + units_bt.shape[1]) if has_durations else None
