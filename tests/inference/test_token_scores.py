"""Scores of every token of documents, against Hugging Face and against sums by hand."""

import numpy as np
import pytest
import torch

from spirit_jax.inference import scoring
from tests.support import checkpoints
from tests.support.hugging_face import hugging_face_llama

RNG = np.random.default_rng(0)


def _documents(lm, lengths, shared=0):
    """Random ids of text and units, with a common beginning."""
    head = RNG.integers(3, lm.vocabulary.size, shared)
    return [
        np.concatenate([[1], head, RNG.integers(3, lm.vocabulary.size, n - shared - 1)]).astype(np.int32)
        for n in lengths
    ]


@pytest.fixture(scope="module")
def lm():
    return checkpoints.load("small_expressive")


def test_scores_are_hugging_faces_log_likelihoods_of_the_same_ids(lm):
    documents = _documents(lm, (5, 40, 70))
    documents.append(np.append(documents[0], lm.generate_ids(documents[0], max_new_tokens=3)).astype(np.int32))
    scores = lm.token_scores([[ids] for ids in documents])
    for ids, (score,) in zip(documents, scores, strict=True):
        with torch.no_grad():
            logits = hugging_face_llama("small_expressive")(torch.tensor(ids[None].astype(np.int64))).logits[0].double()
        want = torch.log_softmax(logits, -1).numpy()[np.arange(len(ids) - 1), ids[1:]]
        np.testing.assert_allclose(score.all[1:], want, atol=1e-4)
        assert score.all[0] == score.modality[0] == 0
        best = logits.argmax(-1).numpy()[:-1]
        np.testing.assert_array_equal(score.best[1:], best == ids[1:])


def test_the_softmax_over_a_modality_masks_the_other_one(lm):
    (ids,) = _documents(lm, (60,))
    ids[5:7] = lm.vocabulary.text_id, lm.vocabulary.speech_id
    ((score,),) = lm.token_scores([[ids]])
    logits = np.asarray(lm.logits(ids), np.float64)[0]
    v = lm.vocabulary
    for place in range(1, len(ids)):
        target = ids[place]
        row = logits[place - 1]
        if target < v.text_size:
            row = row[: v.text_size]
        elif target >= v.hubert_offset:
            row = row[v.hubert_offset : v.size]
        want = logits[place - 1][target] - np.log(np.exp(row - row.max()).sum()) - row.max()
        assert score.modality[place] == pytest.approx(want, abs=1e-4)
    assert (score.modality[1:] >= score.all[1:] - 1e-5).all()


def test_a_common_beginning_that_is_read_once_changes_no_score(lm, monkeypatch):
    groups = [_documents(lm, (90, 70, 80), 60), _documents(lm, (50, 55), 45), _documents(lm, (20, 30), 5)]
    shared = []
    original = scoring._Scorer.score_shared

    def score_shared(self, batch, *rest):
        shared.append(len(batch))
        original(self, batch, *rest)

    monkeypatch.setattr(scoring._Scorer, "score_shared", score_shared)
    together = lm.token_scores(groups)
    assert sum(shared) == 2, "two groups share enough tokens"
    for group, scores in zip(groups, together, strict=True):
        for ids, score in zip(group, scores, strict=True):
            ((alone,),) = lm.token_scores([[ids]])
            np.testing.assert_allclose(score.all, alone.all, atol=1e-4)
            np.testing.assert_allclose(score.modality, alone.modality, atol=1e-4)


def test_what_several_groups_begin_with_is_read_once_and_changes_no_score(lm, monkeypatch):
    root = _documents(lm, (50,))[0]

    def question(own, answers):
        stem = np.concatenate([root, RNG.integers(3, lm.vocabulary.size, own)])
        return [np.append(stem, answer).astype(np.int32) for answer in answers]

    groups = [_documents(lm, (50, 55), 45), question(10, (5, 6, 7)), question(18, (5, 6)), question(3, (8, 9))]
    read = []
    original = scoring._root_scores
    monkeypatch.setattr(scoring, "_root_scores", lambda *args: (read.append(args[3].shape), original(*args))[1])
    together = lm.token_scores(groups, batch_tokens=512)
    assert read == [(1, 64)], "50 tokens once, for three groups in three batches"
    for group, scores in zip(groups, together, strict=True):
        for ids, score in zip(group, scores, strict=True):
            ((alone,),) = lm.token_scores([[ids]])
            np.testing.assert_allclose(score.all, alone.all, rtol=1e-5, atol=1e-4)
            np.testing.assert_allclose(score.modality, alone.modality, rtol=1e-5, atol=1e-4)


def test_a_batch_of_many_equals_batches_of_one(lm):
    documents = _documents(lm, (7, 64, 33, 12, 100))
    many = lm.token_scores([[ids] for ids in documents], batch_tokens=512)
    for ids, (score,) in zip(documents, many, strict=True):
        ((alone,),) = lm.token_scores([[ids]], batch_tokens=1)
        np.testing.assert_allclose(score.all, alone.all, atol=1e-4)
