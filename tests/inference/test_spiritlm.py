"""SpiritLM on a golden checkpoint: batches, streams, stops, grammar, scores, int8, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from spirit_jax import Segment, SpiritLM
from spirit_jax.audio import AudioError
from spirit_jax.checkpoint import CheckpointError
from spirit_jax.inference import engine, network, scoring
from spirit_jax.inference.prompts import PromptError
from spirit_jax.inference.sampling import Sampling
from spirit_jax.models import llama
from spirit_jax.parallel.sharding import tracing
from spirit_jax.speech import SpeechTokenizer, load_vocoder
from spirit_jax.units import SpeechUnits
from tests.support import checkpoints
from tests.support.goldens import golden

PROMPTS = [
    "[Text]hello",
    "[Text]The morning bus was late[Speech]",
    "[Text]a",
    "[Text]" + "a much longer prompt than the others " * 30,
    "[Speech][St1][Pi2][Hu3]",
]


@pytest.fixture(scope="module")
def lm() -> SpiritLM:
    return checkpoints.load("small_expressive")


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.set_num_threads(1)
    return LlamaForCausalLM.from_pretrained(golden("variants/llama_small_expressive"), dtype=torch.float32).eval()


def told(segments: list[Segment]) -> list[tuple]:
    return [(s.kind, s.content if s.kind == "text" else s.tokens) for s in segments]


def test_a_batch_gives_what_each_prompt_gives(lm, monkeypatch):
    """Prompts of 3 to 400 tokens through 2 slots, the long one read in pieces beside the others; greedy and drawn."""
    monkeypatch.setattr(engine, "_PREFILL", 64)
    for temperature in (0.0, 1.0):
        alone = [told(lm.generate(p, "any", 24, temperature=temperature, seed=3)) for p in PROMPTS]
        together = lm.generate_batch(PROMPTS, "any", 24, temperature=temperature, seed=3, slots=2)
        assert list(map(told, together)) == alone
        assert len({str(a) for a in alone}) == len(PROMPTS)


def test_requests_with_their_own_settings_share_slots(lm):
    """Each request alone, and all in three slots: the same ids."""
    ids = [lm.vocabulary.encode(p) for p in PROMPTS]
    settings = [
        {},
        {"temperature": 1.0, "seed": 1},
        {"repetition_penalty": 1.5},
        {"temperature": 0.7, "top_p": 0.9},
        {},
    ]
    lengths = [30, 3, 17, 9, 1]
    requests = [
        lm._request(i, "any", n, engine.Sampling(**s), k == 1)
        for k, (i, n, s) in enumerate(zip(ids, lengths, settings, strict=True))
    ]
    together = {i: new.tolist() for i, new, _ in lm._engine.run(requests, slots=3)}
    for k, request in enumerate(requests):
        ((_, alone, _),) = lm._engine.run([request], slots=1)
        assert together[k] == alone.tolist()
        assert len(alone) <= lengths[k]


def test_repetition_penalty_runs_as_hugging_face_s(lm, model):
    ids = lm.vocabulary.encode(PROMPTS[1])
    want = penalised_by_hugging_face(lm, model, ids)
    assert lm.generate_ids(ids, "any", 24, repetition_penalty=1.8).tolist() == want
    assert lm.generate_ids(ids, "any", 24).tolist() != want


def penalised_by_hugging_face(lm, model, ids) -> list[int]:
    """24 greedy ids with a repetition penalty of 1.8."""
    bad = [[i] for i in range(lm.vocabulary.size, lm.config.vocab_size)]
    options = {
        "repetition_penalty": 1.8,
        "do_sample": False,
        "max_new_tokens": 24,
        "pad_token_id": 0,
        "eos_token_id": 2,
    }
    return model.generate(torch.tensor([ids]), bad_words_ids=bad, **options)[0, len(ids) :].tolist()


def test_repetition_penalty_counts_the_prompt_and_no_other(lm, model, monkeypatch):
    """Prompts of half of the vocabulary, read in seven pieces while another row decodes, one after the other in two slots."""
    monkeypatch.setattr(engine, "_PREFILL", 64)
    random = np.random.default_rng(0)
    prompts = [[1, 300, 301], *([1, *random.permutation(np.arange(k, 900, 2)).tolist()] for k in (4, 5, 4))]
    wanted = [penalised_by_hugging_face(lm, model, ids) for ids in prompts]
    greedy = [lm.generate_ids(ids, "any", 24).tolist() for ids in prompts]
    assert any(
        set(new) & set(ids[:64]) for new, ids in zip(greedy, prompts, strict=True)
    )  # what the penalty is against
    requests = [lm._request(ids, "any", 24, Sampling(repetition_penalty=1.8), False) for ids in prompts]
    found = {i: new.tolist() for i, new, _ in lm._engine.run(requests, slots=2)}
    assert [found[i] for i in range(len(prompts))] == wanted


def test_rows_that_are_idle_stay_as_they_are(lm):
    """Tokens that a row of the batch would have had, but for being idle, count neither as its output nor as occurred."""
    request = lm._request([1, 300], "any", 8, Sampling(repetition_penalty=1.8), False)
    program = engine.Program(lm.config, lm.mesh, lm.vocabulary.eos_id, 0, penalised=True, grammatical=False)
    state = engine._empty(program, lm.params, 2, 64, 64)
    state = state._replace(done=jnp.array([False, True]), token=jnp.array([300, 301]), position=jnp.array([1, 5]))
    before = jax.device_get(state._replace(cache=None))
    rows = engine.Rows.of([request, None])
    with tracing(lm.mesh, lm.config.dtype):
        after = engine._decode(program, lm.params, lm._engine.tables, state, rows, np.int32(4), np.bool_(False))
    for name in ("token", "position", "count", "done", "output", "occurred"):
        old, new = np.asarray(getattr(before, name)), np.asarray(getattr(after, name))
        np.testing.assert_array_equal(new[1], old[1], err_msg=name)
        assert name == "done" or (new[0] != old[0]).any()
    assert np.flatnonzero(after.occurred[0]).tolist() == sorted(set(after.output[0, :4].tolist()))


def test_a_document_may_end_at_once(lm):
    """Whatever comes first is taken for the end of the document: one token, in a prompt's slot and in the next one's."""
    ids = lm.vocabulary.encode(PROMPTS[0])
    first = int(lm.generate_ids(ids, "any", 1)[0])
    other = engine.Engine(lm.params, lm.config, lm.mesh, lm._engine.tables, eos_id=first)
    request = lm._request(ids, "any", 24, Sampling(), False)
    assert [(new.tolist(), done) for _, new, done in other.run([request, request], slots=1)] == [([first], True)] * 2


def test_logits_and_log_likelihood_are_those_of_hugging_face(lm, model):
    """Logits within 1e-4 (they are up to 20, float32), log-likelihoods of single tokens within 1e-4 and of batches too."""
    rows = [lm.vocabulary.encode("[Text]hello world"), lm.vocabulary.encode("[Text]hi[Speech][St1][Hu3]")]
    width = min(map(len, rows))
    ids = np.array([row[:width] for row in rows])
    with torch.no_grad():
        want = model(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(lm.logits(ids), want, atol=1e-4)

    pairs = [("[Text]hello", " world"), ("", "[Speech][St1][Pi3][Hu3]"), (PROMPTS[3], "and the end"), ("[Text]a", "b")]
    together = lm.log_likelihood_batch(pairs)
    for (prompt, continuation), (total, tokens) in zip(pairs, together, strict=True):
        whole = lm.vocabulary.encode(prompt + continuation)
        with torch.no_grad():
            scores = torch.log_softmax(model(torch.tensor([whole])).logits[0].double(), -1).numpy()
        want = [scores[i - 1, whole[i]] for i in range(len(whole) - tokens, len(whole))]
        assert total == pytest.approx(sum(want), abs=1e-4 * tokens)
        assert lm.vocabulary.decode(whole[len(whole) - tokens :]).strip() == continuation.strip()
    assert lm.log_likelihood(*pairs[0]) == pytest.approx(together[0], abs=1e-3)


def test_log_likelihood_of_segments(lm):
    """The modality token between text and speech belongs to the prompt."""
    got = lm.log_likelihood([Segment.text("hi")], [Segment.speech("[St1][Pi3][Hu3]")])
    assert got == lm.log_likelihood("[Text]hi[Speech]", "[St1][Pi3][Hu3]")
    assert got[1] == 3


def test_stop_strings(lm):
    (whole,) = lm.generate(PROMPTS[0], "text", 40)
    stop = whole.content[9:11]
    later = whole.content[15:17]
    assert whole.content.index(stop) < whole.content.index(later)
    for stops in (["never there", stop], [later, stop], [stop, later]):
        (cut,) = lm.generate(PROMPTS[0], "text", 40, stop=stops)
        assert cut.content == whole.content[: whole.content.index(stop)].strip()


def test_generation_ends_soon_after_a_stop_string(lm, monkeypatch):
    """At the first look after it, that is within 16 tokens, however many are asked for."""
    whole = lm.generate_ids(lm.vocabulary.encode(PROMPTS[0]), "text", 20)
    stop = lm.vocabulary.decode(whole[4:6]).strip()
    made, run = [], lm._engine.run

    def spy(*arguments, **options):
        for index, new, finished in run(*arguments, **options):
            made.append(len(new))
            yield index, new, finished

    monkeypatch.setattr(lm._engine, "run", spy)
    lm.generate(PROMPTS[0], "text", 400, stop=stop)
    assert made[-1] <= 6 + 16


def test_stream(lm):
    """Pieces joined are the whole answer, in the same order of kinds."""
    for modality in ("text", "any"):
        pieces = list(lm.stream(PROMPTS[0], modality, 40, temperature=1.0, seed=2, steps=5))
        ids = lm.generate_ids(lm.vocabulary.encode(PROMPTS[0]), modality, 40, temperature=1.0, seed=2)
        joined = "".join(piece.content if piece.kind == "text" else piece.tokens for piece in pieces)
        expected = lm.vocabulary.decode([lm.vocabulary.text_id, *ids]).removeprefix("[Text]")
        assert joined == expected.replace("[Speech]", "").replace("[Text]", "")
        assert len(pieces) > 1


def test_grammar_by_hand(lm):
    """Within speech the last phonetic and the last pitch unit may not come again, all other units may, text may not."""
    v, grammar = lm.vocabulary, lm._grammar
    hubert, pitch, style = (np.arange(100) + start for start in (v.hubert_offset, v.pitch_offset, v.style_offset))
    prompt = [v.speech_id, style[4], pitch[7], hubert[3], pitch[8], style[4]]
    state = grammar.start(prompt, False)
    forbidden = np.asarray(grammar.forbidden(state[None]))[0, : v.size]
    allowed = {v.text_id, v.bos_id, v.eos_id, *range(v.hubert_offset, v.size)} - {hubert[3], pitch[8]}
    assert set(np.flatnonzero(~forbidden).tolist()) == allowed
    stepwise = grammar.start(prompt[:1], False)[None]
    for index in prompt[1:]:
        stepwise = grammar.advance(stepwise, np.array([index]))
    np.testing.assert_array_equal(stepwise[0], state)


def test_speech_without_pitch_takes_that_of_its_context():
    """The first pitch that was heard; without one, pitch 0 (the neutral one), and style 71."""
    lm = SpiritLM.from_pretrained(checkpoints.converted("small_expressive"), dtype="float32")
    vocoder = load_vocoder(checkpoints.with_speech("small_expressive"), "expressive")
    lm.speech_tokenizer = SpeechTokenizer(None, None, None, vocoder, "")
    said = "[Hu3][Hu9][Hu4]"
    for context, whole in (("[St3][Pi5][Hu3][Pi6][Hu4]", "[St71][Pi5]"), ("[Text]hi", "[St71][Pi0]")):
        np.testing.assert_array_equal(lm._voice(context, 2)(said), vocoder.decode(whole + said, 2))


@pytest.mark.parametrize("seed", range(3))
def test_grammar(lm, seed):
    """Every run of speech starts with style, pitch, phonetic unit; nothing repeats in a stream; no unit outside speech."""
    v = lm.vocabulary
    prompt = v.encode("[Text]hello[Speech]")
    new = lm.generate_ids(prompt, "any", 120, temperature=2.0, top_k=0, seed=seed, grammar=True).tolist()
    inside, run, last = True, [], {}
    for index in new:
        kind = v.token_kinds[index]
        if index == v.speech_id:
            assert not inside
            inside, run, last = True, [], {}
        elif kind in (1, 2, 3):
            assert inside
            assert kind == 3 or last.get(kind) != index
            last[kind] = index
            run.append(kind)
            assert run[:3] == [3, 2, 1][: len(run)]
        else:
            assert not inside or (index in (v.text_id, v.eos_id) or kind == 4)
            inside = False
    speech = lm.generate_ids(v.encode("[Text]hello"), "speech", 30, temperature=2.0, seed=seed, grammar=True)
    assert v.token_kinds[speech[:3]].tolist() == [3, 2, 1]


def test_int8(lm):
    """Each weight within half a step of its channel's scale; log-likelihoods change little; a quarter of the memory."""
    small = SpiritLM.from_pretrained(checkpoints.converted("small_expressive"), dtype="float32", int8=True)
    kept, weight = small.params["layers"][1]["gate_up"], lm.params["layers"][1]["gate_up"]
    assert kept["int8"].dtype == np.int8
    error = np.abs(np.asarray(kept["int8"]) * np.asarray(kept["scale"]) - np.asarray(weight))
    assert (error <= np.asarray(kept["scale"]) * 0.5001).all()
    # columns are [outputs..., inputs]: a scale for each output, so that the largest of its inputs is 127 steps

    def named(tree) -> dict[str, np.ndarray]:
        return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}

    dense, scales = named(lm.params), {k: v for k, v in named(small.params).items() if "scale" in k}
    assert len(scales) == 4 * lm.config.num_hidden_layers + 2
    for name, scale in scales.items():
        largest = np.abs(dense[name.removesuffix("['scale']")]).max(-1, keepdims=True)
        np.testing.assert_allclose(scale, largest / 127, rtol=1e-6, err_msg=name)
    sizes = [sum(x.nbytes for x in jax.tree.leaves(m.params)) for m in (small, lm)]
    assert sizes[0] < 0.3 * sizes[1]
    pairs = [("[Text]hello", " world and more"), ("[Speech]", "[St1][Pi3][Hu3][Hu4][Hu5]")]
    for (a, n), (b, _) in zip(small.log_likelihood_batch(pairs), lm.log_likelihood_batch(pairs), strict=True):
        assert 0 < abs(a - b) / n < 0.5  # nats a token, of a random model whose logits spread over +-15
    assert small.generate(PROMPTS[0], "text", 8)


def test_bfloat16_runs():
    lm = SpiritLM.from_pretrained(checkpoints.converted("small_base"), dtype="bfloat16")
    assert {x.dtype.name for x in jax.tree.leaves(lm.params)} == {"bfloat16"}
    assert lm.generate("[Text]hi[Speech]", "speech", 30)[0].tokens.count("[Hu") > 20


def test_a_prompt_may_fill_the_context():
    lm = checkpoints.load("small_expressive")
    ids = [1, *[300] * (lm.config.max_position_embeddings - 4)]
    assert len(lm.generate_ids(ids, "text", 100)) <= 3


def test_nothing_compiles_for_another_prompt(lm):
    lm.generate(PROMPTS[0], "text", 20)
    before = engine._prefill._cache_size(), engine._decode._cache_size()
    lm.generate("[Text]something else entirely", "speech", 31)
    assert (engine._prefill._cache_size(), engine._decode._cache_size()) == before


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
def test_refused_prompts(lm, prompt, error, message):
    with pytest.raises(error, match=message):
        lm.generate(prompt)


def test_other_refusals(lm, tmp_path):
    base = checkpoints.load("small_base")
    expressive = SpeechUnits(np.array([1, 2]), np.array([3]), np.array([4]))
    with pytest.raises(PromptError, match=r"Spirit LM base has no (style|pitch) units; use an expressive checkpoint"):
        base.generate([Segment.speech(expressive)])
    with pytest.raises(PromptError, match="output modality must be one of text, speech, any, found 'song'"):
        lm.generate("[Text]hi", "song")
    with pytest.raises(PromptError, match="max_new_tokens must be an integer of 1 or more, found 0"):
        lm.generate("[Text]hi", max_new_tokens=0)
    with pytest.raises(PromptError, match="ids go from 0 to 1306, found 5..1307"):
        lm.generate_ids([5, 1307])
    with pytest.raises(PromptError, match="the continuation is empty"):
        lm.log_likelihood("[Text]hi", "")
    with pytest.raises(AudioError, match="no such file"):
        Segment.speech(tmp_path / "nothing.wav")
    with pytest.raises(ValueError, match="they belong to different checkpoints"):
        SpiritLM(base.params, base.config, lm.vocabulary)
    with pytest.raises(CheckpointError, match="no such checkpoint directory"):
        SpiritLM.from_pretrained(tmp_path / "nothing")


def test_stacked_layers_and_columns(lm):
    """The forms that accelerators and CPUs run (`network.arrange`) give the same hidden states, logits and caches: prompts
    read in two pieces and a token after them, in rows of the cache that are not the rows of the batch."""
    config, params = lm.config, llama.init_params(lm.config, jax.random.key(0))
    params = jax.tree.map(lambda x: 3 * x, params)  # attention that looks somewhere
    tokens = np.random.default_rng(0).integers(5, 1000, (2, 13)).astype(np.int32)
    rows = np.array([2, 0])

    forward = jax.jit(network.forward, static_argnums=(0, 6))

    def run(params):
        cache = network.empty_cache(config, params, 3, 16)
        hidden = []
        for first, last in ((0, 8), (8, 12), (12, 13)):
            at = np.tile(np.arange(first, last), (2, 1))
            x, cache = forward(config, params, tokens[:, first:last], at, cache, rows, first == 0)
            hidden.append(x)
        return network.logits(config, params, jnp.concatenate(hidden, 1)), cache

    stacked, columns = run(params), run(network.arrange(config, params, lm.mesh))
    np.testing.assert_allclose(stacked[0], scoring.logits(config, lm.mesh, params, tokens), atol=1e-4)
    np.testing.assert_allclose(columns[0], stacked[0], atol=1e-4)
    for index, one in enumerate(columns[1]):
        np.testing.assert_allclose(np.swapaxes(one.k_bksh, 1, 2), stacked[1].k_lbskh[index], atol=1e-4)
        np.testing.assert_allclose(np.swapaxes(one.v_bksh, 1, 2), stacked[1].v_lbskh[index], atol=1e-4)
    assert not np.any(stacked[1].k_lbskh[:, 1])


@pytest.mark.parametrize("batch", [1, 3])
def test_columns_in_bfloat16(lm, batch):
    """A prompt and a token after it, alone (one column) and in a batch: no further from float32 than stacked layers are."""
    params = llama.init_params(lm.config, jax.random.key(0))
    tokens = np.random.default_rng(0).integers(5, 1000, (batch, 9)).astype(np.int32)
    forward = jax.jit(network.forward, static_argnums=(0, 6))

    def logits(dtype, params):
        config = dataclasses.replace(lm.config, dtype=dtype)
        cache, scores = network.empty_cache(config, params, batch, 16), []
        for first, last in ((0, 8), (8, 9)):
            at = np.tile(np.arange(first, last), (batch, 1))
            x, cache = forward(config, params, tokens[:, first:last], at, cache, np.arange(batch), first == 0)
            scores.append(network.logits(config, params, x))
        return np.concatenate(scores, 1)

    exact = logits("float32", params)
    stacked = np.abs(logits("bfloat16", params) - exact).max()
    columns = np.abs(logits("bfloat16", network.arrange(lm.config, params, lm.mesh)) - exact).max()
    assert 0 < columns < 1.5 * stacked, (columns, stacked)


def test_defaults_are_the_checkpoint_s():
    """Its generation_config.json, kept by the conversion, is what happens; what is given wins."""
    lm = SpiritLM.from_pretrained(checkpoints.converted("small_base"), dtype="float32")
    assert (lm.sampling, lm.max_new_tokens) == (Sampling(temperature=0.6, top_p=0.9), 200)
    drawn = {"temperature": 0.6, "top_p": 0.9, "seed": 1}
    assert told(lm.generate(PROMPTS[0], max_new_tokens=20, seed=1)) == told(lm.generate(PROMPTS[0], "any", 20, **drawn))
    greedy = lm.generate_ids([1, 400], "any", 20, temperature=0)
    assert greedy.tolist() == lm.generate_ids([1, 400], "any", 20, temperature=0, seed=5).tolist()
    assert Sampling.of_checkpoint({"temperature": 0.6, "top_p": 0.9}).temperature == 0  # no do_sample: greedy, as in HF
    assert Sampling.of_checkpoint({"do_sample": True, "top_k": None}) == Sampling(temperature=1.0)
    with pytest.raises(ValueError, match="generation: top_k must be a number, found 'many'"):
        Sampling.of_checkpoint({"top_k": "many"})
