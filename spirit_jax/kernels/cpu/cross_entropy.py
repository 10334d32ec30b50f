"""Cross entropy in the chunks that a CPU runs fastest."""

from jaxtyping import Array, Float, Int

from spirit_jax.kernels.common import cross_entropy as chunked
from spirit_jax.kernels.reference import TokenLosses

_CHUNK = 128  # positions; in larger chunks the fresh memory for logits costs more than more turns of the loop


def cross_entropy(
    hidden_btd: Float[Array, "B T D"],
    head_dv: Float[Array, "D V"],
    targets_bt: Int[Array, "B T"],
    weights_bt: Float[Array, "B T"],
    z_loss: float = 0.0,
) -> TokenLosses:
    """`reference.cross_entropy`, 128 positions of every row at a time."""
    return chunked.cross_entropy(hidden_btd, head_dv, targets_bt, weights_bt, z_loss, _CHUNK)
