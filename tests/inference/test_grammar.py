"""Which tokens may be generated: the reference's lists for each modality, and the unit grammar."""

import numpy as np
import pytest

from spirit_jax import SpiritLM
from spirit_jax.inference.grammar import Grammar, forbidden_ids
from spirit_jax.vocabulary import Vocabulary
from tests.support import checkpoints
from tests.support.goldens import golden, golden_json


@pytest.fixture(scope="module")
def lm() -> SpiritLM:
    return checkpoints.load("small_expressive")


def expected_forbidden(only_speech: bool, only_text: bool, no_expression: bool) -> set[int]:
    for case in golden_json("forbidden_tokens.json"):
        asked = (case["generate_only_speech"], case["generate_only_text"], case["ban_expressivity_tokens"])
        if case["ban_special_tokens"] and asked == (only_speech, only_text, no_expression):
            return {i for start, stop in case["result"]["ranges_start_stop"] for i in range(start, stop)}
    raise AssertionError("no such case")


@pytest.mark.parametrize("variant", ["base", "expressive"])
def test_forbidden_ids_are_those_of_the_reference(variant):
    """The lists at the released sizes, without </s>, which Hugging Face takes out of them, and with unused rows."""
    vocabulary = Vocabulary.load(golden(f"checkpoints/spiritlm_model/spirit-lm-{variant}-7b"))
    table = forbidden_ids(vocabulary, vocabulary.padded_size)
    unused = set(range(vocabulary.size, vocabulary.padded_size))
    text = expected_forbidden(False, True, variant == "expressive")
    speech = expected_forbidden(True, False, variant == "expressive") - {vocabulary.eos_id}
    for row, expected in zip(table, (text, speech, set()), strict=True):
        assert set(np.flatnonzero(row).tolist()) == expected | unused


def test_units_in_speech_may_not_repeat(lm):
    """In speech, the last phonetic and the last pitch unit may not come again. Other units may; text may not."""
    v, grammar = lm.vocabulary, Grammar.of(lm.vocabulary, lm.config.vocab_size)
    hubert, pitch, style = (np.arange(100) + start for start in (v.hubert_offset, v.pitch_offset, v.style_offset))
    prompt = [v.speech_id, style[4], pitch[7], hubert[3], pitch[8], style[4]]
    state = grammar.start(prompt, False)
    forbidden = np.asarray(grammar.forbidden(state[None]))[0, : v.size]
    allowed = {v.text_id, v.bos_id, v.eos_id, *range(v.hubert_offset, v.size)} - {hubert[3], pitch[8]}
    assert set(np.flatnonzero(~forbidden).tolist()) == allowed
    stepwise = grammar.start(prompt[:1], False)[None]
    for token in prompt[1:]:
        stepwise = grammar.advance(stepwise, np.array([token]))
    np.testing.assert_array_equal(stepwise[0], state)


@pytest.mark.parametrize("seed", range(3))
def test_generated_speech_is_well_formed(lm, seed):
    """Speech starts with style, pitch, phonetic unit; no unit repeats in its stream, and none comes outside speech."""
    v = lm.vocabulary
    prompt, options = v.encode("[Text]hello[Speech]"), {"temperature": 2.0, "seed": seed, "grammar": True}
    new = lm.generate_ids(prompt, "any", max_new_tokens=120, top_k=0, **options).tolist()
    inside, run, last = True, [], {}
    for token in new:
        kind = v.token_kinds[token]
        if token == v.speech_id:
            assert not inside
            inside, run, last = True, [], {}
        elif kind in (1, 2, 3):
            assert inside
            assert kind == 3 or last.get(kind) != token
            last[kind] = token
            run.append(kind)
            assert run[:3] == [3, 2, 1][: len(run)]
        else:
            assert not inside or (token in (v.text_id, v.eos_id) or kind == 4)
            inside = False
    speech = lm.generate_ids(v.encode("[Text]hello"), "speech", max_new_tokens=30, **options)
    assert v.token_kinds[speech[:3]].tolist() == [3, 2, 1]
