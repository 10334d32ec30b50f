"""Tokens are drawn from the distributions of Hugging Face: recorded ones, and its processors run live."""

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation import logits_process as hf

from spirit_jax.inference import sampling
from spirit_jax.inference.grammar import forbidden_ids
from spirit_jax.inference.sampling import SamplingArrays, SamplingFeatures
from spirit_jax.inference.sampling_params import SamplingError, SamplingParams
from spirit_jax.vocabulary import Vocabulary
from tests.support.goldens import golden, golden_arrays, golden_json

ROWS = {"TEXT": 0, "SPEECH": 1, "ARBITRARY": 2}


def distribution(logits_v: np.ndarray | jax.Array, method: SamplingParams) -> np.ndarray:
    """The probabilities [V] that a token is drawn with."""
    return np.asarray(jax.nn.softmax(sampling.truncate(jnp.asarray(logits_v)[None], SamplingArrays.of([method]))))[0]


@pytest.mark.parametrize("index", range(6))
def test_distributions_are_those_of_the_released_generation(index):
    """The processors of the released generation, top-k 50 by default: equal within 1e-6, the manifest's tolerance."""
    arrays, case = golden_arrays("sampling.npz"), golden_json("sampling_cases.json")[index]
    vocabulary = Vocabulary.load(golden("tokenizers/small_expressive_userdef"))
    forbidden = forbidden_ids(vocabulary, arrays["logits"].size)[ROWS[case["modality"]]]
    forbidden[vocabulary.size :] = False  # rows that only pad are free in the reference
    logits = np.where(forbidden, -np.inf, arrays["logits"])
    got = distribution(logits, SamplingParams(**({"temperature": 1.0} | case["gen"])))
    assert np.count_nonzero(got) == case["kept"]
    np.testing.assert_allclose(got, arrays[f"probs{index}"], atol=1e-6)


METHODS = [
    SamplingParams(temperature=0.7, top_k=0),
    SamplingParams(temperature=1.0, top_k=0, top_p=0.9),
    SamplingParams(temperature=1.3, top_k=7),
    SamplingParams(temperature=0.8, top_k=40, top_p=0.95),
    SamplingParams(temperature=1.0, top_k=100),
    SamplingParams(temperature=1.0, top_k=0, min_p=0.1),
    SamplingParams(temperature=1.5, top_k=20, top_p=0.8, min_p=0.2),
    SamplingParams(temperature=2.0, top_k=0, top_p=1e-6),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_distributions_are_those_of_hugging_face(method):
    """Random logits with ties nowhere, in HF's order of processors: within 1e-6, float32 sums of 300 probabilities."""
    logits = np.random.default_rng(0).normal(0, 3, (5, 300)).astype(np.float32)
    scores, ids = torch.tensor(logits), cast(torch.LongTensor, torch.zeros((5, 1), dtype=torch.long))
    scores = hf.TemperatureLogitsWarper(method.temperature)(ids, scores)
    if method.top_k:
        scores = hf.TopKLogitsWarper(method.top_k)(ids, scores)
    if method.top_p < 1:
        scores = hf.TopPLogitsWarper(method.top_p)(ids, scores)
    if method.min_p:
        scores = hf.MinPLogitsWarper(method.min_p)(ids, scores)
    got = np.stack([distribution(row, method) for row in logits])
    shortlist = SamplingFeatures.of([method]).shortlist
    assert shortlist == (64 if 0 < method.top_k <= 64 else None)  # enough of the most likely tokens, or all
    from_shortlist = sampling.truncate(jnp.asarray(logits), SamplingArrays.of([method] * 5), shortlist)
    np.testing.assert_allclose(jax.nn.softmax(from_shortlist), got, atol=1e-6)
    np.testing.assert_allclose(got, torch.softmax(scores, -1).numpy(), atol=1e-6)


def test_the_repetition_penalty_is_that_of_hugging_face():
    logits = np.random.default_rng(1).normal(0, 3, (2, 50)).astype(np.float32)
    ids = np.array([[3, 7, 7, 9], [0, 1, 2, 3]])
    want = hf.RepetitionPenaltyLogitsProcessor(1.7)(
        cast(torch.LongTensor, torch.tensor(ids)), torch.tensor(logits)
    ).numpy()
    occurred = np.zeros((2, 50), bool)
    occurred[np.arange(2)[:, None], ids] = True
    got = sampling.penalize_repetition(jnp.asarray(logits), occurred, jnp.array([1.7, 1.7]))
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("varied", ["count", "seed"])
def test_draws_follow_the_distribution(varied):
    """40 000 draws, by count of one seed and by seed, against the exact probabilities: a chi-square of 5 degrees of
    freedom, below 20.5 but for one seed in a thousand; the seeds are fixed."""
    logits = jnp.array([2.0, 1.0, 0.5, 0.0, -1.0, -2.0, -30.0])
    method = SamplingParams(temperature=1.0, top_k=6, seed=5)
    n = 40_000
    options = SamplingArrays.of([method] * n)
    count = np.arange(n)
    if varied == "seed":
        options, count = options._replace(seed=np.arange(n, dtype=np.uint32)), np.full(n, 7)
    drawn = sampling.sample(jnp.tile(logits, (n, 1)), options, count, shortlist=64)
    counts = np.bincount(drawn, minlength=7)
    expected = n * distribution(logits, method)
    assert counts[6] == expected[6] == 0
    assert (((counts - expected) ** 2)[:6] / expected[:6]).sum() < 20.5


def test_greedy_and_drawn_rows_share_a_batch():
    logits = jnp.tile(jnp.array([0.0, 3.0, 2.9, 1.0]), (3, 1))
    methods = [SamplingParams(), SamplingParams(temperature=1.0, seed=1), SamplingParams(temperature=1.0, seed=1)]
    first, second, third = sampling.sample(
        logits, SamplingArrays.of(methods), jnp.array([0, 4, 4]), shortlist=None
    ).tolist()
    assert first == 1
    assert second == third


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("max_new_tokens", 0),
        ("max_new_tokens", 1.5),
    ],
)
def test_options_out_of_range_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .* found {value}"):
        SamplingParams(**{field: value})


def test_a_stop_string_is_not_empty():
    assert SamplingParams(stop="end").stop == ("end",)
    assert SamplingParams(stop=["end", "stop"]).stop == ("end", "stop")
    with pytest.raises(SamplingError, match="a stop string needs at least one character"):
        SamplingParams(stop=["end", ""])


def test_an_override_replaces_the_fields_that_are_given():
    options = SamplingParams(temperature=0.6, top_p=0.9)
    assert options.override(temperature=None, top_p=0.5, stop="end") == SamplingParams(0.6, top_p=0.5, stop="end")
    assert options.override(temperature=0.0, seed=None) == SamplingParams(temperature=0.0, top_p=0.9)
    with pytest.raises(SamplingError, match="top_p must be above 0 and at most 1, found 2"):
        options.override(top_p=2)
    with pytest.raises(TypeError, match="temprature"):
        options.override(temprature=1.0)


def test_options_follow_hugging_face_generation_configs():
    read = SamplingParams.from_generation_config
    assert read({"temperature": 0.6, "top_p": 0.9}).temperature == 0  # Hugging Face decodes greedily without do_sample
    assert read({"do_sample": True, "top_k": None}) == SamplingParams(temperature=1.0)
    assert read({"do_sample": True, "top_k": 0, "max_new_tokens": 7}) == SamplingParams(1.0, top_k=0, max_new_tokens=7)
    with pytest.raises(ValueError, match="generation: top_k must be a number, found 'many'"):
        read({"top_k": "many"})


@pytest.mark.parametrize(
    ("features", "covered", "refused"),
    [
        (SamplingFeatures(), [{}, {"temperature": 1.0, "top_k": 0, "repetition_penalty": 2.0, "grammar": True}], []),
        (SamplingFeatures(0, False, False), [{}, {"top_k": 0}], [{"temperature": 1.0}, {"grammar": True}]),
        (SamplingFeatures(64, False, False), [{"temperature": 1.0}], [{"temperature": 1.0, "top_k": 65}]),
        (SamplingFeatures(None, False, True), [{"grammar": True}], [{"repetition_penalty": 1.5}]),
    ],
)
def test_features_cover_the_options_that_they_were_made_for(features, covered, refused):
    assert all(features.cover(SamplingParams(**options)) for options in covered)
    assert not any(features.cover(SamplingParams(**options)) for options in refused)
