"""From audio to tokens and from tokens to audio, against the reference's own recorded runs.

The language model's weights of these runs are not available (see test_greedy), so its recorded tokens replace it: the
prompts before them are encoded here, and the answers after them are split and synthesized here.
"""

import functools

import numpy as np
import pytest

from spirit_jax import Segment, SpiritLM
from spirit_jax.convert.jobs import run_jobs
from spirit_jax.convert.plans import plan_import
from spirit_jax.inference.prompts import EncodedPrompt, Modality
from spirit_jax.speech.released import batches
from tests.support import released
from tests.support.golden_clips import clip
from tests.support.goldens import golden, golden_arrays, golden_json

pytestmark = pytest.mark.optimized

NAMES = {"base": "spirit-lm-base-7b", "expressive": "spirit-lm-expressive-7b"}
MODALITY: dict[int, Modality] = {503: "text", 667: "text", 32002: "speech", 0: "any"}


@pytest.fixture(autouse=True)
def few_lengths(monkeypatch):
    monkeypatch.setattr(batches, "PADDED_LENGTHS", released.PADDED_LENGTHS)


@functools.cache
def recorded(variant: str) -> dict:
    return golden_json("spiritlm_e2e.json")[NAMES[variant]]["float32"]


@pytest.fixture(scope="module", params=NAMES)
def lm(request, tmp_path_factory) -> SpiritLM:
    """The whole released tree of a variant, converted."""
    target = tmp_path_factory.mktemp("released") / request.param
    run_jobs(plan_import(golden("checkpoints"), model=request.param), target, overwrite=False)
    return SpiritLM.from_pretrained(target, dtype="float32")


@pytest.mark.accelerator
def test_answers_are_those_of_the_reference(lm):
    """Segments, and the first 12000 samples of each waveform within the golden tolerance of 2e-4."""
    waves = golden_arrays("e2e.npz")
    spoken = 0
    for name, run in recorded(lm.vocabulary.variant).items():
        if "outputs" not in run or name == "t2t_unforced":
            continue
        modality = MODALITY[run["n_bad_words"]]
        new = run["generated_ids"][len(run["input_ids"]) :]
        prompt = EncodedPrompt(np.array(run["input_ids"]), modality)
        segments = lm.decode_answer(prompt, np.array(new), speaker=1 if name == "s2s" else 2)
        if name == "single_tuple_not_list":  # recorded with the prompt in it
            continue
        assert [segment.kind.upper() for segment in segments] == [kind for kind, _ in run["outputs"]], name
        for index, (segment, (kind, expected)) in enumerate(zip(segments, run["outputs"], strict=True)):
            if kind == "TEXT":
                assert segment.content == expected, name
                continue
            assert segment.audio.size == expected, name
            wave = waves[f"{NAMES[lm.vocabulary.variant]}/{name}/out{index}"]
            np.testing.assert_allclose(segment.audio[: wave.size], wave, atol=2e-4, err_msg=name)
            spoken += 1
    assert spoken >= 3


def test_speech_without_pitch_is_spoken(lm):
    """The reference fails on an expressive run without pitch."""
    if lm.vocabulary.variant == "expressive":
        for name in ("arb1", "t2a"):
            run = recorded("expressive")[name]
            assert run["raises"] == "KeyError"
            prompt = EncodedPrompt(np.array(run["input_ids"]))
            segments = lm.decode_answer(prompt, np.array(run["generated_ids"][len(run["input_ids"]) :]))
            assert all(segment.audio.size for segment in segments if segment.kind == "speech")
            assert [segment.kind for segment in segments].count("text") > 1
    assert lm.voice().speak("[Hu3][Hu4]").size > 0


def test_audio_prompts_have_the_ids_of_the_reference(lm):
    audio = clip("libri_a")
    runs = recorded(lm.vocabulary.variant)
    for name, modality in (("s2t", "text"), ("s2s", "speech")):
        prompt = lm.encode_prompt([Segment.speech(audio)], modality)
        assert prompt.string == runs[name]["prompt"]
        assert prompt.ids.tolist() == runs[name]["input_ids"]


def test_a_stream_adds_up_to_the_answer_of_generate(lm):
    """Joined text pieces are the text, and joined audio chunks are the audio of the whole run."""
    if lm.vocabulary.variant != "base":
        pytest.skip("one variant is enough")
    prompt = "[Text]Hi[Speech]"
    (whole,) = lm.generate(prompt, "speech", max_new_tokens=24)
    chunks = [segment.content for segment in lm.stream(prompt, "speech", max_new_tokens=24)]
    assert len(chunks) > 1
    np.testing.assert_allclose(np.concatenate(chunks), whole.content, atol=2e-4)
    (text,) = lm.generate("[Text]Hi", "text", max_new_tokens=24)
    assert (
        "".join(segment.content for segment in lm.stream("[Text]Hi", "text", max_new_tokens=24)).strip() == text.content
    )
