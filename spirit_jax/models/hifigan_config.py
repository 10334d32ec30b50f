"""The shapes of a unit HiFi-GAN, its discriminators and the spectrum that it is trained on. Nothing starts JAX."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


@dataclasses.dataclass(frozen=True)
class HifiGanConfig:
    """Shape of a unit vocoder. The defaults are those of the released Base vocoder."""

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
    """Upsampling of each stage; their product is the number of samples of a frame."""
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

    def __post_init__(self) -> None:
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
        """The config with these fields, as JSON holds them.

        Raises:
            ValueError: a field that this config does not have, or values that do not fit together.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown HiFi-GAN config field {unknown[0]}; known are {', '.join(sorted(known))}")

        def frozen(value: Any) -> Any:
            return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value

        return cls(**{name: frozen(value) for name, value in values.items()})

    @property
    def model_in_dim(self) -> int:
        """Channels of the conditioning: one embedding for each table."""
        tables = (self.num_embeddings, self.num_f0_tokens, self.num_style_tokens, self.num_speakers, self.num_styles)
        return self.embedding_dim * sum(size > 0 for size in tables)

    def channels(self, stage: int) -> int:
        """Channels within stage `stage`; -1 gives those before the first stage."""
        return self.upsample_initial_channel // 2 ** (stage + 1)

    @property
    def reach(self) -> int:
        """Positions on either side that an output of a stage's residual blocks depends on."""
        return residual_reach(self.resblock_kernel_sizes, self.resblock_dilation_sizes)

    @property
    def stage_context(self) -> tuple[tuple[int, int], ...]:
        """Context that each stage needs, as `hifigan_window.stage_context` counts it."""
        return stage_context(self.upsample_kernel_sizes, self.upsample_rates, self.reach)

    @property
    def context(self) -> tuple[int, int]:
        """Exact receptive field: numbers of frames before and after a frame that its audio depends on."""
        left, right = self.stage_context[0]
        return left + 3, right + 3  # the first convolution has 7 taps


def residual_reach(widths: Sequence[int], dilations: Sequence[Sequence[int]]) -> int:
    """Positions on each side that residual blocks side by side depend on, each with two convolutions a dilation."""
    return max(
        sum((width - 1) // 2 * (dilation + 1) for dilation in block)
        for width, block in zip(widths, dilations, strict=True)
    )


def stage_context(widths: Sequence[int], rates: Sequence[int], reach: int) -> tuple[tuple[int, int], ...]:
    """Positions that each stage needs before and after the wanted stretch, which starts and ends at frame boundaries.

    Entry i is counted at the input of stage i, the last entry at the input of the last convolution, which has 7 taps.

    Args:
        widths, rates: of the transposed convolutions.
        reach: positions on each side that the residual blocks of a stage depend on.
    """
    needed = [(3, 3)]
    # Output t of a transposed convolution of width k, rate u and padding p reads the inputs from
    # ceil((t + p - k + 1) / u) to floor((t + p) / u).
    for width, rate in zip(reversed(widths), reversed(rates), strict=True):
        padding = (width - rate) // 2
        left, right = (side + reach for side in needed[0])
        needed.insert(0, ((width - 1 - padding + left) // rate, (right - 1 + padding) // rate + 1))
    return tuple(needed)


FULL_CHANNELS = 1024
"""Channels of the widest layers of a discriminator as published."""


class Layer(NamedTuple):
    """One convolution over time, with zeros on both sides."""

    channels: int
    width: int
    stride: int = 1
    groups: int = 1


PERIOD_LAYERS = (Layer(32, 5, 3), Layer(128, 5, 3), Layer(512, 5, 3), Layer(1024, 5, 3), Layer(1024, 5))
"""Layers of a period discriminator before its scores, as published."""
SCALE_LAYERS = (
    Layer(128, 15),
    Layer(128, 41, 2, 4),
    Layer(256, 41, 2, 16),
    Layer(512, 41, 4, 16),
    Layer(1024, 41, 4, 16),
    Layer(1024, 41, 1, 16),
    Layer(1024, 5),
)
"""Layers of a scale discriminator before its scores, as published."""
SCORES = Layer(1, 3)
"""The last convolution of a discriminator, whose outputs are its scores."""


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Shape of the discriminators. The defaults are the published ones, 70.7 M parameters."""

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    """Period of each multi-period discriminator, in samples."""
    scales: int = 3
    """Scale discriminators; each hears the audio at half the rate of the one before."""
    channels: int = FULL_CHANNELS
    """Channels of the widest layers. All others, and the number of groups, shrink in proportion."""

    def __post_init__(self) -> None:
        if any(period < 1 for period in self.periods) or self.scales < 0 or not (self.periods or self.scales):
            raise ValueError(f"expected positive periods or scales, found periods {self.periods}, scales {self.scales}")
        if self.channels < 32 or FULL_CHANNELS % self.channels:
            raise ValueError(f"discriminator channels must be a power of two from 32 to 1024, found {self.channels}")

    def resized(self, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
        """The layers at this width."""
        part = FULL_CHANNELS // self.channels
        return tuple(
            layer._replace(channels=layer.channels // part, groups=max(layer.groups // part, 1)) for layer in layers
        )


@dataclasses.dataclass(frozen=True)
class MelConfig:
    """The spectrum that vocoders are trained on. The defaults are those of HiFi-GAN and of the Expresso recipe."""

    bands: int = 80
    """Mel bands from 0 to 8 kHz."""
    window: int = 1024
    """Samples of a frame and of its Fourier transform."""
    hop: int = 256
    """Samples from one frame to the next."""

    def __post_init__(self) -> None:
        if self.bands < 1 or self.hop < 1 or self.window % self.hop or (self.window - self.hop) % 2:
            raise ValueError(
                f"mel: window must be a multiple of hop, and their difference even; found bands {self.bands}, "
                f"window {self.window}, hop {self.hop}"
            )
