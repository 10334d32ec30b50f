"""Prompts become strings and ids as in the reference's own runs."""

import base64

import numpy as np
import pytest

from spirit_jax import Segment, SpeechUnits, load_audio, save_audio
from spirit_jax.inference import prompts
from spirit_jax.inference.prompts import MODALITIES, Modality, PromptError
from spirit_jax.vocabulary import Vocabulary
from tests.support import checkpoints
from tests.support.goldens import golden, golden_json

MODALITY: dict[str, Modality] = {"TEXT": "text", "SPEECH": "speech", "ARBITRARY": "any"}


def stub_units(segment: Segment) -> str:
    """The reference's stub: a unit string that depends on the number of samples alone."""
    samples = len(segment.audio)
    return "".join(f"[Hu{(7 * samples + i) % 500}]" for i in range(max(1, samples // 640 - 1)))


@pytest.mark.parametrize("case", golden_json("build_prompt.json")["cases"], ids=str)
def test_prompts_are_built_as_in_the_reference(case):
    segments = [
        Segment.text(content) if kind.lower() == "text" else Segment.speech(np.zeros(content, np.float32))
        for kind, content in case["inputs"]
    ]
    # the golden stub's formula is (7n + i) % 500, n the samples
    got = prompts.build_prompt(segments, MODALITY[case["output_modality"]], stub_units)
    assert got == case["result"]["ok"]


EXPRESSIVE = SpeechUnits(np.array([7, 7, 9, 3]), np.array([1, 2]), np.array([5]))


def test_frame_rate_and_aligned_units_have_the_same_string():
    string = "[St5][Pi1][Hu7][Pi2][Hu9][Hu3]"
    assert prompts.units_string(EXPRESSIVE) == string
    assert prompts.units_string(SpeechUnits.from_string(string)) == string
    assert prompts.units_string(SpeechUnits(np.array([4, 4, 5]))) == "[Hu4][Hu5]"


def test_speech_segments_take_audio_files_units_and_strings():
    assert Segment.speech("[Hu3][Hu4]").tokens == "[Hu3][Hu4]"
    assert Segment.speech(EXPRESSIVE).content is EXPRESSIVE
    audio = Segment.speech(golden("audio/silence.wav")).audio
    assert (audio.dtype, audio.shape) == (np.float32, (16000,))
    assert Segment.speech(golden("audio/silence.wav").read_bytes()).audio.shape == (16000,)
    with pytest.raises(PromptError, match=r"1-D array of floats at 16 kHz, found float64 \(2, 9\)"):
        Segment.speech(np.zeros((2, 9)))
    with pytest.raises(PromptError, match="found int"):
        Segment.text(3)  # pyright: ignore[reportArgumentType]  the refused type


def test_audio_without_a_voice_is_logged(tmp_path, caplog):
    """Silence and noise have no voiced frame; a hum has."""
    rng, time = np.random.default_rng(0), np.arange(16_000) / 16_000
    clips = {
        "silence.wav": np.zeros(16_000),
        "noise.wav": 0.1 * rng.standard_normal(16_000),
        "hum.wav": 0.3 * np.sin(2 * np.pi * 120 * time) + 0.1 * np.sin(2 * np.pi * 240 * time),
    }
    for name, samples in clips.items():
        save_audio(tmp_path / name, samples)
        Segment.speech(tmp_path / name)
    logged = [record.message for record in caplog.records]
    assert [f"{name}: no frame of it is voiced" in message for name, message in zip(clips, logged, strict=False)] == [
        True,
        True,
    ]


def test_a_notebook_shows_text_and_plays_speech():
    assert Segment.text("a <b>")._repr_html_() == "<p>a &lt;b&gt;</p>"
    assert Segment.speech("[Hu3][Hu4]")._repr_html_() == "<p>[Hu3][Hu4]</p>"
    assert Segment.speech(EXPRESSIVE)._repr_html_() == "<p>[St5][Pi1][Hu7][Pi2][Hu9][Hu3]</p>"
    shown = Segment.speech(np.zeros(2000, np.float32))._repr_html_()
    head, _, rest = shown.partition("base64,")
    assert head == '<audio controls src="data:audio/wav;'
    assert load_audio(base64.b64decode(rest.partition('"')[0])).shape == (2000,)


def test_unit_tokens_that_the_vocabulary_lacks_are_refused():
    base = Vocabulary.load(golden("tokenizers/small_base_userdef"))
    expressive = Vocabulary.load(golden("tokenizers/small_expressive_userdef"))
    prompts.check_unit_tokens("[Text]plain [hu1] [Hu 1] [Speech][Hu500][Pi63][St99]", expressive)
    with pytest.raises(PromptError, match=r"\[Hu501\] at position 8 is no token: \[Hu...\] go from 0 to 500"):
        prompts.check_unit_tokens("[Speech][Hu501]", expressive)
    with pytest.raises(
        PromptError, match=r"\[Pi3\] at position 0: Spirit LM base has no pitch units; use an expressive"
    ):
        prompts.check_unit_tokens("[Pi3]", base)


def test_modalities_are_in_the_order_of_the_table_of_forbidden_ids():
    assert MODALITIES == ("text", "speech", "any")


def test_only_speech_with_a_waveform_has_audio():
    assert Segment.speech(np.zeros(2000, np.float32)).audio.shape == (2000,)
    with pytest.raises(PromptError, match="this text segment holds str, not audio"):
        _ = Segment.text("hi").audio
    with pytest.raises(PromptError, match="this speech segment holds SpeechUnits, not audio"):
        _ = Segment.speech(EXPRESSIVE).audio


def test_a_prompt_is_encoded_once(monkeypatch):
    """An encoded prompt holds string, ids and modality, and generation does not encode it again."""
    lm = checkpoints.load("small_expressive")
    prompt = lm.encode_prompt([Segment.text("hi")], "speech")
    assert (prompt.string, prompt.output_modality) == ("[Text]hi[Speech]", "speech")
    assert prompt.ids.tolist() == lm.vocabulary.encode("[Text]hi[Speech]")
    expected = lm.generate("[Text]hi[Speech]", "speech", max_new_tokens=4)
    monkeypatch.setattr(Vocabulary, "encode", None)
    assert lm.generate(prompt, max_new_tokens=4)[0].tokens == expected[0].tokens


def test_audio_of_a_prompt_is_encoded_once():
    calls = []

    class Encoder:
        def encode(self, audio: np.ndarray) -> SpeechUnits:
            calls.append(audio.size)
            return EXPRESSIVE

    encoder = prompts.PromptEncoder(checkpoints.load("small_expressive").vocabulary, 4096, Encoder())
    segment = encoder.encode_speech(Segment.speech(np.zeros(2000, np.float32)))
    for _ in range(2):
        assert encoder.encode([segment, Segment.text("a")]).string == "[Speech][St5][Pi1][Hu7][Pi2][Hu9][Hu3][Text]a"
    assert calls == [2000]
