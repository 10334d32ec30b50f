"""Which stretch of an utterance a vocoder's activations cover, and how much context they need to be exact.

A long utterance is spoken in windows, each with the frames around it that its audio depends on. The audio of a window
is then that of the whole utterance. Context that a later stage no longer needs is cut off.
"""

import dataclasses

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
