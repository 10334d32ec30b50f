"""FCPE, the convolutional pitch estimator: waveform to F0 at 100 Hz, and to the pitch quantizer's contour at 200 Hz.

Log-mel frames, a stack of gated depthwise convolution blocks, a sigmoid over 360 pitch bins, and the mean cents of the
bins around the best one. Numerics are those of torchfcpe 0.0.4 (MIT, CN_ChiTu 2023; docs/formats.md, "Pitch"). Clips of
different lengths share a batch: padding is zeroed before every convolution, and the norm over time sees valid frames
only, so that each clip gives what it gives alone.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int

from spirit_jax import kernels
from spirit_jax.core.arithmetic import ceil_div
from spirit_jax.kernels.masked import standardize, valid_frames
from spirit_jax.models.mel import log_magnitudes, mel_filters

HOP, WINDOW, NUM_MELS = 160, 1024, 128
"""Samples from one log-mel frame to the next and within one, and the number of mel bands."""

PITCH_HOP = 80
"""Samples from one frame of the quantizer's contour to the next: 200 Hz."""

LOWEST_F0, HIGHEST_F0 = 50.0, 1100.0
"""In Hz: F0 below the first is unvoiced, and above the second is clipped."""

CONFIDENCE = 0.05
"""A frame has no pitch where the likelihood of the best bin is at or below this."""


@dataclasses.dataclass(frozen=True)
class FCPEConfig:
    """The shape of the network. The defaults are those of the weights that torchfcpe bundles."""

    hidden_size: int = 512
    """Width of the network."""
    num_layers: int = 6
    """Number of convolution blocks."""
    num_bins: int = 360
    """Number of pitch bins."""
    kernel_size: int = 31
    """Width of the depthwise convolutions, in frames."""
    norm_groups: int = 4
    """Groups of the norm in the input stack."""


def log_mel(
    audio_br: Float[Array, "B R"], lengths_b: Int[Array, " B"]
) -> tuple[Float[Array, "B T 128"], Int[Array, " B"]]:
    """Log-magnitude mel frames and how many each clip has: length // 160 + 1, of which the last repeats the one before.

    Clips are reflected at both ends, or padded with zeros where they are not longer than the pad. Every clip must have
    at least 160 samples.
    """
    pad = (WINDOW - HOP) // 2
    steps = audio_br.shape[1] // HOP
    blocks = ceil_div(WINDOW, HOP)
    lengths = lengths_b[:, None]
    position = jnp.arange((steps + blocks - 1) * HOP)[None] - pad
    source = jnp.abs(position)
    source = jnp.where(source < lengths, source, 2 * (lengths - 1) - source)
    mirrored = (position >= 0) & (position < lengths) | (position < lengths + pad) & (lengths > pad)
    audio = jnp.take_along_axis(audio_br, jnp.clip(source, 0, audio_br.shape[1] - 1), axis=1)
    audio = jnp.where(mirrored, audio, 0.0).reshape(audio.shape[0], -1, HOP)
    frames = jnp.concatenate([audio[:, i : i + steps] for i in range(blocks)], axis=-1)[..., :WINDOW]
    mel = log_magnitudes(frames, mel_filters(NUM_MELS, WINDOW))
    count = lengths_b // HOP
    index = jnp.minimum(jnp.arange(steps + 1)[None], count[:, None] - 1)
    return jnp.take_along_axis(mel, index[:, :, None], axis=1), count + 1


class ConvBlock(nn.Module):
    """Residual block: layer norm, gated expansion, depthwise convolution, SiLU, projection."""

    config: FCPEConfig

    @nn.compact
    def __call__(
        self, x_btc: Float[Array, "B T C"], valid_bt1: Float[Array, "B T 1"]
    ) -> tuple[Float[Array, "B T C"], None]:
        """The carry of `nn.scan` after this block; `valid_bt1` is 1 inside each clip and 0 in its padding."""
        size, width = self.config.hidden_size, self.config.kernel_size
        h = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="norm")(x_btc)
        h, gate = jnp.split(nn.Dense(4 * size, name="up")(h), 2, axis=-1)
        h = h * jax.nn.sigmoid(gate) * valid_bt1
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (width, 2 * size))
        bias = self.param("bias", nn.initializers.zeros, (2 * size,))
        h = kernels.convolution(h, kernel[:, None], groups=2 * size) + bias
        return x_btc + nn.Dense(size, name="down")(jax.nn.silu(h)), None


class FCPE(nn.Module):
    """Log-mel frames to a likelihood of each pitch bin.

    `apply(variables, mel_btm, frames_b)` gives float32 [B, T, K] in 0..1. The parameter `cent_table` [K], which
    `f0_from_bins` reads, is the pitch of each bin in cents above 10 Hz.
    """

    config: FCPEConfig = FCPEConfig()

    @nn.compact
    def __call__(self, mel_btm: Float[Array, "B T M"], frames_b: Int[Array, " B"]) -> Float[Array, "B T K"]:
        config = self.config
        size, groups = config.hidden_size, config.norm_groups
        lowest, highest = 1200 * math.log2(3.27), 1200 * math.log2(197.55)  # cents above 10 Hz
        self.param("cent_table", lambda *_: jnp.linspace(lowest, highest, config.num_bins))
        batch, time, mels = mel_btm.shape
        valid = valid_frames(frames_b, time)[:, :, None].astype(jnp.float32)

        init = nn.initializers.lecun_normal()
        x = kernels.convolution(mel_btm * valid, self.param("conv_0", init, (3, mels, size)))
        x = x + self.param("bias_0", nn.initializers.zeros, (size,))
        # The group norm is over the frames and channels of a group, so these are laid out as one axis.
        x = jnp.moveaxis(x.reshape(batch, time, groups, -1), 2, 1).reshape(batch * groups, -1, 1)
        x = standardize(x, jnp.repeat(frames_b * (size // groups), groups), 1e-5)
        x = jnp.moveaxis(x.reshape(batch, groups, time, -1), 1, 2).reshape(batch, time, size)
        scale = self.param("norm_scale", nn.initializers.ones, (size,))
        x = nn.leaky_relu(x * scale + self.param("norm_bias", nn.initializers.zeros, (size,)), 0.01) * valid
        x = kernels.convolution(x, self.param("conv_1", init, (3, size, size)))
        x = x + self.param("bias_1", nn.initializers.zeros, (size,))

        blocks = nn.scan(
            ConvBlock,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType] - flax says int
            length=config.num_layers,
        )
        x, _ = blocks(config, name="blocks")(x, valid)
        x = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="norm")(x)
        kernel = self.param("output_kernel", init, (size, config.num_bins))
        gain = self.param("output_gain", nn.initializers.ones, (config.num_bins,))
        kernel = kernel * (gain * lax.rsqrt(jnp.sum(jnp.square(kernel), axis=0)))
        return jax.nn.sigmoid(x @ kernel + self.param("output_bias", nn.initializers.zeros, (config.num_bins,)))


def f0_from_bins(likelihood_btk: Float[Array, "B T K"], cent_table_k: Float[Array, " K"]) -> Float[Array, "B T"]:
    """F0 in Hz from the likelihood-weighted mean cents of the nine bins around the best; 0 where no bin is confident.

    Bins past either end repeat the last bin, as in torchfcpe.
    """
    best = jnp.argmax(likelihood_btk, -1)
    index = jnp.clip(best[..., None] + jnp.arange(-4, 5), 0, cent_table_k.shape[0] - 1)
    weight = jnp.take_along_axis(likelihood_btk, index, axis=-1)
    cents = jnp.sum(jnp.take(cent_table_k, index) * weight, -1) / jnp.sum(weight, -1)
    return jnp.where(jnp.max(likelihood_btk, -1) > CONFIDENCE, 10.0 * jnp.exp2(cents / 1200.0), 0.0)


def contour(
    f0_bt: Float[Array, "B T"], lengths_b: Int[Array, " B"], samples: int, interpolate: bool
) -> tuple[Float[Array, "B S"], Float[Array, "B S"], Int[Array, " B"]]:
    """F0 at 100 Hz to the quantizer's contour at 200 Hz: F0 in Hz, voicing (0 or 1), and frames of each clip.

    A frame below 50 Hz is unvoiced. F0 is clipped at 1100 Hz. A clip without a voiced frame, on which the reference
    fails, has F0 0 throughout. F0 and voicing are 0 past a clip's frames.

    Args:
        lengths_b: samples of each clip.
        samples: padded length of the clips; the contour has S = samples // 80 + 1 frames.
        interpolate: give unvoiced frames the line between their voiced neighbors, and hold the nearest voiced value at
            the ends.
    """
    time = f0_bt.shape[1]
    frames = lengths_b // HOP + 1
    inside = jnp.arange(time)[None] < frames[:, None]
    voiced = (f0_bt >= LOWEST_F0) & inside
    if interpolate:
        here = jnp.arange(time)[None]
        left = lax.cummax(jnp.where(voiced, here, -1), axis=1)
        right = lax.cummin(jnp.where(voiced, here, time), axis=1, reverse=True)
        left, right = jnp.where(left < 0, right, left), jnp.where(right == time, left, right)
        at_left, at_right = (jnp.take_along_axis(f0_bt, jnp.clip(side, 0, time - 1), axis=1) for side in (left, right))
        span = jnp.maximum(right - left, 1)
        f0 = jnp.where(voiced, f0_bt, at_left + (here - left) * (at_right - at_left) / span)
        f0_bt = jnp.where(voiced.any(1, keepdims=True), f0, 0.0)
    f0_bt = jnp.minimum(f0_bt, HIGHEST_F0)
    count = lengths_b // PITCH_HOP + 1
    step = jnp.arange(samples // PITCH_HOP + 1)[None]
    source = jnp.minimum(step * frames[:, None] // count[:, None], time - 1)
    keep = step < count[:, None]
    f0, voiced = (
        jnp.where(keep, jnp.take_along_axis(x.astype(jnp.float32), source, axis=1), 0.0) for x in (f0_bt, voiced)
    )
    return f0, voiced, count
