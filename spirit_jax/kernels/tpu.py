"""Kernels of TPUs: JAX's splash attention, written in Pallas."""

import functools
import math
from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask
from jaxtyping import Array, Float, Int

from spirit_jax.kernels.common import attention as query_blocks
from spirit_jax.kernels.remat import ATTENTION_RESIDUALS

_LANES = 128  # the kernel works on multiples of it, in positions and in head features
_BLOCK_Q, _BLOCK_KV = 512, 1024  # positions at a time; the kernel skips blocks above the diagonal


def causal_attention(
    q_btnh: Float[Array, "B T N H"],
    k_btkh: Float[Array, "B T K H"],
    v_btkh: Float[Array, "B T K H"],
    segment_ids_bt: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T N H"]:
    """`reference.causal_attention` by splash attention where it takes the shape, else in blocks of queries."""
    kernel = splash_attention if splash_takes(q_btnh.shape) else query_blocks.causal_attention
    return kernel(q_btnh, k_btkh, v_btkh, segment_ids_bt)


def splash_takes(shape: tuple[int, ...]) -> bool:
    """Whether splash attention runs queries [B, T, N, H] of this shape: T and H must be multiples of 128."""
    _, length, _, head = shape
    return length % _LANES == 0 and head % _LANES == 0


@functools.cache
def _blocks(length: int) -> splash.BlockSizes:
    """The largest blocks up to the wanted ones that divide the length."""
    q, kv = (
        max(size for size in range(_LANES, most + 1, _LANES) if length % size == 0) for most in (_BLOCK_Q, _BLOCK_KV)
    )
    # one kernel for all three gradients: it computes the scores once more, not twice
    return splash.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=min(kv, _BLOCK_Q),
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=min(kv, _BLOCK_Q),
        use_fused_bwd_kernel=True,
    )


def splash_attention(
    q_btnh: Float[Array, "B T N H"],
    k_btkh: Float[Array, "B T K H"],
    v_btkh: Float[Array, "B T K H"],
    segment_ids_bt: Int[Array, "B T"] | None = None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """`reference.causal_attention` by JAX's Pallas kernel for TPU.

    Args:
        interpret: run the kernel's code on any platform, slowly, for tests.
    """
    t, n, h = q_btnh.shape[1:]
    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((t, t))] * n)
    kernel = splash.make_splash_mha(
        mask,
        block_sizes=_blocks(t),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=ATTENTION_RESIDUALS,
        interpret=interpret,
    )
    q_bnth, k_bkth, v_bkth = (jnp.swapaxes(x, 1, 2) for x in (q_btnh * h**-0.5, k_btkh, v_btkh))
    ids = None if segment_ids_bt is None else splash.SegmentIds(segment_ids_bt, segment_ids_bt)
    out_bnth = cast(Array, jax.vmap(kernel)(q_bnth, k_bkth, v_bkth, ids))  # alone: residuals are not asked for
    return jnp.swapaxes(out_bnth, 1, 2)


def kernel_flops(call: str, operands: Sequence[tuple[int, ...]]) -> float | None:
    """Floating-point operations that a compiled splash kernel executes; None for a call of another kernel.

    XLA's own cost analysis does not look inside a kernel. The kernel computes two products in the forward pass and
    five in the backward pass (two of them repeat the forward pass), over the blocks that the causal mask does not skip.

    Args:
        call: the kernel's name, and whatever else the compiled program says of the call.
        operands: shapes of its operands; the queries are the first one [..., N, T, H] with more than one head feature.
    """
    products = next((count for part, count in (("splash_mha_fwd", 2), ("splash_mha_dkv", 5)) if part in call), None)
    if products is None:
        return None
    *rows, length, head = next(dims for dims in operands if len(dims) >= 3 and dims[-1] % _LANES == 0)
    blocks = _blocks(length)
    q, kv = np.arange(0, length, blocks.block_q)[:, None], np.arange(0, length, blocks.block_kv)
    pairs = int((kv < q + blocks.block_q).sum()) * blocks.block_q * blocks.block_kv
    return products * 2.0 * math.prod(rows) * head * pairs
