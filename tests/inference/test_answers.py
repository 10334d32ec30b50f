"""Generated strings become segments as in the reference's own runs."""

import numpy as np
import pytest

from spirit_jax.inference import answers
from spirit_jax.inference.prompts import Modality
from tests.support.goldens import golden_json

MODALITY: dict[str, Modality] = {"TEXT": "text", "SPEECH": "speech", "ARBITRARY": "any"}


@pytest.mark.parametrize("case", [c for c in golden_json("string_helpers.json") if c["s"] is not None], ids=str)
def test_strings_are_parsed_as_in_the_reference(case):
    string = case["s"]
    kinds = {"t": "text", "s": "speech"}
    assert answers.parse_runs(string) == [(content, kinds[kind]) for content, kind in case["parse"]["ok"]]
    assert answers.last_speech_start(string) == case["last_speech_start"]["ok"]
    assert answers.starts_with_speech(string) == case["starts"]["ok"]
    assert answers.ends_with_speech(string) == case["ends"]["ok"]


@pytest.mark.parametrize("case", golden_json("decode_rules.json")["cases"], ids=lambda c: c["new"][:20])
def test_output_is_split_as_in_the_reference(case):
    """Segments, their lengths, first and last samples, and what the vocoder was asked for, in order."""
    calls = []

    def speak(string: str) -> np.ndarray:
        calls.append(string)
        return np.arange(100 * string.count("[Hu"), dtype=np.float32) / 1000

    modality = MODALITY[case["output_modality"]]
    segments = answers.split_output(case["prompt"], case["prompt"] + case["new"], modality, speak)
    expected = case["result"]["ok"]
    assert [s.kind.upper() for s in segments] == [e[0] for e in expected]
    for segment, (kind, *rest) in zip(segments, expected, strict=True):
        if kind == "TEXT":
            assert [segment.content] == rest
        else:
            ends = segment.audio[[0, -1]].tolist() if segment.audio.size else [None, None]
            assert [segment.audio.size, *ends] == rest
    assert calls == [call[0] for call in case["decode_calls"]]


def test_the_first_of_several_stop_strings_is_found():
    assert answers.find_stop("one two three", ["three", "two"]) == 4
    assert answers.find_stop("one two three", ["four"]) is None
    assert answers.find_stop("one two three", []) is None
