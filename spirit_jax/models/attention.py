"""Scaled dot-product attention with grouped queries, causal and by document.

`attention` is what models call: for training it takes the platform's own kernel (`flash_attention`) or
`blockwise_attention`, and `plain_attention`, the formula as it is written down, where queries stand at slots of a cache.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spirit_jax.models import flash_attention

# A score that is masked out: finite, so that a row of nothing else gives no NaN.
MASKED = float(jnp.finfo(jnp.float32).min)


def attention(
    q_btnh: Float[Array, "B T N H"],
    k_bskh: Float[Array, "B S K H"],
    v_bskh: Float[Array, "B S K H"],
    *,
    slots_bt: Int[Array, "B T"] | None = None,
    segment_ids_bt: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T N H"]:
    """Each query sees the keys at or before its own slot, and of its own document.

    Query head n reads key-value head n // (N // K). Scores are scaled by H**-0.5; their softmax is float32 whatever
    the inputs are; the result has the dtype of `q_btnh`.

    Args:
        slots_bt: where each query stands among the S keys. None: query t stands at key t (training; needs S = T).
        segment_ids_bt: document of each position, when S = T: a query sees keys of the same id only. Padding has an id
            of its own (0), so that no document sees it and its rows stay finite.
    """
    if slots_bt is None:
        kernel = flash_attention.kernel_for(q_btnh, k_bskh) or blockwise_attention
        return kernel(q_btnh, k_bskh, v_bskh, segment_ids_bt)
    mask_bts = jnp.arange(k_bskh.shape[1]) <= slots_bt[:, :, None]
    return plain_attention(q_btnh, k_bskh, v_bskh, mask_bts)


def plain_attention(
    q_btnh: Float[Array, "B T N H"],
    k_bskh: Float[Array, "B S K H"],
    v_bskh: Float[Array, "B S K H"],
    mask_bts: Array,
) -> Float[Array, "B T N H"]:
    """softmax(q k^T / sqrt(H)) v over the keys where the mask is true."""
    b, t, n, h = q_btnh.shape
    k = k_bskh.shape[2]
    q_btkgh = q_btnh.reshape(b, t, k, n // k, h)
    scores_bkgts = jnp.einsum("btkgh,bskh->bkgts", q_btkgh, k_bskh, preferred_element_type=jnp.float32) * h**-0.5
    scores_bkgts = jnp.where(mask_bts[:, None, None], scores_bkgts, MASKED)
    weights_bkgts = jax.nn.softmax(scores_bkgts, axis=-1).astype(v_bskh.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights_bkgts, v_bskh).reshape(b, t, n, h)


@jax.custom_vjp
def blockwise_attention(
    q_btnh: Float[Array, "B T N H"],
    k_btkh: Float[Array, "B T K H"],
    v_btkh: Float[Array, "B T K H"],
    segment_ids_bt: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T N H"]:
    """Causal attention by blocks of queries, each with the keys up to its own end and no others.

    Nothing of size T x T is kept for the backward pass, which computes each block's weights again from the logarithm
    of the softmax's denominator, and is written by hand so that no matrix of scores is ever transposed: on CPU those
    copies and the unneeded upper triangle made the plain formula three times slower.
    """
    return _forward(q_btnh, k_btkh, v_btkh, segment_ids_bt)[0]


def _blocks(length: int) -> list[tuple[int, int]]:
    """Up to eight spans of queries, of at least 128."""
    size = max(128, -(-length // 8))
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _block_scores(q_bkgch, k_bkhs, segment_ids_bt, first, last):
    """Masked float32 scores [B, K, G, C, S] of queries first..last (already scaled) with keys 0..last."""
    b, k, g, c, h = q_bkgch.shape
    scores = jnp.einsum(
        "bkrh,bkhs->bkrs", q_bkgch.reshape(b, k, g * c, h), k_bkhs, preferred_element_type=jnp.float32
    ).reshape(b, k, g, c, last)
    mask_bcs = (jnp.arange(first, last)[:, None] >= jnp.arange(last))[None]
    if segment_ids_bt is not None:
        mask_bcs &= segment_ids_bt[:, first:last, None] == segment_ids_bt[:, None, :last]
    return jnp.where(mask_bcs[:, None, None], scores, MASKED)


def _forward(q_btnh, k_btkh, v_btkh, segment_ids_bt):
    b, t, n, h = q_btnh.shape
    k = k_btkh.shape[2]
    g = n // k
    q_bkgth = jnp.transpose((q_btnh * h**-0.5).reshape(b, t, k, g, h), (0, 2, 3, 1, 4))
    k_bkht = jnp.transpose(k_btkh, (0, 2, 3, 1))
    v_bkth = jnp.transpose(v_btkh, (0, 2, 1, 3))
    outputs, logsumexps = [], []
    for first, last in _blocks(t):
        scores = _block_scores(q_bkgth[:, :, :, first:last], k_bkht[..., :last], segment_ids_bt, first, last)
        highest = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - highest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        weights = weights.astype(v_btkh.dtype).reshape(b, k, g * (last - first), last)
        output = jnp.einsum("bkrs,bksh->bkrh", weights, v_bkth[:, :, :last], preferred_element_type=jnp.float32)
        outputs.append(output.reshape(b, k, g, last - first, h) / total)
        logsumexps.append(highest + jnp.log(total))
    output = jnp.concatenate(outputs, axis=3).astype(q_btnh.dtype)
    residuals = (q_bkgth, k_bkht, v_bkth, output, jnp.concatenate(logsumexps, axis=3), segment_ids_bt)
    return jnp.transpose(output, (0, 3, 1, 2, 4)).reshape(b, t, n, h), residuals


def _backward(residuals, gradient_btnh):
    q_bkgth, k_bkht, v_bkth, output_bkgth, logsumexp_bkgt1, segment_ids_bt = residuals
    b, k, g, t, h = q_bkgth.shape
    dtype = q_bkgth.dtype
    gradient_bkgth = jnp.transpose(gradient_btnh.reshape(b, t, k, g, h), (0, 2, 3, 1, 4))
    # The softmax's backward pass subtracts the mean of the weights' gradients, which the output gives more cheaply.
    mean_bkgt1 = jnp.sum(gradient_bkgth.astype(jnp.float32) * output_bkgth, axis=-1, keepdims=True)
    k_bkth, v_bkht = jnp.swapaxes(k_bkht, 2, 3), jnp.swapaxes(v_bkth, 2, 3)
    q_gradients = []
    k_gradient_bkht = v_gradient_bkht = jnp.zeros((b, k, h, t), jnp.float32)
    for first, last in _blocks(t):
        rows = g * (last - first)
        block = (slice(None),) * 3 + (slice(first, last),)
        scores = _block_scores(q_bkgth[block], k_bkht[..., :last], segment_ids_bt, first, last)
        weights = jnp.exp(scores - logsumexp_bkgt1[block])
        gradient = gradient_bkgth[block].reshape(b, k, rows, h)
        change = jnp.einsum("bkrh,bkhs->bkrs", gradient, v_bkht[..., :last], preferred_element_type=jnp.float32)
        change = weights * (change.reshape(scores.shape) - mean_bkgt1[block])
        weights, change = (x.astype(dtype).reshape(b, k, rows, last) for x in (weights, change))
        # The large matrix stands on the right, its rows summed over: the one order that needs no transposed copy of it.
        v_gradient = jnp.einsum("bkrh,bkrs->bkhs", gradient, weights, preferred_element_type=jnp.float32)
        query = q_bkgth[block].reshape(b, k, rows, h)
        k_gradient = jnp.einsum("bkrh,bkrs->bkhs", query, change, preferred_element_type=jnp.float32)
        q_gradient = jnp.einsum("bkrs,bksh->bkrh", change, k_bkth[:, :, :last], preferred_element_type=jnp.float32)
        v_gradient_bkht = v_gradient_bkht.at[..., :last].add(v_gradient)
        k_gradient_bkht = k_gradient_bkht.at[..., :last].add(k_gradient)
        q_gradients.append(q_gradient.reshape(b, k, g, last - first, h))
    q_gradient_bkgth = jnp.concatenate(q_gradients, axis=3) * h**-0.5
    return (
        jnp.transpose(q_gradient_bkgth, (0, 3, 1, 2, 4)).reshape(b, t, k * g, h).astype(dtype),
        jnp.transpose(k_gradient_bkht, (0, 3, 1, 2)).astype(dtype),
        jnp.transpose(v_gradient_bkht, (0, 3, 1, 2)).astype(dtype),
        None,
    )


blockwise_attention.defvjp(_forward, _backward)
