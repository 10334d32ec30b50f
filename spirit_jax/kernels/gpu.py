"""Kernels of GPUs: cuDNN's fused attention."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spirit_jax.kernels.common import attention as query_blocks

_LENGTH_MULTIPLE = 128
_HEAD_MULTIPLE, _LARGEST_HEAD = 8, 128


def causal_attention(
    q_btnh: Float[Array, "B T N H"],
    k_btkh: Float[Array, "B T K H"],
    v_btkh: Float[Array, "B T K H"],
    segment_ids_bt: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T N H"]:
    """`reference.causal_attention` by cuDNN where it takes the shape and type, else in blocks of queries."""
    fits = cudnn_takes(q_btnh.shape, q_btnh.dtype)
    return (cudnn_attention if fits else query_blocks.causal_attention)(q_btnh, k_btkh, v_btkh, segment_ids_bt)


def cudnn_takes(shape: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Whether cuDNN's kernel runs queries [B, T, N, H] of this shape and type."""
    _, length, _, head = shape
    fits = length % _LENGTH_MULTIPLE == 0 and head % _HEAD_MULTIPLE == 0 and head <= _LARGEST_HEAD
    return fits and dtype == jnp.bfloat16


def cudnn_attention(
    q_btnh: Float[Array, "B T N H"],
    k_btkh: Float[Array, "B T K H"],
    v_btkh: Float[Array, "B T K H"],
    segment_ids_bt: Int[Array, "B T"] | None = None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "B T N H"]:
    """`reference.causal_attention` by cuDNN, bfloat16 only.

    JAX's interface to cuDNN knows no segment ids. A mask [B, 1, T, T] for all heads keeps documents apart (32 MiB for
    a row of 4096 in bfloat16), so the kernel computes blocks of pairs from different documents and discards them.

    Args:
        implementation: `xla` runs the same call without a GPU, for tests.
    """
    mask = None if segment_ids_bt is None else (segment_ids_bt[:, None, :, None] == segment_ids_bt[:, None, None, :])
    return jax.nn.dot_product_attention(
        q_btnh, k_btkh, v_btkh, mask=mask, is_causal=True, implementation=implementation
    )
