"""Attention in blocks of queries, all rows and heads at once: exact, for any platform, type and shape.

The scores of a few blocks exist at a time, [B, N, 512, S], instead of [B, N, T, S]. Accelerators use the causal form
where no fused kernel fits: in float32, or for a head size or length that the kernel does not take. Compiled for v5e,
value and gradient of two rows of 4096 positions with 16 heads of 64 need temporaries of 0.9 GiB, the formula needs 4.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from spirit_jax.core.arithmetic import ceil_div
from spirit_jax.kernels.reference import MASKED, masked_attention
from spirit_jax.kernels.remat import ATTENTION_RESIDUALS

QUERY_BLOCK = 512
"""Queries of a block. It bounds the scores of a 100 s chunk of speech, 5000 frames, to 512 x 5000 for each head."""

_SPANS = 4


def causal_attention(
    q_btnh: Float[Array, "B T N H"],
    k_btkh: Float[Array, "B T K H"],
    v_btkh: Float[Array, "B T K H"],
    segment_ids_bt: Int[Array, "B T"] | None = None,
    block: int = QUERY_BLOCK,
) -> Float[Array, "B T N H"]:
    """`reference.causal_attention` in a loop over blocks of queries, which the backward pass computes again.

    The scores of a few blocks exist at a time, and no [T, T] array is kept for the backward pass. The positions are cut
    into four spans, each with its own loop over the keys up to its own end, which saves three eighths of the scores.
    """
    length = q_btnh.shape[1]
    if length <= block:
        spans = [(0, length)]
    else:
        size = ceil_div(length, _SPANS)
        spans = [(first, min(first + size, length)) for first in range(0, length, size)]
    outputs = [_causal_span(q_btnh, k_btkh, v_btkh, segment_ids_bt, first, last, block) for first, last in spans]
    return checkpoint_name(jnp.concatenate(outputs, axis=1), ATTENTION_RESIDUALS)


def _causal_span(q_btnh, k_btkh, v_btkh, segment_ids_bt, first, last, block):
    """The output of the queries first..last - 1."""
    keys = jnp.arange(last)
    k_bskh, v_bskh = k_btkh[:, :last], v_btkh[:, :last]
    ids_bs = None if segment_ids_bt is None else segment_ids_bt[:, :last]
    count = ceil_div(last - first, block)
    size = ceil_div(last - first, count)

    def blocks(x_bt):
        """[B, T, ...] to [count, B, size, ...]."""
        padding = [(0, 0), (0, count * size - (last - first))] + [(0, 0)] * (x_bt.ndim - 2)
        x_bt = jnp.pad(x_bt[:, first:last], padding)
        return jnp.moveaxis(x_bt.reshape(len(x_bt), count, size, *x_bt.shape[2:]), 1, 0)

    @functools.partial(jax.checkpoint, prevent_cse=False)  # the body of a loop, which nothing is merged with
    def attend(queries):
        start, q_bqnh, ids_bq = queries
        mask_bqs = (start + jnp.arange(size)[:, None] >= keys)[None]
        if ids_bs is not None:
            mask_bqs &= ids_bq[:, :, None] == ids_bs[:, None, :]
        return masked_attention(q_bqnh, k_bskh, v_bskh, mask_bqs)

    ids_cbq = None if segment_ids_bt is None else blocks(segment_ids_bt)
    out_cbqnh = lax.map(attend, (first + size * jnp.arange(count), blocks(q_btnh), ids_cbq))
    out_btnh = jnp.moveaxis(out_cbqnh, 0, 1).reshape(len(q_btnh), count * size, *q_btnh.shape[2:])
    return out_btnh[:, : last - first]


def bidirectional_attention(
    q_btnh: Float[Array, "B T N H"],
    k_btnh: Float[Array, "B T N H"],
    v_btnh: Float[Array, "B T N H"],
    valid_bt: Bool[Array, "B T"],
    block: int = QUERY_BLOCK,
) -> Float[Array, "B T N H"]:
    """`reference.bidirectional_attention`, in a loop over blocks of queries where there are more than two.

    Heads come before time throughout, because XLA:CPU copies other layouts of a batched product's operands.
    """
    b, t, n, h = q_btnh.shape
    q_bnth, k_bnsh, v_bnsh = (jnp.moveaxis(x, 2, 1) for x in (q_btnh * h**-0.5, k_btnh, v_btnh))
    bias_bs = jnp.where(valid_bt, 0.0, MASKED)

    def attend(q_bnqh):
        scores_bnqs = jnp.einsum("bnqh,bnsh->bnqs", q_bnqh, k_bnsh) + bias_bs[:, None, None, :]
        weights_bnqs = jnp.exp(scores_bnqs - scores_bnqs.max(-1, keepdims=True))
        return jnp.einsum("bnqs,bnsh->bnqh", weights_bnqs, v_bnsh) / weights_bnqs.sum(-1, keepdims=True)

    if t <= 2 * block:
        out_bnth = attend(q_bnth)
    else:
        count = ceil_div(t, block)
        q_bnth = jnp.pad(q_bnth, ((0, 0), (0, 0), (0, count * block - t), (0, 0)))
        blocks_cbnqh = jnp.moveaxis(q_bnth.reshape(b, n, count, block, h), 2, 0)
        out_bncqh = jnp.moveaxis(lax.map(attend, blocks_cbnqh), 0, 2)
        out_bnth = out_bncqh.reshape(b, n, count * block, h)[:, :, :t]
    return jnp.moveaxis(out_bnth, 1, 2)
