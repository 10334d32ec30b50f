"""Connectionist temporal classification (CTC, Graves et al. 2006): the best path of a known label sequence.

A label sequence of N labels has 2N + 1 states: a blank before, between and after the labels. A path visits a state at
each frame, never goes back, and skips a blank only between two different labels. `forced_alignment` finds the path of
the highest probability, as Pratap et al. (2023, arXiv 2305.13516) align words with speech.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from spirit_jax.core.arithmetic import ceil_div

IMPOSSIBLE = -1e30
"""Log-probability of what cannot happen: finite, so that sums of it do not become NaN."""


class Alignment(NamedTuple):
    """The best path of each row."""

    labels_bt: Int[Array, "B T"]
    """Index of the label that each frame belongs to, -1 for a blank or for a frame outside the row."""
    log_probs_bt: Float[Array, "B T"]
    """Log-probability of the path's symbol at each frame; 0 outside the row."""
    score_b: Float[Array, " B"]
    """Log-probability of the whole path, at most `IMPOSSIBLE / 2` where the frames are too few for the labels."""


def forced_alignment(
    log_probs_btv: Float[Array, "B T V"],
    frames_b: Int[Array, " B"],
    labels_bn: Int[Array, "B N"],
    lengths_b: Int[Array, " B"],
    blank: int = 0,
) -> Alignment:
    """Viterbi alignment of label sequences with frames; pure, so it can be jitted.

    The moves of all frames would take T x N memory. Only the scores at every sqrt(T)-th frame are kept; the moves in
    between are computed again on the way back. An hour of speech (180 000 frames, 50 000 labels) so needs less than 400
    MB.

    Args:
        log_probs_btv: emissions, a log-softmax over V symbols; a further column of zeros is a wildcard ("star") symbol.
        frames_b: valid frames of each row; emissions after them are ignored.
        labels_bn: symbols of each row, without blanks; padding may hold any symbol.
        lengths_b: labels of each row.
        blank: the blank symbol.
    """
    batch, time, _ = log_probs_btv.shape
    states = 2 * labels_bn.shape[1] + 1
    symbols_bs = jnp.full((batch, states), blank).at[:, 1::2].set(labels_bn)
    skips_bs = jnp.zeros((batch, states), bool).at[:, 3::2].set(labels_bn[:, 1:] != labels_bn[:, :-1])

    block = max(1, math.isqrt(time))
    blocks = ceil_div(time, block)
    padded = jnp.pad(log_probs_btv, ((0, 0), (0, blocks * block - time), (0, 0)))
    emissions_kjbv = jnp.moveaxis(padded, 0, 1).reshape(blocks, block, batch, -1)
    valid_kjb = (jnp.arange(blocks * block)[:, None] < frames_b).reshape(blocks, block, batch)

    def step(score_bs, frame):
        """Scores after one more frame, and how many states back each best predecessor is."""
        emission_bv, valid_b = frame
        one_bs = jnp.pad(score_bs, ((0, 0), (1, 0)), constant_values=IMPOSSIBLE)[:, :-1]
        two_bs = jnp.pad(score_bs, ((0, 0), (2, 0)), constant_values=IMPOSSIBLE)[:, :-2]
        two_bs = jnp.where(skips_bs, two_bs, IMPOSSIBLE)
        best_bs = jnp.maximum(jnp.maximum(score_bs, one_bs), two_bs)
        moves_bs = jnp.where(score_bs == best_bs, 0, jnp.where(one_bs == best_bs, 1, 2)).astype(jnp.int8)
        new_bs = jnp.maximum(best_bs + jnp.take_along_axis(emission_bv, symbols_bs, axis=1), IMPOSSIBLE)
        return jnp.where(valid_b[:, None], new_bs, score_bs), jnp.where(valid_b[:, None], moves_bs, 0)

    def forward(score_bs, frames):
        """Scores after a block; the result keeps the scores before it."""
        return jax.lax.scan(lambda score, frame: (step(score, frame)[0], None), score_bs, frames)[0], score_bs

    start_bs = jnp.full((batch, states), IMPOSSIBLE).at[:, 0].set(0.0)  # before the first frame: in the first blank
    final_bs, starts_kbs = jax.lax.scan(forward, start_bs, (emissions_kjbv, valid_kjb))

    last_b = 2 * lengths_b
    ends_b2 = jnp.take_along_axis(final_bs, jnp.stack([last_b, jnp.maximum(last_b - 1, 0)], axis=1), axis=1)
    score_b = ends_b2.max(axis=1)
    state_b = jnp.where(ends_b2[:, 1] > ends_b2[:, 0], last_b - 1, last_b)

    def backward(state_b, block):
        """The states of a block's frames, from the state at its end; and the state before it."""
        score_bs, frames = block
        moves_jbs = jax.lax.scan(step, score_bs, frames)[1]

        def back(state_b, moves_bs):
            return state_b - jnp.take_along_axis(moves_bs, state_b[:, None], axis=1)[:, 0], state_b

        return jax.lax.scan(back, state_b, moves_jbs, reverse=True)

    _, states_kjb = jax.lax.scan(backward, state_b, (starts_kbs, (emissions_kjbv, valid_kjb)), reverse=True)
    states_bt = states_kjb.reshape(-1, batch).T[:, :time]
    valid_bt = jnp.arange(time) < frames_b[:, None]
    symbols_bt = jnp.take_along_axis(symbols_bs, states_bt, axis=1)
    log_probs_bt = jnp.take_along_axis(log_probs_btv, symbols_bt[..., None], axis=2)[..., 0]
    labels_bt = jnp.where(valid_bt & (states_bt % 2 == 1), states_bt // 2, -1)
    return Alignment(labels_bt, jnp.where(valid_bt, log_probs_bt, 0.0), score_b)
