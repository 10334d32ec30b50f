"""Scaled dot-product attention with grouped queries, causal and by document."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


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
    b, t, n, h = q_btnh.shape
    s, k = k_bskh.shape[1:3]
    if slots_bt is None:
        slots_bt = jnp.arange(t)[None]
    mask_bts = jnp.arange(s) <= slots_bt[:, :, None]
    if segment_ids_bt is not None:
        mask_bts &= segment_ids_bt[:, :, None] == segment_ids_bt[:, None, :]

    q_btkgh = q_btnh.reshape(b, t, k, n // k, h)
    scores_bkgts = jnp.einsum("btkgh,bskh->bkgts", q_btkgh, k_bskh, preferred_element_type=jnp.float32) * h**-0.5
    scores_bkgts = jnp.where(mask_bts[:, None, None], scores_bkgts, jnp.finfo(jnp.float32).min)
    weights_bkgts = jax.nn.softmax(scores_bkgts, axis=-1).astype(v_bskh.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights_bkgts, v_bskh).reshape(b, t, n, h)
