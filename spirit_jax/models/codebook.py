"""A codebook that follows its latents by moving averages, as the pitch VQ-VAE's does in training.

The averages are those of van den Oord et al. 2017 (arXiv 1711.00937, appendix A.1). Entries that are hardly used are
replaced by latents of the batch, as in Jukebox (arXiv 2005.00341, section 3.1), so that no code stays dead.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

LEAST_USE = 1.0
"""An entry whose average number of latents a step falls below this is dead."""


class Averages(NamedTuple):
    """The moving averages from which the entries follow."""

    counts_k: Float[Array, " K"]
    """Latents a step of each entry."""
    sums_ke: Float[Array, "K E"]
    """Sum of these latents."""


def no_averages(codes: int, size: int) -> Averages:
    """The averages before the first step: every entry is dead, and the first batch replaces it."""
    return Averages(counts_k=jnp.zeros(codes), sums_ke=jnp.zeros((codes, size)))


def update(
    averages: Averages,
    latents_ne: Float[Array, "N E"],
    codes_n: Int[Array, " N"],
    valid_n: Bool[Array, " N"],
    *,
    key: Array,
    decay: float,
) -> tuple[Averages, Float[Array, "K E"], Int[Array, ""]]:
    """The averages after a step, the entries, and how many of them were dead and have been replaced.

    Dead entries become different latents of the batch, drawn at random, with the least use that keeps them alive. A
    batch with fewer latents than dead entries gives some of them twice.

    Args:
        averages: before the step.
        latents_ne: the encoder's outputs of the whole batch.
        codes_n: the entry of each.
        valid_n: False for padding, which does not count.
        key: chooses the latents.
        decay: of the averages, in (0, 1).
    """
    size = averages.counts_k.shape[0]
    latents_ne = jnp.where(valid_n[:, None], latents_ne, 0.0)
    assigned_nk = jax.nn.one_hot(codes_n, size, dtype=jnp.float32) * valid_n[:, None]
    counts_k = decay * averages.counts_k + (1 - decay) * assigned_nk.sum(0)
    sums_ke = decay * averages.sums_ke + (1 - decay) * jnp.einsum("nk,ne->ke", assigned_nk, latents_ne)

    chance_n = jnp.where(valid_n, jax.random.uniform(key, valid_n.shape), -1.0)
    order_n = jnp.argsort(-chance_n)
    drawn_ke = latents_ne[order_n[jnp.arange(size) % jnp.maximum(valid_n.sum(), 1)]]
    dead_k = (counts_k < LEAST_USE) & valid_n.any()
    counts_k = jnp.where(dead_k, LEAST_USE, counts_k)
    sums_ke = jnp.where(dead_k[:, None], LEAST_USE * drawn_ke, sums_ke)
    return Averages(counts_k, sums_ke), sums_ke / jnp.maximum(counts_k, 1e-9)[:, None], dead_k.sum()
