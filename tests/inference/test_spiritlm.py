"""SpiritLM on a golden checkpoint: scores, stop strings, streams, voices, int8, defaults, and what it refuses."""

import shutil

import jax
import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from spirit_jax import SamplingParams, Segment, SpiritLM, checkpoint
from spirit_jax.audio import AudioError
from spirit_jax.checkpoint import CheckpointError
from spirit_jax.inference.prompts import PromptError
from spirit_jax.inference.sampling_params import SamplingError
from spirit_jax.models.quantized import dequantize
from spirit_jax.speech import load_vocoder
from spirit_jax.units import SpeechUnits
from tests.support import checkpoints
from tests.support.hugging_face import hugging_face_llama

PROMPT = "[Text]hello"
LONG_PROMPT = "[Text]" + "a much longer prompt than the others " * 30


@pytest.fixture(scope="module")
def lm() -> SpiritLM:
    return checkpoints.load("small_expressive")


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return hugging_face_llama("small_expressive")


def contents(segments: list[Segment]) -> list[tuple]:
    return [(s.kind, s.content if s.kind == "text" else s.tokens) for s in segments]


def test_logits_and_log_likelihoods_are_those_of_hugging_face(lm, model):
    """Logits agree within 1e-4 (they are up to 20, float32), and log-likelihoods of a batch within 1e-4 a token."""
    rows = [lm.vocabulary.encode("[Text]hello world"), lm.vocabulary.encode("[Text]hi[Speech][St1][Hu3]")]
    width = min(map(len, rows))
    ids = np.array([row[:width] for row in rows])
    with torch.no_grad():
        want = model(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(lm.logits(ids), want, atol=1e-4)

    pairs = [("[Text]hello", " world"), ("", "[Speech][St1][Pi3][Hu3]"), (LONG_PROMPT, "and the end"), ("[Text]a", "b")]
    together = lm.log_likelihood_batch(pairs)
    for (prompt, continuation), (total, tokens) in zip(pairs, together, strict=True):
        whole = lm.vocabulary.encode(prompt + continuation)
        with torch.no_grad():
            scores = torch.log_softmax(model(torch.tensor([whole])).logits[0].double(), -1).numpy()
        want = [scores[i - 1, whole[i]] for i in range(len(whole) - tokens, len(whole))]
        assert total == pytest.approx(sum(want), abs=1e-4 * tokens)
        assert lm.vocabulary.decode(whole[len(whole) - tokens :]).strip() == continuation.strip()
    assert lm.log_likelihood(*pairs[0]) == pytest.approx(together[0], abs=1e-3)


def test_a_modality_token_between_segments_belongs_to_the_prompt(lm):
    got = lm.log_likelihood([Segment.text("hi")], [Segment.speech("[St1][Pi3][Hu3]")])
    assert got == lm.log_likelihood("[Text]hi[Speech]", "[St1][Pi3][Hu3]")
    assert got[1] == 3


def test_an_answer_is_cut_before_the_first_stop_string(lm):
    (whole,) = lm.generate(PROMPT, "text", max_new_tokens=40)
    stop = whole.content[9:11]
    later = whole.content[15:17]
    assert whole.content.index(stop) < whole.content.index(later)
    for stops in (["never there", stop], [later, stop], [stop, later]):
        (cut,) = lm.generate(PROMPT, "text", max_new_tokens=40, stop=stops)
        assert cut.content == whole.content[: whole.content.index(stop)].strip()


def test_a_stream_adds_up_to_the_whole_answer(lm):
    """Joined pieces are the answer, text and speech in the same order."""
    options = SamplingParams(max_new_tokens=40, temperature=1.0, seed=2)
    for modality in ("text", "any"):
        pieces = list(lm.stream(PROMPT, modality, options, tokens_per_step=5))
        ids = lm.generate_ids(lm.vocabulary.encode(PROMPT), modality, options)
        joined = "".join(piece.content if piece.kind == "text" else piece.tokens for piece in pieces)
        expected = lm.vocabulary.decode([lm.vocabulary.text_id, *ids]).removeprefix("[Text]")
        assert joined == expected.replace("[Speech]", "").replace("[Text]", "")
        assert len(pieces) > 1


def test_speech_without_pitch_takes_the_pitch_of_its_context():
    """It takes the first pitch of the context; without one, the neutral pitch 0. The style is the neutral 71."""
    lm = SpiritLM.from_pretrained(checkpoints.converted("small_expressive"), dtype="float32")
    vocoder = load_vocoder(checkpoints.with_speech("small_expressive"), "expressive")
    lm.speech_tokenizer = checkpoints.speaking_tokenizer(vocoder)
    tokens = "[Hu3][Hu9][Hu4]"
    for context, prefix in (("[St3][Pi5][Hu3][Pi6][Hu4]", "[St71][Pi5]"), ("[Text]hi", "[St71][Pi0]")):
        np.testing.assert_array_equal(
            lm.voice().speak(tokens, context), vocoder.decode(SpeechUnits.from_string(prefix + tokens), 2)
        )


def test_int8_changes_little_and_takes_a_quarter_of_the_memory(lm):
    """Each weight is within half a step of its channel's scale, and log-likelihoods change little."""
    small = SpiritLM.from_pretrained(checkpoints.converted("small_expressive"), dtype="float32", quantize="int8")
    kept, weight = small.params["layers"][1]["gate_up"], lm.params["layers"][1]["gate_up"]
    assert kept["int8"].dtype == np.int8
    error = np.abs(np.asarray(kept["int8"]) * np.asarray(kept["scale"]) - np.asarray(weight))
    assert (error <= np.asarray(kept["scale"]) * 0.5001).all()
    # Weights are [outputs..., inputs]: each output has a scale, and the largest of its inputs is 127 steps.

    def named(tree) -> dict[str, np.ndarray]:
        return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}

    floats, scales = named(lm.params), {k: v for k, v in named(small.params).items() if "scale" in k}
    assert len(scales) == 4 * lm.config.num_hidden_layers + 2
    for name, scale in scales.items():
        largest = np.abs(floats[name.removesuffix("['scale']")]).max(-1, keepdims=True)
        np.testing.assert_allclose(scale, largest / 127, rtol=1e-6, err_msg=name)
    sizes = [sum(x.nbytes for x in jax.tree.leaves(m.params)) for m in (small, lm)]
    assert sizes[0] < 0.3 * sizes[1]
    pairs = [("[Text]hello", " world and more"), ("[Speech]", "[St1][Pi3][Hu3][Hu4][Hu5]")]
    for (a, n), (b, _) in zip(small.log_likelihood_batch(pairs), lm.log_likelihood_batch(pairs), strict=True):
        assert 0 < abs(a - b) / n < 0.5  # nats a token, of a random model whose logits spread over +-15
    assert small.generate(PROMPT, "text", max_new_tokens=8)


def test_int4_takes_a_fifth_of_the_memory_and_computes_with_the_weights_that_it_keeps(lm):
    """Products of blocks equal those of the dense weights that the integers mean."""
    small = SpiritLM.from_pretrained(checkpoints.converted("small_expressive"), dtype="float32", quantize="int4")
    sizes = [sum(x.nbytes for x in jax.tree.leaves(model.params["layers"])) for model in (small, lm)]
    assert sizes[0] < 0.2 * sizes[1]
    dense = SpiritLM(dequantize(small.params, "float32"), lm.config, lm.vocabulary, mesh=lm.mesh)
    ids = lm.vocabulary.encode(PROMPT)
    np.testing.assert_allclose(np.asarray(small.logits(ids)), np.asarray(dense.logits(ids)), atol=1e-3)
    assert (
        small.generate_ids(ids, "text", max_new_tokens=8).tolist()
        == dense.generate_ids(ids, "text", max_new_tokens=8).tolist()
    )


def test_a_checkpoint_runs_in_bfloat16():
    lm = SpiritLM.from_pretrained(checkpoints.converted("small_base"), dtype="bfloat16")
    assert {x.dtype.name for x in jax.tree.leaves(lm.params)} == {"bfloat16"}
    (speech,) = lm.generate("[Text]hi[Speech]", "speech", max_new_tokens=30)
    assert str(speech.tokens).count("[Hu") > 20


REFUSED = {
    "empty": ([], PromptError, "the prompt is empty"),
    "not segments": ([("text", "hi")], PromptError, "found tuple"),
    "long": (
        "[Text]" + "[Hu3]" * 5000,
        PromptError,
        "the prompt has 500[0-9] tokens, the model's context is 4096: shorten it",
    ),
    "unit": ("[Text]hi[Speech][Hu700]", PromptError, r"\[Hu700\] at position 16 is no token"),
    "audio": (
        [Segment.speech(np.zeros(16000, np.float32))],
        CheckpointError,
        "no speech_tokenizer/ to hear audio with",
    ),
}


@pytest.mark.parametrize(("prompt", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_invalid_prompts_are_refused(lm, prompt, error, message):
    with pytest.raises(error, match=message):
        lm.generate(prompt)


def test_invalid_arguments_are_refused(lm, tmp_path):
    base = checkpoints.load("small_base")
    expressive = SpeechUnits(np.array([1, 2]), np.array([3]), np.array([4]))
    with pytest.raises(PromptError, match=r"Spirit LM base has no (style|pitch) units; use an expressive checkpoint"):
        base.generate([Segment.speech(expressive)])
    with pytest.raises(PromptError, match="output modality must be one of text, speech, any, found 'song'"):
        lm.generate("[Text]hi", "song")
    with pytest.raises(SamplingError, match="max_new_tokens must be an integer of 1 or more, found 0"):
        lm.generate("[Text]hi", max_new_tokens=0)
    with pytest.raises(PromptError, match="ids go from 0 to 1306, found 5..1307"):
        lm.generate_ids([5, 1307])
    with pytest.raises(PromptError, match="the continuation is empty"):
        lm.log_likelihood("[Text]hi", "")
    with pytest.raises(SamplingError, match="2 prompts need as many sampling options, found 1"):
        lm.generate_batch(["[Text]a", "[Text]b"], sampling=[SamplingParams()])
    with pytest.raises(SamplingError, match="a stream does not support stop strings"):
        next(lm.stream("[Text]hi", stop="end"))
    with pytest.raises(AudioError, match="no such file"):
        Segment.speech(tmp_path / "nothing.wav")
    with pytest.raises(ValueError, match="they belong to different checkpoints"):
        SpiritLM(base.params, base.config, lm.vocabulary)
    with pytest.raises(CheckpointError, match="no such checkpoint directory"):
        SpiritLM.from_pretrained(tmp_path / "nothing")


def test_the_checkpoint_recommends_the_default_options():
    """The conversion keeps its generation_config.json. Options that are given replace the defaults."""
    lm = SpiritLM.from_pretrained(checkpoints.converted("small_base"), dtype="float32")
    assert lm.sampling == SamplingParams(temperature=0.6, top_p=0.9, max_new_tokens=200)
    drawn = SamplingParams(temperature=0.6, top_p=0.9, seed=1, max_new_tokens=20)
    by_fields = contents(lm.generate(PROMPT, max_new_tokens=20, seed=1))
    assert by_fields == contents(lm.generate(PROMPT, "any", drawn))
    assert by_fields != contents(lm.generate(PROMPT, "any", drawn, seed=2))
    greedy = lm.generate_ids([1, 400], "any", max_new_tokens=20, temperature=0)
    assert greedy.tolist() == lm.generate_ids([1, 400], "any", max_new_tokens=20, temperature=0, seed=5).tolist()


def test_an_answer_ends_at_every_id_that_the_checkpoint_names(tmp_path):
    """Llama 3 Instruct names three. An end is not in the text of the answer."""
    lm = SpiritLM.from_pretrained(checkpoints.converted("small_base"), dtype="float32")
    whole = lm.generate_ids(lm.vocabulary.encode("[Text]a"), "text", max_new_tokens=8, temperature=0).tolist()
    end = next(token for place, token in enumerate(whole) if place and token not in whole[:place])
    directory = shutil.copytree(checkpoints.converted("small_base"), tmp_path / "ends")
    config = checkpoint.read_config(directory)
    config["generation"]["eos_token_id"] = [lm.vocabulary.eos_id, end, 10**6]
    checkpoint.write_config(directory, config)
    ending = SpiritLM.from_pretrained(directory, dtype="float32")
    assert ending.vocabulary.end_ids == (lm.vocabulary.eos_id, end)
    assert ending.vocabulary.fingerprint == lm.vocabulary.fingerprint
    new = ending.generate_ids(lm.vocabulary.encode("[Text]a"), "text", max_new_tokens=8, temperature=0).tolist()
    assert new == whole[: whole.index(end) + 1]
    assert ending.vocabulary.decode(new) == lm.vocabulary.decode(new[:-1])
