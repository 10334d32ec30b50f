"""Connectionist temporal classification (CTC, Graves et al. 2006): all paths of a known label sequence, and the best.

A label sequence of N labels has 2N + 1 states: a blank before, between and after the labels. A path visits a state at
each frame, never goes back, and skips a blank only between two different labels. `ctc_loss` sums over all paths.
`forced_alignment` finds the path of the highest probability, as Pratap et al. (2023, arXiv 2305.13516) align words with
speech.

`pauses` turn the states into those of a hidden Markov model, whose labels follow each other without blanks: the blank
is silence and may stand only where a pause may be.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

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


class _States(NamedTuple):
    """The states of each row's label sequence."""

    symbols_bs: Int[Array, "B S"]
    """Symbol of each state: the blank at even places, the labels at odd ones."""
    entry_bs: Float[Array, "B S"]
    """0 for a state that may be visited, `IMPOSSIBLE` for a blank where no pause may be."""
    skips_bs: Bool[Array, "B S"]
    """Whether a state may follow the one two before it."""


def _states(labels_bn: Int[Array, "B N"], blank: int, pauses_bm: Bool[Array, "B N+1"] | None) -> _States:
    shape = labels_bn.shape[0], 2 * labels_bn.shape[1] + 1
    symbols_bs = jnp.full(shape, blank).at[:, 1::2].set(labels_bn)
    entry_bs, different = jnp.zeros(shape), labels_bn[:, 1:] != labels_bn[:, :-1]
    if pauses_bm is not None:
        entry_bs = entry_bs.at[:, ::2].set(jnp.where(pauses_bm, 0.0, IMPOSSIBLE))
        different = jnp.ones_like(different)  # without blanks between them, equal labels are states of their own
    return _States(symbols_bs, entry_bs, jnp.zeros(shape, bool).at[:, 3::2].set(different))


def _predecessors(score_bs: Float[Array, "B S"], states: _States) -> tuple[Float[Array, "B S"], Float[Array, "B S"]]:
    """The scores one and two states before each state."""
    one_bs = jnp.pad(score_bs, ((0, 0), (1, 0)), constant_values=IMPOSSIBLE)[:, :-1]
    two_bs = jnp.pad(score_bs, ((0, 0), (2, 0)), constant_values=IMPOSSIBLE)[:, :-2]
    return one_bs, jnp.where(states.skips_bs, two_bs, IMPOSSIBLE)


def _start(states: _States) -> Float[Array, "B S"]:
    """Scores before the first frame, which can enter the first blank or the first label."""
    return jnp.full(states.entry_bs.shape, IMPOSSIBLE).at[:, 0].set(0.0)


def _ends(score_bs: Float[Array, "B S"], lengths_b: Int[Array, " B"]) -> Float[Array, "B 2"]:
    """Scores of the last blank and of the last label, the states that a path may end in."""
    last_b = 2 * lengths_b
    ends_b2 = jnp.take_along_axis(score_bs, jnp.stack([last_b, jnp.maximum(last_b - 1, 0)], axis=1), axis=1)
    return ends_b2.at[:, 1].set(jnp.where(lengths_b > 0, ends_b2[:, 1], IMPOSSIBLE))


def forced_alignment(
    log_probs_btv: Float[Array, "B T V"],
    frames_b: Int[Array, " B"],
    labels_bn: Int[Array, "B N"],
    lengths_b: Int[Array, " B"],
    blank: int = 0,
    pauses_bm: Bool[Array, "B N+1"] | None = None,
) -> Alignment:
    """Viterbi alignment of label sequences with frames; pure, so it can be jitted.

    The moves of all frames would take T x N memory. Only the scores at every sqrt(T)-th frame are kept; the moves in
    between are computed again on the way back. For an hour of speech (180 000 frames, 50 000 labels) the scores take
    170 MB; the moves of all frames would take 18 GB.

    Args:
        log_probs_btv: emissions, a log-softmax over V symbols; a further column of zeros is a wildcard ("star") symbol.
        frames_b: valid frames of each row; emissions after them are ignored.
        labels_bn: symbols of each row, without blanks; padding may hold any symbol.
        lengths_b: labels of each row.
        blank: the blank symbol.
        pauses_bm: where a blank may stand: before each label, and after the last. None is the rule of CTC: anywhere,
            and always between equal labels.
    """
    batch, time, _ = log_probs_btv.shape
    states = _states(labels_bn, blank, pauses_bm)

    block = max(1, math.isqrt(time))
    blocks = ceil_div(time, block)
    padded = jnp.pad(log_probs_btv, ((0, 0), (0, blocks * block - time), (0, 0)))
    emissions_kjbv = jnp.moveaxis(padded, 0, 1).reshape(blocks, block, batch, -1)
    valid_kjb = (jnp.arange(blocks * block)[:, None] < frames_b).reshape(blocks, block, batch)

    def step(score_bs, frame):
        """Scores after one more frame, and how many states back each best predecessor is."""
        emission_bv, valid_b = frame
        one_bs, two_bs = _predecessors(score_bs, states)
        best_bs = jnp.maximum(jnp.maximum(score_bs, one_bs), two_bs)
        moves_bs = jnp.where(score_bs == best_bs, 0, jnp.where(one_bs == best_bs, 1, 2)).astype(jnp.int8)
        emitted_bs = jnp.take_along_axis(emission_bv, states.symbols_bs, axis=1) + states.entry_bs
        new_bs = jnp.maximum(best_bs + emitted_bs, IMPOSSIBLE)
        return jnp.where(valid_b[:, None], new_bs, score_bs), jnp.where(valid_b[:, None], moves_bs, 0)

    def forward(score_bs, frames):
        """Scores after a block; the result keeps the scores before it."""
        return jax.lax.scan(lambda score, frame: (step(score, frame)[0], None), score_bs, frames)[0], score_bs

    final_bs, starts_kbs = jax.lax.scan(forward, _start(states), (emissions_kjbv, valid_kjb))
    ends_b2 = _ends(final_bs, lengths_b)
    score_b = ends_b2.max(axis=1)
    state_b = 2 * lengths_b - (ends_b2[:, 1] > ends_b2[:, 0])

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
    symbols_bt = jnp.take_along_axis(states.symbols_bs, states_bt, axis=1)
    log_probs_bt = jnp.take_along_axis(log_probs_btv, symbols_bt[..., None], axis=2)[..., 0]
    labels_bt = jnp.where(valid_bt & (states_bt % 2 == 1), states_bt // 2, -1)
    return Alignment(labels_bt, jnp.where(valid_bt, log_probs_bt, 0.0), score_b)


def ctc_loss(
    scores_btv: Float[Array, "B T V"],
    frames_b: Int[Array, " B"],
    labels_bn: Int[Array, "B N"],
    lengths_b: Int[Array, " B"],
    blank: int = 0,
    pauses_bm: Bool[Array, "B N+1"] | None = None,
    bonus_bts: Float[Array, "B T 2N+1"] | float = 0.0,
) -> Float[Array, " B"]:
    """Negative logarithm of the sum over all paths of a label sequence of exp(sum of scores), the forward recursion.

    With a log-softmax as scores this is the CTC loss of Graves et al. (2006). Scores need not be normalized: with
    logarithms of label priors subtracted (Huang et al. 2024, arXiv 2406.02560), paths stay on labels instead of on
    blanks, and the ends of labels become sharp.

    Args:
        scores_btv: log-probabilities, or unnormalized scores in their place.
        frames_b, labels_bn, lengths_b, blank, pauses_bm: as for `forced_alignment`.
        bonus_bts: added to the score of each state at each frame, such as a preference for paths of an even pace.

    Returns:
        Loss of each row in nats, at least `-IMPOSSIBLE / 2` where the frames are too few for the labels.
    """
    states = _states(labels_bn, blank, pauses_bm)
    # All frames at once: inside the loop, the gradient of each gather would be a scatter of its own.
    emitted_bts = jnp.take_along_axis(scores_btv, states.symbols_bs[:, None], axis=2) + states.entry_bs[:, None]
    emitted_bts += bonus_bts

    def step(total_bs, frame):
        emitted_bs, valid_b = frame
        reached_bs = jax.nn.logsumexp(jnp.stack([total_bs, *_predecessors(total_bs, states)]), axis=0)
        new_bs = jnp.maximum(reached_bs + emitted_bs, IMPOSSIBLE)
        return jnp.where(valid_b[:, None], new_bs, total_bs), None

    valid_tb = jnp.arange(scores_btv.shape[1])[:, None] < frames_b
    total_bs, _ = jax.lax.scan(step, _start(states), (jnp.moveaxis(emitted_bts, 1, 0), valid_tb))
    return -jax.nn.logsumexp(_ends(total_bs, lengths_b), axis=1)
