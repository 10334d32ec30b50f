"""Perplexity and the alignment probe on models whose answers are known."""

import math

import numpy as np
import pytest
import torch

from spirit_jax.evaluation.task import Job, TaskSettings
from spirit_jax.evaluation.tasks import TASKS
from spirit_jax.evaluation.tasks.alignment import gains_of_best_layer, hidden_states
from spirit_jax.vocabulary import Vocabulary
from tests.support import checkpoints, synthetic
from tests.support.bigrams import bigram_model
from tests.support.hugging_face import hugging_face_llama


def test_perplexity_of_each_kind_of_token_is_that_of_arithmetic(tmp_path):
    """Text is e times as likely as anything else, whatever comes before it."""
    vocabulary = Vocabulary.train(["abc def ghi"] * 20, size=276, variant="base")
    table = np.zeros((vocabulary.size, vocabulary.size), np.float32)
    table[:, : vocabulary.text_size] = 1
    total = vocabulary.text_size * math.e + vocabulary.size - vocabulary.text_size
    synthetic.make_records(tmp_path / "records", records=4, words=(3, 6))
    settings = TaskSettings(data={"perplexity": str(tmp_path / "records" / "aligned")})
    job = Job(bigram_model(vocabulary, table), settings, tmp_path / "out")
    figures = TASKS["perplexity"].run(job, ["T", "S"]).figures
    found = {(figure.direction, figure.group): figure.estimate.value for figure in figures}
    assert found["T", "text"] == pytest.approx(total / math.e, rel=1e-3)
    assert found["S", "hubert"] == pytest.approx(total, rel=1e-3)


def test_hidden_states_have_the_directions_of_hugging_faces():
    lm = checkpoints.load("small_expressive")
    rng = np.random.default_rng(0)
    ids = np.array([1, *rng.integers(3, lm.vocabulary.size, 20)], np.int32)
    found = hidden_states(lm, [ids])[:, 0, : len(ids)]
    with torch.no_grad():
        states = hugging_face_llama("small_expressive")(
            torch.tensor(ids[None].astype(np.int64)), output_hidden_states=True
        )
    middle = [state[0].numpy() for state in states.hidden_states[1:-1]]  # the last one is after the final norm
    assert len(found) == len(middle) + 1 > 1
    for ours, expected in zip(found, middle, strict=False):
        cosine = (ours * expected).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(expected, axis=-1)
        np.testing.assert_allclose(cosine, 1, atol=1e-4)


def test_all_sentences_are_compared_in_the_same_layer():
    lines = [
        {"similarity": [0.9, 0.5], "control": [0.5, 0.6]},
        {"similarity": [0.5, 0.7], "control": [0.6, 0.6]},
    ]
    gains, layer = gains_of_best_layer(lines)
    assert layer == 1
    assert gains == pytest.approx([0.4, -0.1])
    assert gains_of_best_layer([]) == ([], 0)
