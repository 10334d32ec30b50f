"""HiFi-GAN on speech units: the Base and Expressive vocoders of Spirit LM, and their duration predictor (FORMATS.md section 6).

Activations are `[B, T, C]` and kernels `[width, in, out]`, of transposed convolutions too. The network reads plain kernels.
Where weight normalisation matters, in checkpoints and training, a kernel is kept as its two factors:
`fold_weight_norm` multiplies them out (differentiable; inference does it once, on load) and `split_weight_norm` is its inverse.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from spirit_jax.kernels.convolution import (
    SPECTRUM_CHANNELS,
    SPECTRUM_TILE,
    SPECTRUM_WIDTH,
    convolve,
    convolve_by_spectrum,
    kernel_spectrum,
    phase_kernel,
    upsample,
)
from spirit_jax.kernels.platform import platform

STAGE_SLOPE = 0.1
FINAL_SLOPE = 0.01
"""Slopes of the leaky ReLUs inside the network and before its last convolution (PyTorch's default there)."""


TILE_FRAMES, TILE_CONTEXT = 64, 4
"""Frames that late stages run at a time, so that on CPU their activations stay in cache, and the most frames of context
that a stage may need to be one of them."""


@dataclasses.dataclass(frozen=True)
class HifiGanConfig:
    """Shape of a unit vocoder; the defaults are the released Base one's."""

    num_embeddings: int = 500
    """Phonetic units that the vocoder knows."""
    num_f0_tokens: int = 0
    """Pitch units; 0 for a vocoder that reads none."""
    num_style_tokens: int = 0
    """Style units; 0 for a vocoder that reads none."""
    num_speakers: int = 200
    """Rows of the speaker table; 0 for a single-speaker vocoder."""
    num_styles: int = 100
    """Rows of the table of global styles (Base); 0 for none."""
    embedding_dim: int = 128
    """Width of each embedding."""
    duration_hidden_dim: int = 128
    """Channels of the duration predictor; 0 for a vocoder without one."""
    upsample_rates: tuple[int, ...] = (5, 4, 4, 4, 2)
    """Upsampling of each stage; their product is the number of samples a frame."""
    upsample_kernel_sizes: tuple[int, ...] = (11, 8, 8, 8, 4)
    """Widths of the transposed convolutions."""
    upsample_initial_channel: int = 512
    """Channels before the first stage; every stage halves them."""
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    """Widths of the residual blocks that run side by side in each stage."""
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    """Dilations within each residual block."""
    sampling_rate: int = 16_000
    """Hz of the audio."""
    code_hop_size: int = 640
    """Samples of a phonetic unit: a frame."""
    f0_hop_size: int = 1280
    """Samples of a pitch unit."""
    style_hop_size: int = 16_000
    """Samples of a style unit."""

    def __post_init__(self):
        pairs = tuple(zip(self.upsample_kernel_sizes, self.upsample_rates, strict=True))
        if any(width < rate or (width - rate) % 2 for width, rate in pairs):
            raise ValueError(
                f"a stage must upsample by its rate exactly: kernel size - rate even and >= 0, found {pairs}"
            )
        if math.prod(self.upsample_rates) != self.code_hop_size:
            raise ValueError(
                f"upsample_rates {self.upsample_rates} must multiply to code_hop_size {self.code_hop_size}"
            )
        if any(width % 2 == 0 for width in self.resblock_kernel_sizes):
            raise ValueError(f"resblock_kernel_sizes must be odd, found {self.resblock_kernel_sizes}")
        if len(self.resblock_kernel_sizes) != len(self.resblock_dilation_sizes):
            raise ValueError("resblock_kernel_sizes and resblock_dilation_sizes must have one entry a block")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "HifiGanConfig":
        """Out of plain values, as JSON holds them.

        Raises:
            ValueError: a field that this config does not have, or values that do not go together.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown HiFi-GAN config field {unknown[0]}; known are {', '.join(sorted(known))}")

        def frozen(value):
            return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value

        return cls(**{name: frozen(value) for name, value in values.items()})

    @property
    def model_in_dim(self) -> int:
        """Channels of the conditioning: one embedding for each table."""
        tables = (self.num_embeddings, self.num_f0_tokens, self.num_style_tokens, self.num_speakers, self.num_styles)
        return self.embedding_dim * sum(size > 0 for size in tables)

    def channels(self, stage: int) -> int:
        """Channels within stage `stage`; stage -1 is what stands before the first."""
        return self.upsample_initial_channel // 2 ** (stage + 1)

    @property
    def reach(self) -> int:
        """Positions on either side that an output of a stage's residual blocks depends on."""
        return max(
            sum((width - 1) // 2 * (dilation + 1) for dilation in dilations)
            for width, dilations in zip(self.resblock_kernel_sizes, self.resblock_dilation_sizes, strict=True)
        )

    @property
    def context(self) -> tuple[int, int]:
        """How many frames before and after a frame its audio depends on: the receptive field, exactly."""
        left, right = stage_context(self)[0]
        return left + 3, right + 3  # conv_pre has 7 taps


def stage_context(config: HifiGanConfig) -> tuple[tuple[int, int], ...]:
    """Positions needed before and after the wanted stretch, at the input of each stage and of the last convolution.

    Entry i is counted at the input rate of stage i; a stretch starts and ends at frame boundaries. Found backwards: output
    t of a transposed convolution of width k, rate u, padding p reads inputs ceil((t + p - k + 1) / u) to floor((t + p) / u).
    """
    needed = [(3, 3)]  # conv_post has 7 taps
    for width, rate in zip(reversed(config.upsample_kernel_sizes), reversed(config.upsample_rates), strict=True):
        padding = (width - rate) // 2
        left, right = (side + config.reach for side in needed[0])
        needed.insert(0, ((width - 1 - padding + left) // rate, (right - 1 + padding) // rate + 1))
    return tuple(needed)


def tiled_from(config: HifiGanConfig) -> int:
    """The first stage whose context is at most `TILE_CONTEXT` frames."""
    rates = [math.prod(config.upsample_rates[:stage]) for stage in range(len(config.upsample_rates))]
    short = [sum(needed) <= TILE_CONTEXT * rate for needed, rate in zip(stage_context(config), rates, strict=False)]
    return short.index(True) if True in short else len(short)


def fold_weight_norm(params: dict) -> dict:
    """Every `{weight_g, weight_v}` as the kernel it stands for, `g * v / ||v||`; everything else as it is.

    `weight_v` is `[width, in, out]`; `weight_g` has size 1 in the dimensions that the norm is taken over: `[1, 1, out]`, or
    `[1, in, 1]` for a transposed convolution, where PyTorch's dimension 0 is the input.
    """
    if {"weight_g", "weight_v"} <= params.keys():
        rest = {name: value for name, value in params.items() if name not in ("weight_g", "weight_v")}
        weight_g, weight_v = params["weight_g"], params["weight_v"]
        return {"kernel": weight_v * (weight_g / _norm(weight_v, weight_g.shape)), **rest}
    return {name: fold_weight_norm(value) if isinstance(value, dict) else value for name, value in params.items()}


def split_weight_norm(params: dict) -> dict:
    """The inverse of `fold_weight_norm`: kernels of the generator as `weight_g` (their norm) and `weight_v` (themselves).

    As released, embeddings and the duration predictor stay as they are.
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


def _norm(kernel: Array, shape: tuple[int, ...]) -> Array:
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1)
    xp = (
        np if isinstance(kernel, np.ndarray) else jnp
    )  # NumPy in, NumPy out: nothing to compile when a checkpoint loads
    return xp.sqrt(xp.sum(xp.square(kernel), axis=axes, keepdims=True))


def prepare_for_cpu(params: dict, config: HifiGanConfig) -> dict:
    """Plain parameters of inference on CPU: forms that a kernel is brought into before it is used, made once.

    Wide kernels of many channels become spectra, which are faster there and equal up to rounding.
    """

    def prepare(name: str, layer: dict) -> dict:
        kernel = layer.get("kernel")
        if kernel is None:
            return {name: prepare(name, value) if isinstance(value, dict) else value for name, value in layer.items()}
        if name.startswith("ups_"):
            rate = config.upsample_rates[int(name.removeprefix("ups_"))]
            return {"phases": phase_kernel(np.asarray(kernel), rate), "bias": layer["bias"]}
        *width, inputs, outputs = kernel.shape  # a dense layer has no width
        if width and SPECTRUM_WIDTH <= width[0] <= SPECTRUM_TILE + 1 and min(inputs, outputs) >= SPECTRUM_CHANNELS:
            return {"spectrum": kernel_spectrum(np.asarray(kernel)), "bias": layer["bias"]}
        return layer

    return prepare("", params)


class Conv(nn.Module):
    """`convolve` with a bias; its kernel may have been prepared."""

    features: int
    width: int
    dilation: int = 1

    @nn.compact
    def __call__(self, x_btc):
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if self.has_variable("params", "spectrum"):  # from `prepare_for_cpu`
            spectrum = self.get_variable("params", "spectrum")
            return convolve_by_spectrum(x_btc, spectrum, self.width, self.dilation) + bias
        shape = (self.width, x_btc.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.01), shape)
        return convolve(x_btc, kernel, self.dilation) + bias


class Upsample(nn.Module):
    """`upsample` with a bias."""

    features: int
    width: int
    rate: int

    @nn.compact
    def __call__(self, x_btc):
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if self.has_variable("params", "phases"):  # from `prepare_for_cpu`
            phases = self.get_variable("params", "phases")
        else:
            shape = (self.width, x_btc.shape[-1], self.features)
            phases = phase_kernel(self.param("kernel", nn.initializers.normal(0.01), shape), self.rate)
        return upsample(x_btc, phases, self.width, self.rate) + bias


class ResBlock(nn.Module):
    """For each dilation `x += conv(lrelu(conv_dilated(lrelu(x))))`; `keep` puts zeros outside the utterance before each."""

    channels: int
    width: int
    dilations: tuple[int, ...]

    @nn.compact
    def __call__(self, x_btc, keep):
        for i, dilation in enumerate(self.dilations):
            h_btc = Conv(self.channels, self.width, dilation, name=f"convs1_{i}")(
                nn.leaky_relu(keep(x_btc), STAGE_SLOPE)
            )
            h_btc = Conv(self.channels, self.width, name=f"convs2_{i}")(nn.leaky_relu(keep(h_btc), STAGE_SLOPE))
            x_btc = x_btc + h_btc
        return x_btc


class DurationPredictor(nn.Module):
    """Log durations of units out of their embeddings."""

    hidden: int

    @nn.compact
    def __call__(self, x_bte, keep):
        h_bth = x_bte
        for i in (1, 2):
            h_bth = nn.relu(Conv(self.hidden, 3, name=f"conv{i}")(keep(h_bth)))
            h_bth = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=f"ln{i}")(h_bth)
        return nn.Dense(1, name="proj")(h_bth)[..., 0]


class HifiGan(nn.Module):
    """Unit vocoder. Methods for `apply`: `generate` (frames to audio) and `log_durations` (deduplicated units).

    `__call__` runs both, to initialise. Parameters are plain kernels: see `fold_weight_norm`.
    """

    config: HifiGanConfig

    def setup(self):
        cfg = self.config

        def table(rows):
            return nn.Embed(rows, cfg.embedding_dim, embedding_init=nn.initializers.normal(1.0)) if rows else None

        self.unit_embedding = table(cfg.num_embeddings)
        self.f0_embedding = table(cfg.num_f0_tokens)
        self.style_embedding = table(cfg.num_style_tokens)
        self.speaker_embedding = table(cfg.num_speakers)
        self.global_style_embedding = table(cfg.num_styles)
        self.duration_predictor = DurationPredictor(cfg.duration_hidden_dim) if cfg.duration_hidden_dim else None
        self.conv_pre = Conv(cfg.upsample_initial_channel, 7)
        self.ups = [
            Upsample(cfg.channels(stage), width, rate)
            for stage, (width, rate) in enumerate(zip(cfg.upsample_kernel_sizes, cfg.upsample_rates, strict=True))
        ]
        shapes = list(zip(cfg.resblock_kernel_sizes, cfg.resblock_dilation_sizes, strict=True))
        self.resblocks = [
            ResBlock(cfg.channels(stage), width, tuple(dilations))
            for stage in range(len(cfg.upsample_rates))
            for width, dilations in shapes
        ]
        self.conv_post = Conv(1, 7)

    def log_durations(
        self, units_bt: Int[Array, "B T"], first_b: Int[Array, " B"], last_b: Int[Array, " B"]
    ) -> Float[Array, "B T"]:
        """Predicted log(frames + 1) of each unit, `durations` rounds it; `first_b` and `last_b` as in `generate`.

        What it says of a unit depends on the two before and the two after it.
        """
        return self.duration_predictor(self.unit_embedding(units_bt), _keeper(first_b, last_b, units_bt.shape[1]))

    def conditioning(
        self,
        units_bt: Int[Array, "B T"],
        f0_bt: Int[Array, "B T"] | None,
        styles_bt: Int[Array, "B T"] | None,
        speaker_b: Int[Array, " B"] | None,
        style_b: Int[Array, " B"] | None,
    ) -> Float[Array, "B T D"]:
        """Embeddings of every frame side by side: unit, pitch, style, speaker, global style; those the vocoder has."""
        pairs = (
            (self.unit_embedding, units_bt),
            (self.f0_embedding, f0_bt),
            (self.style_embedding, styles_bt),
            (self.speaker_embedding, None if speaker_b is None else speaker_b[:, None]),
            (self.global_style_embedding, None if style_b is None else style_b[:, None]),
        )
        parts = [table(ids) for table, ids in pairs if table is not None]
        shape = (*units_bt.shape, self.config.embedding_dim)
        return jnp.concatenate([jnp.broadcast_to(part, shape) for part in parts], axis=-1)

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
            units_bt, f0_bt, styles_bt: int32 codes of each frame (the last two for vocoders that read them).
            speaker_b, style_b: int32 rows of the speaker and global style tables (for vocoders that have them).
            first_b, last_b: the frames of the row that belong to the utterance, `first <= frame < last`; all if None. What
                is outside is taken for silence before and after it, so padding does not reach the audio.
            context: frames at the left and the right end that are only there to be seen; they get no audio. With
                `config.context` the audio equals that stretch of the whole utterance's.

        Returns:
            float32 [B, (T - context) * code_hop_size]; what stands for frames outside the utterance means nothing.
        """
        cfg, batch = self.config, len(units_bt)
        if first_b is None:
            first_b, last_b = jnp.zeros(batch, jnp.int32), jnp.full(batch, units_bt.shape[1])
        x_btc = self.conditioning(units_bt, f0_bt, styles_bt, speaker_b, style_b)
        x_btc = self.conv_pre(_keeper(first_b, last_b, x_btc.shape[1])(x_btc))
        x, bounds = (x_btc, context), (first_b - context[0], last_b - context[0])
        late = tiled_from(cfg)
        for stage in range(late):
            x = self._stage(stage, *x, *bounds)
        frames = units_bt.shape[1] - sum(context)
        if frames <= TILE_FRAMES or platform() != "cpu":
            return self._finish(late, *x, *bounds)
        # Late stages look a few frames around: tile by tile, in a loop, their activations stay in cache and their memory is
        # used again instead of being asked for anew.
        (x_btc, halo), needed = x, stage_context(cfg)[late]
        x_btc, halo = _crop(x_btc, halo, needed)
        rate, tiles = math.prod(cfg.upsample_rates[:late]), -(-frames // TILE_FRAMES)
        left, right = (want - have for have, want in zip(halo, needed, strict=True))
        x_btc = jnp.pad(x_btc, ((0, 0), (left, right + (tiles * TILE_FRAMES - frames) * rate), (0, 0)))
        starts = range(0, tiles * TILE_FRAMES, TILE_FRAMES)
        length = TILE_FRAMES * rate + sum(needed)
        tiles_nbtc = jnp.stack([x_btc[:, start * rate : start * rate + length] for start in starts])
        bounds_nb = [jnp.stack([bound_b - start for start in starts]) for bound_b in bounds]
        rows = jax.tree.map(lambda leaf: leaf.reshape(-1, 1, *leaf.shape[2:]), (tiles_nbtc, *bounds_nb))
        loop = nn.scan(
            lambda network, _, row: (None, network._finish(late, row[0], needed, *row[1:])),
            variable_broadcast="params",
            split_rngs={"params": False},
        )
        audio_nbr = loop(self, None, rows)[1].reshape(tiles, batch, -1)
        return audio_nbr.swapaxes(0, 1).reshape(batch, -1)[:, : frames * cfg.code_hop_size]

    def _stage(self, stage: int, x_btc: Array, halo: tuple[int, int], begin_b: Array, end_b: Array):
        """Upsampling and residual blocks of a stretch with `halo` positions before and after it; what remains, with its halo.

        The utterance lies between frames `begin_b` and `end_b`, counted from the start of the stretch.
        """
        cfg, blocks = self.config, len(self.config.resblock_kernel_sizes)
        needed, wanted = stage_context(cfg)[stage : stage + 2]
        rate, up = math.prod(cfg.upsample_rates[:stage]), cfg.upsample_rates[stage]
        x_btc, halo = _crop(x_btc, halo, needed)
        keep = _keeper(begin_b * rate + halo[0], end_b * rate + halo[0], x_btc.shape[1])
        x_btc, halo = self.ups[stage](nn.leaky_relu(keep(x_btc), STAGE_SLOPE)), (halo[0] * up, halo[1] * up)
        x_btc, halo = _crop(x_btc, halo, tuple(side + cfg.reach for side in wanted))
        rate *= up
        keep = _keeper(begin_b * rate + halo[0], end_b * rate + halo[0], x_btc.shape[1])
        return sum(block(x_btc, keep) for block in self.resblocks[stage * blocks : (stage + 1) * blocks]) / blocks, halo

    def _finish(self, stage: int, x_btc: Array, halo: tuple[int, int], begin_b: Array, end_b: Array):
        """Stages from `stage` on and the last convolution: the audio of the stretch."""
        for later in range(stage, len(self.ups)):
            x_btc, halo = self._stage(later, x_btc, halo, begin_b, end_b)
        x_btc, halo = _crop(x_btc, halo, stage_context(self.config)[-1])
        rate = self.config.code_hop_size
        keep = _keeper(begin_b * rate + halo[0], end_b * rate + halo[0], x_btc.shape[1])
        x_btc = self.conv_post(nn.leaky_relu(keep(x_btc), FINAL_SLOPE))
        return jnp.tanh(_crop(x_btc, halo, (0, 0))[0][..., 0])

    def __call__(self, units_bt: Int[Array, "B T"]):
        """Audio and log durations of units in the first speaker and styles: touches every parameter, for `init`."""
        zeros_b = jnp.zeros(units_bt.shape[0], jnp.int32)
        zeros_bt = jnp.zeros_like(units_bt)
        audio_br = self.generate(units_bt, zeros_bt, zeros_bt, zeros_b, zeros_b)
        has_durations = self.duration_predictor is not None
        return audio_br, self.log_durations(units_bt, zeros_b, zeros_b + units_bt.shape[1]) if has_durations else None


def durations(log_durations: Float[Array, "..."]) -> Int[Array, "..."]:
    """Frames of each unit: exp(l) - 1 rounded half to even, at least 1."""
    return jnp.maximum(jnp.round(jnp.exp(log_durations) - 1.0), 1.0).astype(jnp.int32)


def _crop(x_btc: Array, halo: tuple[int, int], wanted: tuple[int, int]) -> tuple[Array, tuple[int, int]]:
    """No more than `wanted` positions of a halo, and how many these are."""
    left, right = (max(have - want, 0) for have, want in zip(halo, wanted, strict=True))
    return x_btc[:, left : x_btc.shape[1] - right], (halo[0] - left, halo[1] - right)


def _keeper(first_b, last_b, time: int):
    """A function that puts zeros outside positions `first <= t < last` of `[B, time, C]`."""
    t = jnp.arange(time)
    inside_bt = (first_b[:, None] <= t) & (t < last_b[:, None])
    return lambda x_btc: jnp.where(inside_bt[..., None], x_btc, 0.0)
