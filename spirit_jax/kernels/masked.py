"""Statistics over the valid frames of clips of different lengths that share a batch."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

_BLOCK = 256


def valid_frames(frames_b: Int[Array, " B"], size: int) -> Bool[Array, "B T"]:
    """True where one of `size` frames is inside its clip, which has `frames_b` of them."""
    return jnp.arange(size) < frames_b[:, None]


def time_sum(x_btc: Float[Array, "B T C"]) -> Float[Array, "B 1 C"]:
    """Sum over time in blocks of 256 frames: one running float32 sum over a chunk of 100 s would lose three digits."""
    blocks = x_btc.shape[1] // _BLOCK
    head, tail = x_btc[:, : blocks * _BLOCK], x_btc[:, blocks * _BLOCK :]
    head = head.reshape(x_btc.shape[0], blocks, _BLOCK, x_btc.shape[2])
    return head.sum(2).sum(1, keepdims=True) + tail.sum(1, keepdims=True)


def standardize(x_btc: Float[Array, "B T C"], frames_b: Int[Array, " B"], eps: float) -> Float[Array, "B T C"]:
    """(x - mean) / sqrt(variance + eps) of each channel over the valid frames of its clip; padding becomes zero."""
    valid = valid_frames(frames_b, x_btc.shape[1])[:, :, None].astype(jnp.float32)
    count = frames_b[:, None, None].astype(jnp.float32)
    mean = time_sum(x_btc * valid) / count
    centered = (x_btc - mean) * valid
    variance = time_sum(jnp.square(centered)) / count
    return centered * lax.rsqrt(variance + eps)
