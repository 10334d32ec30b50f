"""A small convolutional network from log-mel features to CTC symbols, for aligners trained on the corpus at hand.

Each output sees a fraction of a second around it and nothing else. A narrow view keeps symbols near the sounds that
they spell, and lets audio of any length run in windows with exact results.
"""

import dataclasses

import jax
from flax import linen as nn
from jaxtyping import Array, Float, Int

from spirit_jax.kernels.masked import valid_frames


@dataclasses.dataclass(frozen=True)
class MelCTCConfig:
    """The shape of a `MelCTC` network."""

    symbols: int
    """Output symbols, the blank included."""
    bands: int = 40
    """Mel bands of the input."""
    stride: int = 2
    """Input frames that one position of the hidden layers covers."""
    width: int = 128
    """Channels of the hidden layers."""
    kernel: int = 3
    """Positions that a convolution reads."""
    layers: int = 3
    """Residual layers. With three, an output sees 80 ms on each side; more lets symbols drift from their sounds."""

    @property
    def context(self) -> int:
        """Input frames on each side of an output that it depends on, at most."""
        return self.stride * (self.kernel // 2 * self.layers + 1)


class MelCTC(nn.Module):
    """Log-mel features [B, T, bands] to logits [B, T, symbols], one for each input frame.

    T must be a multiple of the stride. A clip gives what it gives alone, whatever shares its batch.
    """

    config: MelCTCConfig

    @nn.compact
    def __call__(self, mel_btc: Float[Array, "B T C"], frames_b: Int[Array, " B"]) -> Float[Array, "B T symbols"]:
        """Logits; those of frames outside a clip, which has `frames_b` of them, are undefined."""
        c = self.config
        batch, time, _ = mel_btc.shape
        mel_btc = mel_btc * valid_frames(frames_b, time)[:, :, None]
        x_bpd = nn.Dense(c.width, name="input")(mel_btc.reshape(batch, time // c.stride, c.stride * c.bands))
        valid_bp1 = valid_frames(-(-frames_b // c.stride), time // c.stride)[:, :, None]
        for index in range(c.layers):
            h_bpd = nn.LayerNorm(name=f"norm_{index}")(x_bpd) * valid_bp1
            h_bpd = nn.Conv(c.width, (c.kernel,), name=f"conv_{index}")(h_bpd)
            x_bpd = x_bpd + nn.Dense(c.width, name=f"out_{index}")(jax.nn.gelu(h_bpd))
        y = nn.Dense(c.stride * c.symbols, name="output")(nn.LayerNorm(name="output_norm")(x_bpd))
        return y.reshape(batch, time, c.symbols)
