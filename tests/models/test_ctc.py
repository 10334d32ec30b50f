"""Forced alignment and the loss against every path of small cases, a Viterbi search written with loops, and PyTorch."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spirit_jax.models import ctc
from spirit_jax.models.ctc import IMPOSSIBLE

forced_alignment, ctc_loss = jax.jit(ctc.forced_alignment), jax.jit(ctc.ctc_loss)


def collapse(path, blank=0):
    """The label sequence that a path spells."""
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol != blank)


def best_by_enumeration(log_probs, labels):
    """The score of the best of all V**T paths that spell the labels."""
    time, symbols = log_probs.shape
    scores = [
        sum(log_probs[t, symbol] for t, symbol in enumerate(path))
        for path in itertools.product(range(symbols), repeat=time)
        if collapse(path) == tuple(labels)
    ]
    return max(scores, default=-np.inf)


def path_of(alignment, labels, row=0):
    """The path of a row as symbols."""
    return [0 if label < 0 else labels[label] for label in np.asarray(alignment.labels_bt[row])]


def random_log_probs(rng, *shape):
    return np.log(rng.dirichlet(np.ones(shape[-1]), shape[:-1])).astype(np.float32)


@pytest.mark.parametrize("labels", [(1,), (1, 2), (1, 1), (2, 1, 2), (1, 1, 1), ()])
def test_score_is_that_of_the_best_path_and_the_path_spells_the_labels(labels):
    log_probs = random_log_probs(np.random.default_rng(len(labels)), 1, 6, 3)
    alignment = forced_alignment(
        jnp.asarray(log_probs),
        jnp.array([6]),
        jnp.array([[*labels, 1, 1, 1, 1][:4]]),  # one shape, which is compiled once
        jnp.array([len(labels)]),
    )
    # float32 sums of six terms
    assert float(alignment.score_b[0]) == pytest.approx(best_by_enumeration(log_probs[0], labels), abs=1e-5)
    assert collapse(path_of(alignment, labels)) == labels
    assert float(alignment.log_probs_bt.sum()) == pytest.approx(float(alignment.score_b[0]), abs=1e-5)


def test_rows_of_a_batch_align_as_they_do_alone():
    rng = np.random.default_rng(1)
    log_probs = random_log_probs(rng, 3, 50, 7)
    frames, lengths = jnp.array([50, 33, 20]), jnp.array([12, 5, 9])
    labels = jnp.asarray(rng.integers(1, 7, (3, 12)))
    together = forced_alignment(jnp.asarray(log_probs), frames, labels, lengths)
    for row, (count, length) in enumerate(zip(frames, lengths, strict=True)):
        alone = forced_alignment(
            jnp.asarray(log_probs[row : row + 1, :count]),
            frames[row : row + 1],
            labels[row : row + 1, :length],
            lengths[row : row + 1],
        )
        np.testing.assert_array_equal(together.labels_bt[row, :count], alone.labels_bt[0])
        assert (np.asarray(together.labels_bt[row, count:]) == -1).all()
        np.testing.assert_allclose(together.score_b[row], alone.score_b[0], rtol=1e-5)


def test_too_few_frames_for_the_labels_are_impossible():
    log_probs = random_log_probs(np.random.default_rng(2), 1, 2, 4)
    for labels, possible in (((1, 2), True), ((1, 1), False), ((1, 2, 3), False)):  # 1 1 needs a blank in between
        score = forced_alignment(
            jnp.asarray(log_probs), jnp.array([2]), jnp.array([[*labels, 1][:3]]), jnp.array([len(labels)])
        ).score_b
        assert (float(score[0]) > IMPOSSIBLE / 2) == possible


def test_a_star_column_takes_frames_that_no_label_explains():
    """Frames 0 to 3 say symbol 1, 4 to 7 symbol 3, 8 to 11 symbol 2; the transcript knows 1, something, 2."""
    log_probs = np.full((12, 4), np.log(0.01), np.float32)
    for frames, symbol in ((slice(0, 4), 1), (slice(4, 8), 3), (slice(8, 12), 2)):
        log_probs[frames, symbol] = np.log(0.97)
    with_star = np.concatenate([log_probs, np.zeros((12, 1), np.float32)], axis=1)
    alignment = forced_alignment(jnp.asarray(with_star[None]), jnp.array([12]), jnp.array([[1, 4, 2]]), jnp.array([3]))
    labels = np.asarray(alignment.labels_bt[0])
    assert labels[0] == 0
    assert (labels[4:8] == 1).all()
    assert labels[11] == 2


def viterbi_with_loops(log_probs, labels):
    """The best path's states, by the recursion as it is written down."""
    symbols = [0]
    for label in labels:
        symbols += [label, 0]
    time, states = len(log_probs), len(symbols)
    score = np.full((time, states), -np.inf)
    back = np.zeros((time, states), int)
    score[0, :2] = log_probs[0, symbols[:2]]
    for t in range(1, time):
        for s in range(states):
            before = (
                [s] + ([s - 1] if s else []) + ([s - 2] if s > 1 and s % 2 and symbols[s] != symbols[s - 2] else [])
            )
            back[t, s] = max(before, key=lambda state: score[t - 1, state])
            score[t, s] = score[t - 1, back[t, s]] + log_probs[t, symbols[s]]
    state = max(states - 1, states - 2, key=lambda state: score[-1, state])
    path = [state]
    for t in range(time - 1, 0, -1):
        path.append(state := back[t, state])
    return np.array(path[::-1]), score[-1].max()


def test_long_rows_equal_a_search_that_keeps_every_move():
    rng = np.random.default_rng(3)
    log_probs = random_log_probs(rng, 1, 997, 9)  # a prime: the last block is partly padding
    labels = rng.integers(1, 9, 120)
    alignment = forced_alignment(jnp.asarray(log_probs), jnp.array([997]), jnp.asarray(labels[None]), jnp.array([120]))
    states, _ = viterbi_with_loops(log_probs[0].astype(np.float64), labels)
    np.testing.assert_array_equal(alignment.labels_bt[0], np.where(states % 2, states // 2, -1))


def test_loss_and_its_gradient_are_pytorchs():
    rng = np.random.default_rng(4)
    logits = rng.normal(size=(3, 30, 6)).astype(np.float32)
    frames, lengths = np.array([30, 21, 9]), np.array([8, 5, 0])
    labels = rng.integers(1, 6, (3, 8))
    given = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.ctc_loss(
        given.log_softmax(-1).transpose(0, 1), *map(torch.tensor, (labels, frames, lengths)), reduction="none"
    )
    expected.sum().backward()
    assert given.grad is not None

    def loss(logits):
        return ctc_loss(jax.nn.log_softmax(logits), *map(jnp.asarray, (frames, labels, lengths)))

    def total(logits):
        losses = loss(logits)
        return losses.sum(), losses

    (_, found), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(logits)
    np.testing.assert_allclose(found, expected.detach(), rtol=1e-5)
    np.testing.assert_allclose(gradient, given.grad, atol=1e-5)


def paths_with_pauses(labels, pauses, time):
    """Every path that visits the labels in order, with blanks only where a pause may be, as states 0 to 2N."""
    states = [s for s in range(2 * len(labels) + 1) if s % 2 or pauses[s // 2]]
    for path in itertools.combinations_with_replacement(states, time):
        if {s for s in path if s % 2} == {2 * n + 1 for n in range(len(labels))}:
            yield path


def test_blanks_stand_only_where_pauses_may_be():
    """Equal labels need no blank between them, and every path is counted once."""
    rng, labels, pauses = np.random.default_rng(5), (1, 2, 2, 1), (True, False, False, True, True)
    scores = random_log_probs(rng, 1, 7, 3)
    symbols = [labels[s // 2] if s % 2 else 0 for s in range(9)]
    totals = {
        path: float(sum(scores[0, t, symbols[s]] for t, s in enumerate(path)))
        for path in paths_with_pauses(labels, pauses, 7)
    }
    given = (jnp.asarray(scores), jnp.array([7]), jnp.array([labels]), jnp.array([4]))
    loss = ctc_loss(*given, pauses_bm=jnp.array([pauses]))
    assert float(loss[0]) == pytest.approx(-np.logaddexp.reduce(list(totals.values())), rel=1e-5)
    alignment = forced_alignment(*given, pauses_bm=jnp.array([pauses]))
    best = max(totals, key=totals.__getitem__)
    np.testing.assert_array_equal(alignment.labels_bt[0], [s // 2 if s % 2 else -1 for s in best])
    assert float(alignment.score_b[0]) == pytest.approx(totals[best], rel=1e-5)


def test_loss_of_too_few_frames_is_impossible():
    scores = jnp.asarray(random_log_probs(np.random.default_rng(6), 1, 2, 4))
    assert float(ctc_loss(scores, jnp.array([2]), jnp.array([[1, 2, 3]]), jnp.array([3]))[0]) > -IMPOSSIBLE / 2
