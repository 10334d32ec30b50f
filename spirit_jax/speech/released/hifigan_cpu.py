"""CPU form of the HiFi-GAN vocoder: kernels prepared once, and late stages in tiles.

It computes what `models.hifigan.HifiGan` computes, up to rounding; a test holds the two together. The Base vocoder of
full size takes 0.86 CPU seconds for 256 frames (10.2 s of audio) in this form and 1.02 as the plain network: the
prepared kernels save 0.11, tiles 0.07. Tiles also bound the memory of the late stages.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from spirit_jax import kernels
from spirit_jax.core.arithmetic import ceil_div
from spirit_jax.kernels.common.convolution import phase_kernel, phase_shape, upsample_by_phases
from spirit_jax.kernels.cpu.convolution import (
    convolve_by_spectrum,
    gains_from_spectrum,
    kernel_spectrum,
    spectrum_shape,
)
from spirit_jax.kernels.platform import kernels_in_use
from spirit_jax.models.hifigan import HifiGan, VocoderLayers
from spirit_jax.models.hifigan_config import HifiGanConfig
from spirit_jax.models.hifigan_window import Window

Generate = Callable[..., Float[Array, "B R"]]
"""A method of `HifiGan` with the arguments of `HifiGan.generate`."""

TILE_FRAMES = 64
"""Frames of audio that the late stages make at a time, so that their activations stay in cache."""

TILE_CONTEXT = 4
"""The most frames of context, both sides together, that a late stage may need."""


class PreparedConvolution(nn.Module):
    """`models.hifigan.Convolution` whose kernel, where that is faster, is kept as its `spectrum`."""

    features: int
    width: int
    dilation: int = 1

    @nn.compact
    def __call__(self, x_btc: Float[Array, "B T C"]) -> Float[Array, "B T O"]:
        zeros, shape = nn.initializers.zeros, (self.width, x_btc.shape[-1], self.features)
        bias = self.param("bias", zeros, (self.features,))
        if gains_from_spectrum(*shape):
            spectrum = self.param("spectrum", zeros, spectrum_shape(*shape))
            return convolve_by_spectrum(x_btc, spectrum, self.width, self.dilation) + bias
        return kernels.convolution(x_btc, self.param("kernel", zeros, shape), self.dilation) + bias


class PreparedUpsampling(nn.Module):
    """`models.hifigan.Upsampling` whose kernel is kept as its `phases`."""

    features: int
    width: int
    rate: int

    @nn.compact
    def __call__(self, x_btc: Float[Array, "B T C"]) -> Float[Array, "B T*rate O"]:
        zeros, shape = nn.initializers.zeros, (self.width, x_btc.shape[-1], self.features)
        phases = self.param("phases", zeros, phase_shape(*shape, self.rate))
        bias = self.param("bias", zeros, (self.features,))
        return upsample_by_phases(x_btc, phases, self.width, self.rate) + bias


CPU_LAYERS = VocoderLayers(convolution=PreparedConvolution, upsampling=PreparedUpsampling)


def for_inference(config: HifiGanConfig, params: dict[str, Any]) -> tuple[HifiGan, Generate, dict[str, Any]]:
    """The network, its method that generates, and its parameters, in the form that the platform runs fastest.

    Args:
        params: plain kernels, as `fold_weight_norm` gives them. Accelerators take them as they are.
    """
    if kernels_in_use() == "cpu":
        return HifiGan(config, CPU_LAYERS), generate, prepare(params, config)
    return HifiGan(config), HifiGan.generate, params


def prepare(params: dict[str, Any], config: HifiGanConfig) -> dict[str, Any]:
    """Parameters of `HifiGan(config, CPU_LAYERS)` out of those of `HifiGan(config)`, with plain kernels."""

    def prepared(name: str, layer: dict[str, Any]) -> dict[str, Any]:
        if "kernel" not in layer:
            return {name: prepared(name, value) if isinstance(value, dict) else value for name, value in layer.items()}
        kernel = np.asarray(layer["kernel"])
        if name.startswith("ups_"):
            rate = config.upsample_rates[int(name.removeprefix("ups_"))]
            return {"phases": phase_kernel(kernel, rate), "bias": layer["bias"]}
        if kernel.ndim == 3 and gains_from_spectrum(*kernel.shape):  # a dense layer has two dimensions
            return {"spectrum": kernel_spectrum(kernel), "bias": layer["bias"]}
        return layer

    return prepared("", params)


def first_tiled_stage(config: HifiGanConfig) -> int:
    """The first stage whose context is at most `TILE_CONTEXT` frames, or the number of stages."""
    stages = range(len(config.upsample_rates))
    rates = [math.prod(config.upsample_rates[:stage]) for stage in stages]
    short = (stage for stage in stages if sum(config.stage_context[stage]) <= TILE_CONTEXT * rates[stage])
    return next(short, len(rates))


def generate(
    network: HifiGan,
    units_bt: Int[Array, "B T"],
    f0_bt: Int[Array, "B T"] | None = None,
    styles_bt: Int[Array, "B T"] | None = None,
    speaker_b: Int[Array, " B"] | None = None,
    style_b: Int[Array, " B"] | None = None,
    first_b: Int[Array, " B"] | None = None,
    last_b: Int[Array, " B"] | None = None,
    context: tuple[int, int] = (0, 0),
) -> Float[Array, "B R"]:
    """`HifiGan.generate` with the late stages tile by tile, as a method for `network.apply`.

    Late stages depend on a few frames around a frame. Tile by tile, in a loop, their activations stay in cache, and
    the loop uses the same memory again instead of asking for fresh pages.
    """
    config, late = network.config, first_tiled_stage(network.config)
    x_btc = network.conditioning(units_bt, f0_bt, styles_bt, speaker_b, style_b)
    x_btc, window = network.begin(x_btc, first_b, last_b, context)
    for stage in range(late):
        x_btc, window = network.stage(stage, x_btc, window)
    batch, frames = len(units_bt), units_bt.shape[1] - sum(context)
    if frames <= TILE_FRAMES:
        return _finish(network, late, x_btc, window)

    needed = config.stage_context[late]
    x_btc, window = window.crop(x_btc, needed)
    rate, tiles = window.rate, ceil_div(frames, TILE_FRAMES)
    left, right = (want - have for have, want in zip(window.halo, needed, strict=True))
    x_btc = jnp.pad(x_btc, ((0, 0), (left, right + (tiles * TILE_FRAMES - frames) * rate), (0, 0)))
    starts = range(0, tiles * TILE_FRAMES, TILE_FRAMES)
    length = TILE_FRAMES * rate + sum(needed)
    tiles_nbtc = jnp.stack([x_btc[:, start * rate : start * rate + length] for start in starts])
    bounds_nb = [jnp.stack([bound_b - start for start in starts]) for bound_b in (window.first_b, window.last_b)]
    # one tile of one row at a time
    rows = jax.tree.map(lambda leaf: leaf.reshape(-1, 1, *leaf.shape[2:]), (tiles_nbtc, *bounds_nb))

    def finish(network, _, row):
        x_1tc, first_1, last_1 = row
        return None, _finish(network, late, x_1tc, Window(halo=needed, first_b=first_1, last_b=last_1, rate=rate))

    loop = nn.scan(finish, variable_broadcast="params", split_rngs={"params": False})
    audio_nbr = loop(network, None, rows)[1].reshape(tiles, batch, -1)
    return audio_nbr.swapaxes(0, 1).reshape(batch, -1)[:, : frames * config.code_hop_size]


def _finish(network: HifiGan, stage: int, x_btc: Float[Array, "B T C"], window: Window) -> Float[Array, "B R"]:
    """The stages from `stage` on, and the end."""
    for later in range(stage, len(network.config.upsample_rates)):
        x_btc, window = network.stage(later, x_btc, window)
    return network.end(x_btc, window)
