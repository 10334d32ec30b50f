"""Scaled dot-product attention with grouped queries, causal and by document.

`attention` is what models call: for training it takes the platform's own kernel (`flash_attention`) or
`blockwise_attention`, and `plain_attention`, the formula as it is written down, where queries stand at slots of a cache.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spirit_jax.kernels import flash_attention

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
        kernel = flash_attention.kernel_for(q_btnh, k_bskh) or flash_attention.sharded(blockwise_attention)
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
    of the softmax's denominator. One key-value head of one row is worked through at a time, so that its scores stay in
    a CPU's cache, and the backward pass is written by hand so that no matrix of scores is ever transposed.
    """
    return _forward(q_btnh, k_btkh, v_btkh, segment_ids_bt)[0]


def _blocks(length: int) -> list[tuple[int, int]]:
    """Up to eight spans of queries, of at least 128."""
    size = max(128, -(-length // 8))
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _by_head(x_btnh: Float[Array, "B T N H"], kv_heads: int) -> Float[Array, "B*K T*G H"]:
    """The G query heads of each key-value head together, those of a position side by side."""
    b, t, n, h = x_btnh.shape
    return jnp.swapaxes(x_btnh.reshape(b, t, kv_heads, -1), 1, 2).reshape(b * kv_heads, t * (n // kv_heads), h)


def _by_row(x_zrh: Float[Array, "B*K T*G H"], rows: int, length: int) -> Float[Array, "B T N H"]:
    h = x_zrh.shape[2]
    return jnp.swapaxes(x_zrh.reshape(rows, -1, length, x_zrh.shape[1] // length * h), 1, 2).reshape(
        rows, length, -1, h
    )


def _ids_by_head(segment_ids_bt, kv_heads):
    return None if segment_ids_bt is None else jnp.repeat(segment_ids_bt, kv_heads, axis=0)


def _block_scores(q_rh, k_sh, ids_t, first, last):
    """Masked float32 scores [R, S] of the queries at first..last (already scaled) with keys 0..last."""
    scores = jnp.einsum("rh,sh->rs", q_rh, k_sh, preferred_element_type=jnp.float32)
    group = q_rh.shape[0] // (last - first)
    mask_rs = jnp.repeat(jnp.arange(first, last), group)[:, None] >= jnp.arange(last)
    if ids_t is not None:
        mask_rs &= jnp.repeat(ids_t[first:last], group)[:, None] == ids_t[:last]
    return jnp.where(mask_rs, scores, MASKED)


def _forward(q_btnh, k_btkh, v_btkh, segment_ids_bt):
    b, t, _, h = q_btnh.shape
    kv_heads = k_btkh.shape[2]
    q, k, v = (_by_head(x, kv_heads) for x in (q_btnh * h**-0.5, k_btkh, v_btkh))
    ids = _ids_by_head(segment_ids_bt, kv_heads)
    output, logsumexp = jax.lax.map(lambda head: _forward_head(*head), (q, k, v, ids))
    output = output.astype(q_btnh.dtype)
    return _by_row(output, b, t), (q, k, v, output, logsumexp, segment_ids_bt)


def _forward_head(q_rh, k_th, v_th, ids_t):
    """Output [T*G, H] and logarithm of the denominator [T*G, 1] of one key-value head, both float32."""
    t = k_th.shape[0]
    group = q_rh.shape[0] // t
    outputs, logsumexps = [], []
    for first, last in _blocks(t):
        scores = _block_scores(q_rh[group * first : group * last], k_th[:last], ids_t, first, last)
        highest = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - highest)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        weights = weights.astype(v_th.dtype)
        outputs.append(jnp.einsum("rs,sh->rh", weights, v_th[:last], preferred_element_type=jnp.float32) / total)
        logsumexps.append(highest + jnp.log(total))
    return jnp.concatenate(outputs), jnp.concatenate(logsumexps)


def _backward(residuals, gradient_btnh):
    q, k, v, output, logsumexp, segment_ids_bt = residuals
    b, t, _, h = gradient_btnh.shape
    kv_heads = k.shape[0] // b
    heads = (q, k, v, output, logsumexp, _by_head(gradient_btnh, kv_heads), _ids_by_head(segment_ids_bt, kv_heads))
    q_gradient, k_gradient, v_gradient = jax.lax.map(lambda head: _backward_head(*head), heads)
    q_gradient = (_by_row(q_gradient, b, t) * h**-0.5).astype(q.dtype)
    return q_gradient, _by_row(k_gradient, b, t).astype(k.dtype), _by_row(v_gradient, b, t).astype(v.dtype), None


def _backward_head(q_rh, k_th, v_th, output_rh, logsumexp_r1, gradient_rh, ids_t):
    """Gradients of one key-value head by its scaled queries, keys and values, float32."""
    t, h = k_th.shape
    group = q_rh.shape[0] // t
    # The softmax's backward pass subtracts the mean of the weights' gradients, which the output gives more cheaply.
    mean_r1 = jnp.sum(gradient_rh.astype(jnp.float32) * output_rh, axis=-1, keepdims=True)
    q_gradients = []
    k_gradient_ht = v_gradient_ht = jnp.zeros((h, t), jnp.float32)
    for first, last in _blocks(t):
        block = slice(group * first, group * last)
        scores = _block_scores(q_rh[block], k_th[:last], ids_t, first, last)
        weights = jnp.exp(scores - logsumexp_r1[block])
        change = jnp.einsum("rh,sh->rs", gradient_rh[block], v_th[:last], preferred_element_type=jnp.float32)
        change = (weights * (change - mean_r1[block])).astype(q_rh.dtype)
        weights = weights.astype(q_rh.dtype)
        # The large matrix stands on the right, its rows summed over: the one order that needs no transposed copy of it.
        v_gradient = jnp.einsum("rh,rs->hs", gradient_rh[block], weights, preferred_element_type=jnp.float32)
        k_gradient = jnp.einsum("rh,rs->hs", q_rh[block], change, preferred_element_type=jnp.float32)
        q_gradients.append(jnp.einsum("rs,sh->rh", change, k_th[:last], preferred_element_type=jnp.float32))
        v_gradient_ht = v_gradient_ht.at[:, :last].add(v_gradient)
        k_gradient_ht = k_gradient_ht.at[:, :last].add(k_gradient)
    return jnp.concatenate(q_gradients), k_gradient_ht.T, v_gradient_ht.T


blockwise_attention.defvjp(_forward, _backward)
