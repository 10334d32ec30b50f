"""Greedy ids against Hugging Face's `generate`: live, and as recorded with the released generation of transformers."""

from collections.abc import Iterator

import pytest

from spirit_jax import SpiritLM
from spirit_jax.inference.grammar import forbidden_ids
from spirit_jax.inference.prompts import MODALITIES, Modality
from tests.support import checkpoints
from tests.support.goldens import golden_arrays, golden_json
from tests.support.hugging_face import hugging_face_greedy, hugging_face_llama
from tests.support.llamas import golden_llama

pytestmark = pytest.mark.optimized

MODALITY: dict[str, Modality] = {"TEXT": "text", "SPEECH": "speech", "ARBITRARY": "any"}
CASES = golden_json("llama_greedy.json")["cases"]
SMALL = ("small_base", "small_expressive")


def cases(name: str) -> Iterator[tuple[str, Modality, dict]]:
    for key, case in CASES.items():
        model, modality, _ = key.split("|")
        if model == name:
            yield key, MODALITY[modality], case


@pytest.mark.parametrize("name", SMALL)
def test_greedy_ids_are_those_of_hugging_face(name):
    """32 tokens after each golden prompt in each modality: all equal, in a batch of prompts of different length too."""
    lm = checkpoints.load(name)
    model = hugging_face_llama(name)
    table = forbidden_ids(lm.vocabulary, lm.config.vocab_size)
    for modality in MODALITIES:
        bad = [[i] for i in table[MODALITIES.index(modality)].nonzero()[0].tolist()]
        prompts = [case["prompt_ids"] for _, asked, case in cases(name) if asked == modality]
        wanted = [hugging_face_greedy(model, ids, max_new_tokens=32, bad_words_ids=bad) for ids in prompts]
        assert [lm.generate_ids(ids, modality, max_new_tokens=32).tolist() for ids in prompts] == wanted, modality


@pytest.mark.accelerator
@pytest.mark.parametrize("name", checkpoints.NAMES)
def test_greedy_ids_are_those_recorded(name):
    """Prompts' ids, and greedy ids as far as the recorded model is known.

    Coordinate 0 of the golden files' embedding was overwritten after recording; `golden_llama` has it back for the ids
    of the prompts, so that an answer can be followed up to its first token outside them, that token included.
    """
    config, params = golden_llama(name)
    known = set(golden_arrays("../variants/llama_coordinate_0.npz")[f"{name}/ids"].tolist())
    vocabulary = checkpoints.load(name).vocabulary
    lm = SpiritLM(params, config, vocabulary)
    compared = 0
    for key, modality, case in cases(name):
        if name != "small_base":  # its ids come from a tokenizer whose tokens are no pieces of the model
            assert vocabulary.encode(case["prompt"]) == case["prompt_ids"], key
        want = case["new_ids"]
        length = next((i for i, token in enumerate(want, 1) if token not in known), len(want))
        assert lm.generate_ids(case["prompt_ids"], modality, max_new_tokens=32).tolist()[:length] == want[:length], key
        compared += length
    assert compared >= len(list(cases(name)))
