"""The plain formula of every kernel. Its docstring is the contract that the implementations for platforms keep.

`SPIRIT_KERNELS=reference` runs these formulas on every platform. They are exact and short, and keep whatever automatic
differentiation keeps: attention saves its [T, S] weights, and the cross entropy all [B, T, V] logits.

Convolutions take activations [B, T, C] and kernels [width, in, out].
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from spirit_jax.kernels.masked import standardize

MASKED = float(jnp.finfo(jnp.float32).min)
"""A score that is masked out. It is finite, so that a row with no other score gives no NaN."""


def masked_attention(
    q_btnh: Float[Array, "B T N H"],
    k_bskh: Float[Array, "B S K H"],
    v_bskh: Float[Array, "B S K H"],
    mask_bts: Bool[Array, "#B T S"],
) -> Float[Array, "B T N H"]:
    """softmax(q k^T / sqrt(H)) v over the keys where the mask is true (Vaswani et al. 2017, arXiv 1706.03762).

    Query head n reads key-value head n // (N // K) (grouped queries: Ainslie et al. 2023, arXiv 2305.13245). The
    softmax is float32 whatever the inputs are; the result has the dtype of the values.
    """
    b, t, n, h = q_btnh.shape
    k = k_bskh.shape[2]
    q_btkgh = q_btnh.reshape(b, t, k, n // k, h)
    scores_bkgts = jnp.einsum("btkgh,bskh->bkgts", q_btkgh, k_bskh, preferred_element_type=jnp.float32) * h**-0.5
    scores_bkgts = jnp.where(mask_bts[:, None, None], scores_bkgts, MASKED)
    weights_bkgts = jax.nn.softmax(scores_bkgts, axis=-1).astype(v_bskh.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights_bkgts, v_bskh).reshape(b, t, n, h)


def causal_attention(
    q_btnh: Float[Array, "B T N H"],
    k_btkh: Float[Array, "B T K H"],
    v_btkh: Float[Array, "B T K H"],
    segment_ids_bt: Int[Array, "B T"] | None = None,
) -> Float[Array, "B T N H"]:
    """`masked_attention` of each position to the positions of its document up to itself.

    Args:
        segment_ids_bt: document of each position of a packed row; None for one document a row. Padding has an id of
            its own (0), so that no document sees it and its rows stay finite.
    """
    length = q_btnh.shape[1]
    mask_bts = jnp.tril(jnp.ones((1, length, length), bool))
    if segment_ids_bt is not None:
        mask_bts &= segment_ids_bt[:, :, None] == segment_ids_bt[:, None, :]
    return masked_attention(q_btnh, k_btkh, v_btkh, mask_bts)


def cached_attention(
    q_btnh: Float[Array, "B T N H"],
    k_bskh: Float[Array, "B S K H"],
    v_bskh: Float[Array, "B S K H"],
    slots_bt: Int[Array, "B T"],
) -> Float[Array, "B T N H"]:
    """`masked_attention` of queries to the slots of a key-value cache up to their own slots."""
    return masked_attention(q_btnh, k_bskh, v_bskh, jnp.arange(k_bskh.shape[1]) <= slots_bt[:, :, None])


def bidirectional_attention(
    q_btnh: Float[Array, "B T N H"],
    k_btnh: Float[Array, "B T N H"],
    v_btnh: Float[Array, "B T N H"],
    valid_bt: Bool[Array, "B T"],
) -> Float[Array, "B T N H"]:
    """`masked_attention` of every position to all valid positions of its row."""
    return masked_attention(q_btnh, k_btnh, v_btnh, valid_bt[:, None, :])


def matmul(x: Float[Array, "B T ..."], weight: Float[Array, "..."], contracted: int = 1) -> Float[Array, "B T ..."]:
    """x times weight, summed over the last `contracted` dimensions of x and as many first ones of the weight."""
    return jnp.tensordot(x, weight, contracted)


def swiglu(gate: Float[Array, "*shape"], up: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """silu(gate) * up (Shazeer 2020, arXiv 2002.05202)."""
    return jax.nn.silu(gate) * up


class TokenLosses(NamedTuple):
    """The result of `cross_entropy`, all float32. Gradients flow through `loss` only."""

    loss: Float[Array, ""]
    """Sum over tokens of weight * (nll + z_loss * logsumexp**2). Divide it by the global count of tokens."""
    nll_bt: Float[Array, "B T"]
    """Negative log-likelihood of each target, in nats."""
    logsumexp_bt: Float[Array, "B T"]
    """Logarithm of the softmax's denominator."""
    correct_bt: Bool[Array, "B T"]
    """Whether no other token has a higher score than the target."""


def cross_entropy(
    hidden_btd: Float[Array, "B T D"],
    head_dv: Float[Array, "D V"],
    targets_bt: Int[Array, "B T"],
    weights_bt: Float[Array, "B T"],
    z_loss: float = 0.0,
) -> TokenLosses:
    """Cross entropy of `targets_bt` under softmax(hidden_btd @ head_dv), weighted and summed, in float32.

    Args:
        head_dv: multiplied in the dtype of the hidden states, accumulated in float32.
        weights_bt: weight of each position in the sum; 0 where there is nothing to learn (padding).
        z_loss: coefficient of the squared logsumexp, which keeps the logits from drifting (PaLM, arXiv 2204.02311).
    """
    head_dv = head_dv.astype(hidden_btd.dtype)
    logits_btv = jnp.einsum("btd,dv->btv", hidden_btd, head_dv, preferred_element_type=jnp.float32)
    logsumexp_bt = jax.nn.logsumexp(logits_btv, axis=-1)
    target_logit_bt = jnp.take_along_axis(logits_btv, targets_bt[..., None], axis=-1)[..., 0]
    nll_bt = logsumexp_bt - target_logit_bt
    loss = jnp.sum(weights_bt * (nll_bt + z_loss * logsumexp_bt**2))
    correct_bt = target_logit_bt >= jnp.max(logits_btv, axis=-1)
    return TokenLosses(loss, lax.stop_gradient(nll_bt), lax.stop_gradient(logsumexp_bt), correct_bt)


def convolution(
    x_btc: Float[Array, "B T C"], kernel_kio: Float[Array, "K C/groups O"], dilation: int = 1, groups: int = 1
) -> Float[Array, "B T O"]:
    """Convolution over time with zeros around: output t reads inputs t + dilation * (k - K // 2) for taps k."""
    width = kernel_kio.shape[0]
    return lax.conv_general_dilated(
        x_btc,
        kernel_kio,
        window_strides=(1,),
        padding=((width // 2 * dilation, (width - 1) // 2 * dilation),),
        rhs_dilation=(dilation,),
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
    )


def transposed_convolution(
    x_btc: Float[Array, "B T C"], kernel_kio: Float[Array, "K C O"], rate: int
) -> Float[Array, "B T*rate O"]:
    """Upsampling: input t adds x[t] @ kernel[k] to output t * rate + k - (K - rate) // 2. K - rate must be even."""
    width = kernel_kio.shape[0]
    around = width - 1 - (width - rate) // 2
    return lax.conv_general_dilated(
        x_btc,
        kernel_kio[::-1],
        window_strides=(1,),
        padding=((around, around),),
        lhs_dilation=(rate,),
        dimension_numbers=("NWC", "WIO", "NWC"),
    )


def normalized_convolution(
    audio_br: Float[Array, "B R"],
    lengths_b: Int[Array, " B"],
    kernel_wc: Float[Array, "W C"],
    scale_c: Float[Array, " C"],
    bias_c: Float[Array, " C"],
    stride: int,
    eps: float,
) -> Float[Array, "B T C"]:
    """Convolution of a waveform without padding, and a group norm of each channel over its time (arXiv 1803.08494).

    Args:
        lengths_b: samples of each clip. The norm sees the frames inside the clip; other frames are undefined.
        stride: samples from one frame to the next.
        eps: added to the variance.
    """
    width = kernel_wc.shape[0]
    y_btc = lax.conv_general_dilated(
        audio_br[:, :, None], kernel_wc[:, None], (stride,), ((0, 0),), dimension_numbers=("NWC", "WIO", "NWC")
    )
    return standardize(y_btc, (lengths_b - width) // stride + 1, eps) * scale_c + bias_c
