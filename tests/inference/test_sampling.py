"""Distributions that tokens are drawn from: recorded ones, Hugging Face's processors live, and what is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation import logits_process as hf

from spirit_jax.inference import sampling
from spirit_jax.inference.prompts import forbidden_ids
from spirit_jax.inference.sampling import Knobs, Sampling
from spirit_jax.vocabulary import Vocabulary
from tests.support.goldens import golden, golden_arrays, golden_json

ROWS = {"TEXT": 0, "SPEECH": 1, "ARBITRARY": 2}


def distribution(logits_v: np.ndarray, method: Sampling) -> np.ndarray:
    """What a token is drawn from, probabilities [V]."""
    return np.asarray(jax.nn.softmax(sampling.truncate(jnp.asarray(logits_v)[None], Knobs.of([method]))))[0]


@pytest.mark.parametrize("index", range(6))
def test_recorded_distributions(index):
    """The processors of the released generation, top-k 50 by default: equal within 1e-6, the manifest's tolerance."""
    arrays, case = golden_arrays("sampling.npz"), golden_json("sampling_cases.json")[index]
    vocabulary = Vocabulary.load(golden("tokenizers/small_expressive_userdef"))
    forbidden = forbidden_ids(vocabulary, arrays["logits"].size)[ROWS[case["modality"]]]
    forbidden[vocabulary.size :] = False  # rows that only pad are free in the reference
    logits = np.where(forbidden, -np.inf, arrays["logits"])
    got = distribution(logits, Sampling(**({"temperature": 1.0} | case["gen"])))
    assert np.count_nonzero(got) == case["kept"]
    np.testing.assert_allclose(got, arrays[f"probs{index}"], atol=1e-6)


METHODS = [
    Sampling(temperature=0.7, top_k=0),
    Sampling(temperature=1.0, top_k=0, top_p=0.9),
    Sampling(temperature=1.3, top_k=7),
    Sampling(temperature=0.8, top_k=40, top_p=0.95),
    Sampling(temperature=1.0, top_k=100),
    Sampling(temperature=1.0, top_k=0, min_p=0.1),
    Sampling(temperature=1.5, top_k=20, top_p=0.8, min_p=0.2),
    Sampling(temperature=2.0, top_k=0, top_p=1e-6),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_distributions_are_those_of_hugging_face(method):
    """Random logits with ties nowhere, in HF's order of processors: within 1e-6, float32 sums of 300 probabilities."""
    logits = np.random.default_rng(0).normal(0, 3, (5, 300)).astype(np.float32)
    scores, ids = torch.tensor(logits), torch.zeros((5, 1), dtype=torch.long)
    scores = hf.TemperatureLogitsWarper(method.temperature)(ids, scores)
    if method.top_k:
        scores = hf.TopKLogitsWarper(method.top_k)(ids, scores)
    if method.top_p < 1:
        scores = hf.TopPLogitsWarper(method.top_p)(ids, scores)
    if method.min_p:
        scores = hf.MinPLogitsWarper(method.min_p)(ids, scores)
    got = np.stack([distribution(row, method) for row in logits])
    few = sampling.candidates([method])
    assert few == (64 if 0 < method.top_k <= 64 else None)  # enough of the most likely tokens, or all
    with_few = sampling.truncate(jnp.asarray(logits), jax.tree.map(lambda x: np.repeat(x, 5), Knobs.of([method])), few)
    np.testing.assert_allclose(jax.nn.softmax(with_few), got, atol=1e-6)
    np.testing.assert_allclose(got, torch.softmax(scores, -1).numpy(), atol=1e-6)


def test_repetition_penalty_is_that_of_hugging_face():
    logits = np.random.default_rng(1).normal(0, 3, (2, 50)).astype(np.float32)
    ids = np.array([[3, 7, 7, 9], [0, 1, 2, 3]])
    want = hf.RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor(ids), torch.tensor(logits)).numpy()
    occurred = np.zeros((2, 50), bool)
    occurred[np.arange(2)[:, None], ids] = True
    got = sampling.penalise(jnp.asarray(logits), occurred, jnp.array([1.7, 1.7]))
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("varied", ["count", "seed"])
def test_draws_follow_the_distribution(varied):
    """40 000 draws, by count of one seed and by seed, against the exact probabilities: a chi-square of 5 degrees of freedom,
    below 20.5 but for one seed in a thousand; the seeds are fixed."""
    logits = jnp.array([2.0, 1.0, 0.5, 0.0, -1.0, -2.0, -30.0])
    method = Sampling(temperature=1.0, top_k=6, seed=5)
    n = 40_000
    knobs = jax.tree.map(lambda x: np.repeat(x, n), Knobs.of([method]))
    count = np.arange(n)
    if varied == "seed":
        knobs, count = knobs._replace(seed=np.arange(n, dtype=np.uint32)), np.full(n, 7)
    drawn = sampling.choose(jnp.tile(logits, (n, 1)), knobs, count, few=64)
    counts = np.bincount(drawn, minlength=7)
    expected = n * distribution(logits, method)
    assert counts[6] == expected[6] == 0
    assert (((counts - expected) ** 2)[:6] / expected[:6]).sum() < 20.5


def test_greedy_and_drawn_rows_share_a_batch():
    logits = jnp.tile(jnp.array([0.0, 3.0, 2.9, 1.0]), (3, 1))
    methods = [Sampling(), Sampling(temperature=1.0, seed=1), Sampling(temperature=1.0, seed=1)]
    first, second, third = sampling.choose(logits, Knobs.of(methods), jnp.array([0, 4, 4]), few=None).tolist()
    assert first == 1
    assert second == third


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -1.0), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1), ("min_p", 2.0), ("repetition_penalty", 0.0)],
)
def test_bad_values(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .* found {value}"):
        Sampling(**{field: value})
