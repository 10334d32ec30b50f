"""Which stretch of an utterance a vocoder's activations cover, and how much context they need to be exact.

A long utterance is spoken in windows, each with the frames around it that its audio depends on. The audio of a window
is then that of the whole utterance. Context that a later stage no longer needs is cut off.
"""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Window:
    """The stretch of an utterance that activations [B, T, C] cover."""

    halo: tuple[int, int]
    """Positions of context before and after the stretch; T counts them."""
    first_b: Int[Array, " B"]
    """Frame at which the utterance begins, counted from the start of the stretch; may be negative."""
    last_b: Int[Array, " B"]
    """Frame after the utterance's last one, counted in the same way."""
    rate: int = 1
    """Positions of a frame."""

    def keep(self, x_btc: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        """The activations with zeros outside the utterance, where the network hears silence."""
        t = jnp.arange(x_btc.shape[1]) - self.halo[0]
        inside_bt = (self.first_b[:, None] * self.rate <= t) & (t < self.last_b[:, None] * self.rate)
        return jnp.where(inside_bt[..., None], x_btc, 0.0)

    def crop(self, x_btc: Float[Array, "B T C"], halo: tuple[int, int]) -> "tuple[Float[Array, 'B T C'], Window]":
        """The activations with at most this much context, and their window."""
        left, right = (max(have - want, 0) for have, want in zip(self.halo, halo, strict=True))
        cropped = dataclasses.replace(self, halo=(self.halo[0] - left, self.halo[1] - right))
        return x_btc[:, left : x_btc.shape[1] - right], cropped

    def upsampled(self, rate: int) -> "Window":
        """The window after upsampling by `rate`."""
        return dataclasses.replace(self, halo=(self.halo[0] * rate, self.halo[1] * rate), rate=self.rate * rate)


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
