"""Causal attention one head of one row at a time, so that its scores stay in a CPU's cache."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spirit_jax.core.arithmetic import ceil_div
from spirit_jax.kernels.reference import MASKED

_MOST_BLOCKS, _SMALLEST_BLOCK = 8, 128


@jax.custom_vjp
def causal_attention(
    q_btnh: Float[Array, "B T N H"],
    k_btkh: Float[Array, "B T K H"],
    v_btkh: Float[Array, "B T K H"],
    segment_ids_bt: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T N H"]:
    """`reference.causal_attention` by blocks of queries, each with the keys up to its own end.

    Nothing of size T x T is kept for the backward pass, which computes each block's weights again from the logarithm
    of the softmax's denominator (Dao et al. 2022, arXiv 2205.14135). The backward pass is written by hand so that no
    matrix of scores is transposed.
    """
    return _forward(q_btnh, k_btkh, v_btkh, segment_ids_bt)[0]


def _blocks(length: int) -> list[tuple[int, int]]:
    """First and last position of up to eight blocks of queries, each of at least 128."""
    size = max(_SMALLEST_BLOCK, ceil_div(length, _MOST_BLOCKS))
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _by_head(x_btnh: Float[Array, "B T N H"], kv_heads: int) -> Float[Array, "B*K T*G H"]:
    """One matrix for each key-value head of each row, with the G query heads of a position side by side."""
    b, t, n, h = x_btnh.shape
    return jnp.swapaxes(x_btnh.reshape(b, t, kv_heads, -1), 1, 2).reshape(b * kv_heads, t * (n // kv_heads), h)


def _by_row(x_zrh: Float[Array, "B*K T*G H"], rows: int, length: int) -> Float[Array, "B T N H"]:
    """The inverse of `_by_head`."""
    h = x_zrh.shape[2]
    return jnp.swapaxes(x_zrh.reshape(rows, -1, length, x_zrh.shape[1] // length * h), 1, 2).reshape(
        rows, length, -1, h
    )


def _ids_by_head(segment_ids_bt, kv_heads):
    return None if segment_ids_bt is None else jnp.repeat(segment_ids_bt, kv_heads, axis=0)


def _block_scores(q_rh, k_sh, ids_t, first, last):
    """Masked float32 scores [R, S] of the queries at first..last - 1 (already scaled) with keys 0..last - 1."""
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
        # The large matrix is the right operand and its rows are summed over: the only order without a transposed copy.
        v_gradient = jnp.einsum("rh,rs->hs", gradient_rh[block], weights, preferred_element_type=jnp.float32)
        k_gradient = jnp.einsum("rh,rs->hs", q_rh[block], change, preferred_element_type=jnp.float32)
        q_gradients.append(jnp.einsum("rs,sh->rh", change, k_th[:last], preferred_element_type=jnp.float32))
        v_gradient_ht = v_gradient_ht.at[:, :last].add(v_gradient)
        k_gradient_ht = k_gradient_ht.at[:, :last].add(k_gradient)
    return jnp.concatenate(q_gradients), k_gradient_ht.T, v_gradient_ht.T


causal_attention.defvjp(_forward, _backward)
