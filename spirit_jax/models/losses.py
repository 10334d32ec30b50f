"""The loss of the language model: cross entropy of the next token, straight from hidden states."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from spirit_jax import kernels
from spirit_jax.kernels.reference import TokenLosses

__all__ = ["TokenLosses", "next_token_losses"]


def next_token_losses(
    hidden_btd: Float[Array, "B T D"],
    head_dv: Float[Array, "D V"],
    targets_bt: Int[Array, "B T"],
    weights_bt: Float[Array, "B T"] | Bool[Array, "B T"],
    z_loss: float = 0.0,
) -> TokenLosses:
    """Cross entropy of the targets under softmax(hidden @ head), weighted and summed, in float32.

    The sum is weight * (nll + z_loss * logsumexp**2) over all tokens.

    Args:
        head_dv: multiplied in the dtype of the hidden states, accumulated in float32.
        weights_bt: weight of each position in the sum; 0 where there is nothing to learn (padding).
        z_loss: coefficient of the squared logsumexp, which keeps the logits from drifting (PaLM, arXiv 2204.02311).
    """
    return kernels.cross_entropy(hidden_btd, head_dv, targets_bt, weights_bt.astype(jnp.float32), z_loss)
