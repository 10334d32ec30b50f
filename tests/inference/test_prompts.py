"""Prompt building, forbidden ids, string helpers and the splitting of output against the reference's (golden)."""

import numpy as np
import pytest

from spirit_jax import Segment, SpeechUnits
from spirit_jax.inference import prompts
from spirit_jax.inference.prompts import MODALITIES, PromptError
from spirit_jax.vocabulary import Vocabulary
from tests.support.goldens import golden, golden_json

MODALITY = {"TEXT": "text", "SPEECH": "speech", "ARBITRARY": "any"}


def stub_units(segment: Segment) -> str:
    """The reference's stub: a unit string out of the number of samples alone."""
    samples = len(segment.content)
    return "".join(f"[Hu{(7 * samples + i) % 500}]" for i in range(max(1, samples // 640 - 1)))


@pytest.mark.parametrize("case", golden_json("build_prompt.json")["cases"], ids=str)
def test_build_prompt(case):
    segments = [
        Segment.text(content) if kind.lower() == "text" else Segment.speech(np.zeros(content, np.float32))
        for kind, content in case["inputs"]
    ]
    # the golden stub's formula is (7n + i) % 500, n the samples
    got = prompts.build_prompt(segments, MODALITY[case["output_modality"]], stub_units)
    assert got == case["result"]["ok"]


@pytest.mark.parametrize("case", [c for c in golden_json("string_helpers.json") if c["s"] is not None], ids=str)
def test_string_helpers(case):
    string = case["s"]
    kinds = {"t": "text", "s": "speech"}
    assert prompts.parse_runs(string) == [(content, kinds[kind]) for content, kind in case["parse"]["ok"]]
    assert prompts.last_speech_start(string) == case["last_speech_start"]["ok"]
    assert prompts.starts_with_speech(string) == case["starts"]["ok"]
    assert prompts.ends_with_speech(string) == case["ends"]["ok"]


@pytest.mark.parametrize("case", golden_json("decode_rules.json")["cases"], ids=lambda c: c["new"][:20])
def test_split_output(case):
    """Segments, their lengths and first and last samples, and what was asked of the vocoder, in order."""
    calls = []

    def voice(string: str) -> np.ndarray:
        calls.append(string)
        return np.arange(100 * string.count("[Hu"), dtype=np.float32) / 1000

    modality = MODALITY[case["output_modality"]]
    segments = prompts.split_output(case["prompt"], case["prompt"] + case["new"], modality, voice)
    expected = case["result"]["ok"]
    assert [s.kind.upper() for s in segments] == [e[0] for e in expected]
    for segment, (kind, *rest) in zip(segments, expected, strict=True):
        if kind == "TEXT":
            assert [segment.content] == rest
        else:
            ends = segment.content[[0, -1]].tolist() if segment.content.size else [None, None]
            assert [segment.content.size, *ends] == rest
    assert calls == [call[0] for call in case["decode_calls"]]


def expected_forbidden(only_speech: bool, only_text: bool, no_expression: bool) -> set[int]:
    for case in golden_json("forbidden_tokens.json"):
        asked = (case["generate_only_speech"], case["generate_only_text"], case["ban_expressivity_tokens"])
        if case["ban_special_tokens"] and asked == (only_speech, only_text, no_expression):
            return {i for start, stop in case["result"]["ranges_start_stop"] for i in range(start, stop)}
    raise AssertionError("no such case")


@pytest.mark.parametrize("variant", ["base", "expressive"])
def test_forbidden_ids(variant):
    """The reference's lists at the released sizes, less </s>, which Hugging Face takes out of them, and unused rows."""
    vocabulary = Vocabulary.load(golden(f"checkpoints/spiritlm_model/spirit-lm-{variant}-7b"))
    table = prompts.forbidden_ids(vocabulary, vocabulary.padded_size)
    unused = set(range(vocabulary.size, vocabulary.padded_size))
    text = expected_forbidden(False, True, variant == "expressive")
    speech = expected_forbidden(True, False, variant == "expressive") - {vocabulary.eos_id}
    for row, expected in zip(table, (text, speech, set()), strict=True):
        assert set(np.flatnonzero(row).tolist()) == expected | unused


EXPRESSIVE = SpeechUnits(np.array([7, 7, 9, 3]), np.array([1, 2]), np.array([5]))


def test_units_string_of_frames_and_of_aligned_units():
    string = "[St5][Pi1][Hu7][Pi2][Hu9][Hu3]"
    assert prompts.units_string(EXPRESSIVE) == string
    assert prompts.units_string(SpeechUnits.from_string(string)) == string
    assert prompts.units_string(SpeechUnits(np.array([4, 4, 5]))) == "[Hu4][Hu5]"


def test_segments_of_speech():
    assert Segment.speech("[Hu3][Hu4]").tokens == "[Hu3][Hu4]"
    assert Segment.speech(EXPRESSIVE).content is EXPRESSIVE
    audio = Segment.speech(golden("audio/silence.wav")).content
    assert (audio.dtype, audio.shape) == (np.float32, (16000,))
    assert Segment.speech(golden("audio/silence.wav").read_bytes()).content.shape == (16000,)
    with pytest.raises(PromptError, match=r"1-D array of floats at 16 kHz, found float64 \(2, 9\)"):
        Segment.speech(np.zeros((2, 9)))
    with pytest.raises(PromptError, match="found int"):
        Segment.text(3)


def test_tokens_that_the_vocabulary_lacks():
    base = Vocabulary.load(golden("tokenizers/small_base_userdef"))
    expressive = Vocabulary.load(golden("tokenizers/small_expressive_userdef"))
    prompts.check_tokens("[Text]plain [hu1] [Hu 1] [Speech][Hu500][Pi63][St99]", expressive)
    with pytest.raises(PromptError, match=r"\[Hu501\] at position 8 is no token: \[Hu...\] go from 0 to 500"):
        prompts.check_tokens("[Speech][Hu501]", expressive)
    with pytest.raises(
        PromptError, match=r"\[Pi3\] at position 0: Spirit LM base has no pitch units; use an expressive"
    ):
        prompts.check_tokens("[Pi3]", base)


def test_modalities_are_the_rows_of_the_table():
    assert MODALITIES == ("text", "speech", "any")
