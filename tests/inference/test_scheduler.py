"""The scheduler: slots are shared, and no request's answer depends on the requests beside it."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import LlamaForCausalLM

from spirit_jax import Segment, SpiritLM
from spirit_jax.inference import scheduler as scheduler_module
from spirit_jax.inference import steps
from spirit_jax.inference.engine import Engine
from spirit_jax.inference.prompts import EncodedPrompt
from spirit_jax.inference.sampling import SamplingFeatures
from spirit_jax.inference.sampling_params import SamplingParams
from spirit_jax.inference.scheduler import Capacity, CapacityError, Request, Scheduler
from spirit_jax.inference.steps import IDLE_ROW, DecodeProgram, RowOptions
from spirit_jax.parallel.sharding import tracing
from tests.support import checkpoints
from tests.support.hugging_face import hugging_face_greedy, hugging_face_llama

PROMPTS = [
    "[Text]hello",
    "[Text]The morning bus was late[Speech]",
    "[Text]a",
    "[Text]" + "a much longer prompt than the others " * 30,
    "[Speech][St1][Pi2][Hu3]",
]


@pytest.fixture(scope="module")
def lm() -> SpiritLM:
    """Two layers of a golden model, because the steps are compiled for many sizes, layer by layer."""
    whole = checkpoints.load("small_expressive")
    params = {**whole.params, "layers": whole.params["layers"][:2]}
    return SpiritLM(params, dataclasses.replace(whole.config, num_hidden_layers=2), whole.vocabulary, mesh=whole.mesh)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    whole = copy.deepcopy(hugging_face_llama("small_expressive"))
    whole.model.layers, whole.config.num_hidden_layers = whole.model.layers[:2], 2
    return whole


def contents(segments: list[Segment]) -> list[tuple]:
    return [(s.kind, s.content if s.kind == "text" else s.tokens) for s in segments]


def request(lm: SpiritLM, prompt: str | list[int], **options) -> Request:
    if isinstance(prompt, str):
        return Request(lm.encode_prompt(prompt), SamplingParams(**options))
    return Request(lm.prompt_encoder.encode_ids(prompt), SamplingParams(**options))


def alone(lm: SpiritLM, one: Request) -> list[int]:
    """The answer to a request that runs by itself."""
    ((_, new_ids),) = lm.engine.run([one], slots=1)
    return new_ids.tolist()


def finish(scheduler: Scheduler, max_tokens: int | None = None) -> dict[int, list[int]]:
    """Run until nothing is left to do; the new ids of each request that finished."""
    answers = {}
    while scheduler.busy:
        for progress in scheduler.step(max_tokens):
            if progress.finished:
                answers[progress.request_id] = progress.new_ids.tolist()
    return answers


def test_a_batch_gives_what_each_prompt_gives_alone(lm, monkeypatch):
    """Prompts of 3 to 400 tokens run in 2 slots; the long one is read in chunks beside the others; greedy and drawn."""
    monkeypatch.setattr(scheduler_module, "PREFILL_CHUNK", 64)
    for temperature in (0.0, 1.0):
        options = {"max_new_tokens": 24, "temperature": temperature, "seed": 3}
        separately = [contents(lm.generate(p, "any", **options)) for p in PROMPTS]
        together = lm.generate_batch(PROMPTS, "any", slots=2, **options)
        assert list(map(contents, together)) == separately
        assert len({str(answer) for answer in separately}) == len(PROMPTS)


OPTIONS = [
    {"max_new_tokens": 30},
    {"max_new_tokens": 3, "temperature": 1.0, "seed": 1, "grammar": True},
    {"max_new_tokens": 17, "repetition_penalty": 1.5},
    {"max_new_tokens": 9, "temperature": 0.7, "top_p": 0.9},
    {"max_new_tokens": 1},
]


def test_requests_with_their_own_options_share_slots(lm):
    """Each request alone, and all in three slots: the same ids."""
    requests = [request(lm, prompt, **options) for prompt, options in zip(PROMPTS, OPTIONS, strict=True)]
    together = {index: new_ids.tolist() for index, new_ids in lm.engine.run(requests, slots=3)}
    for index, one in enumerate(requests):
        assert together[index] == alone(lm, one)
        assert len(together[index]) <= OPTIONS[index]["max_new_tokens"]
    answers = lm.generate_batch(PROMPTS, sampling=[one.sampling for one in requests], slots=3)
    assert answers[0] != answers[1]
    for index, one in enumerate(requests):
        assert contents(answers[index]) == contents(lm.decode_answer(one.prompt, np.array(together[index])))


def test_requests_may_arrive_while_others_run(lm):
    """Two requests start, the others arrive later, in two slots: the answers are those of each request alone."""
    requests = [request(lm, prompt, **options) for prompt, options in zip(PROMPTS, OPTIONS, strict=True)]
    scheduler = lm.engine.scheduler(Capacity(slots=2, length=1024, new_tokens=64))
    ids = [scheduler.submit(one) for one in requests[:2]]
    answers = {}
    for one in requests[2:]:
        for progress in scheduler.step(max_tokens=2):
            if progress.finished:
                answers[progress.request_id] = progress.new_ids.tolist()
        assert scheduler.busy
        ids.append(scheduler.submit(one))
    answers |= finish(scheduler, max_tokens=4)
    assert [answers[request_id] for request_id in ids] == [alone(lm, one) for one in requests]


def test_progress_grows_until_a_request_is_finished(lm):
    one = request(lm, PROMPTS[0], max_new_tokens=10)
    scheduler = lm.engine.scheduler(Capacity(slots=1, length=64, new_tokens=10))
    request_id = scheduler.submit(one)
    seen = []
    while scheduler.busy:
        (progress,) = scheduler.step(max_tokens=3)
        assert progress.request_id == request_id
        seen.append((len(progress.new_ids), progress.finished))
    # The prefill chooses the first token.
    assert seen == [(4, False), (7, False), (10, True)]
    assert progress.new_ids.tolist() == alone(lm, one)


def test_a_cancelled_request_frees_its_slot(lm, monkeypatch):
    """Requests are cancelled while pending, while being read, and while running. The others answer as if alone."""
    monkeypatch.setattr(scheduler_module, "PREFILL_CHUNK", 64)
    kept = [request(lm, PROMPTS[k], max_new_tokens=12, repetition_penalty=1.3) for k in (0, 1)]
    dropped = request(lm, PROMPTS[3], max_new_tokens=60, temperature=1.0)
    scheduler = lm.engine.scheduler(Capacity(slots=1, length=1024, new_tokens=64))
    running = scheduler.submit(request(lm, PROMPTS[2], max_new_tokens=60))
    assert [progress.request_id for progress in scheduler.step(max_tokens=2)] == [running]
    pending, reading, last = scheduler.submit(dropped), scheduler.submit(dropped), scheduler.submit(kept[0])
    assert scheduler.cancel(running)
    assert scheduler.cancel(pending)
    assert scheduler.step(max_tokens=2) == []  # the first of several chunks of the long prompt
    assert scheduler.cancel(reading)
    also = scheduler.submit(kept[1])
    assert finish(scheduler) == {last: alone(lm, kept[0]), also: alone(lm, kept[1])}
    assert not any(map(scheduler.cancel, (running, pending, reading, last, also)))


def test_cancelling_one_of_several_running_requests_leaves_the_others(lm):
    requests = [request(lm, PROMPTS[k], max_new_tokens=20) for k in (0, 1, 4)]
    scheduler = lm.engine.scheduler(Capacity(slots=3, length=128, new_tokens=20))
    ids = [scheduler.submit(one) for one in requests]
    scheduler.step(max_tokens=4)
    scheduler.cancel(ids[1])
    assert finish(scheduler) == {ids[0]: alone(lm, requests[0]), ids[2]: alone(lm, requests[2])}


def test_a_cancelled_request_generates_no_more_tokens(lm, monkeypatch):
    results, fetch = [], steps.fetch
    monkeypatch.setattr(steps, "fetch", lambda *arguments: results.append(fetch(*arguments)) or results[-1])
    scheduler = lm.engine.scheduler(Capacity(slots=2, length=128, new_tokens=40))
    first = scheduler.submit(request(lm, PROMPTS[0], max_new_tokens=40))
    scheduler.submit(request(lm, PROMPTS[1], max_new_tokens=40))
    scheduler.step(max_tokens=4)
    scheduler.cancel(first)
    scheduler.step(max_tokens=4)
    assert [result.count.tolist() for result in results] == [[5, 5], [5, 9]]


def test_requests_beyond_the_capacity_are_refused(lm):
    features = SamplingFeatures.of([SamplingParams(temperature=1.0, top_k=10)])
    scheduler = lm.engine.scheduler(Capacity(slots=1, length=64, new_tokens=16, features=features))
    with pytest.raises(CapacityError, match="does not fit: a slot holds 64 tokens, 16 of them new"):
        scheduler.submit(request(lm, PROMPTS[0], max_new_tokens=17))
    with pytest.raises(CapacityError, match="a prompt of 60 tokens with up to 8 new ones does not fit"):
        scheduler.submit(request(lm, [1] * 60, max_new_tokens=8))
    for options in ({"temperature": 1.0, "top_k": 0}, {"repetition_penalty": 1.1}, {"grammar": True}):
        with pytest.raises(CapacityError, match="the steps are compiled for"):
            scheduler.submit(request(lm, PROMPTS[0], max_new_tokens=4, **options))
    assert not scheduler.busy
    scheduler.submit(request(lm, PROMPTS[0], max_new_tokens=4))
    scheduler.submit(request(lm, PROMPTS[0], max_new_tokens=4, temperature=0.5, top_k=64))
    assert len(finish(scheduler)) == 2
    with pytest.raises(CapacityError, match="slots must be 1 or more, found 0"):
        Capacity(slots=0, length=64, new_tokens=16)


def penalized_by_hugging_face(lm, model, ids) -> list[int]:
    """24 greedy ids with a repetition penalty of 1.8."""
    bad = [[i] for i in range(lm.vocabulary.size, lm.config.vocab_size)]
    return hugging_face_greedy(model, ids, max_new_tokens=24, repetition_penalty=1.8, bad_words_ids=bad)


def test_the_repetition_penalty_is_that_of_hugging_face(lm, model):
    ids = lm.vocabulary.encode(PROMPTS[1])
    want = penalized_by_hugging_face(lm, model, ids)
    assert lm.generate_ids(ids, "any", max_new_tokens=24, repetition_penalty=1.8).tolist() == want
    assert lm.generate_ids(ids, "any", max_new_tokens=24).tolist() != want


def test_the_repetition_penalty_counts_only_its_own_prompt(lm, model, monkeypatch):
    """Prompts of half of the vocabulary are read in seven chunks while another row decodes, one after the other, in two
    slots."""
    monkeypatch.setattr(scheduler_module, "PREFILL_CHUNK", 64)
    random = np.random.default_rng(0)
    prompts = [[1, 300, 301], *([1, *random.permutation(np.arange(k, 900, 2)).tolist()] for k in (4, 5, 4))]
    wanted = [penalized_by_hugging_face(lm, model, ids) for ids in prompts]
    greedy = [lm.generate_ids(ids, "any", max_new_tokens=24).tolist() for ids in prompts]
    # Without the penalty, answers do repeat tokens of the first chunks.
    assert any(set(new) & set(ids[:64]) for new, ids in zip(greedy, prompts, strict=True))
    requests = [request(lm, ids, max_new_tokens=24, repetition_penalty=1.8) for ids in prompts]
    found = {index: new_ids.tolist() for index, new_ids in lm.engine.run(requests, slots=2)}
    assert [found[index] for index in range(len(prompts))] == wanted


def test_decoding_leaves_idle_rows_unchanged(lm):
    """Tokens that an idle row would have had count neither as its output nor as occurred."""
    features = SamplingFeatures(shortlist=0, repetition_penalty=True, grammar=False)
    program = DecodeProgram(lm.config, lm.mesh, lm.vocabulary.end_ids, features)
    state = steps.init_state(program, lm.params, slots=2, length=64, new_tokens=64)
    state = state._replace(done=jnp.array([False, True]), token=jnp.array([300, 301]), position=jnp.array([1, 5]))
    names = ("token", "position", "count", "done", "output", "occurred")
    before = {name: np.array(getattr(state, name)) for name in names}
    row = RowOptions.of(SamplingParams(repetition_penalty=1.8), "any", max_new_tokens=8)
    with tracing(lm.mesh, lm.config.dtype):
        options, limits = RowOptions.join([row, IDLE_ROW]), {"max_steps": np.int32(4), "until_free": np.bool_(False)}
        after = steps.decode(program, lm.engine.arrays, state, options, **limits)
    for name in names:
        new = np.asarray(getattr(after, name))
        np.testing.assert_array_equal(new[1], before[name][1], err_msg=name)
        assert name == "done" or (new[0] != before[name][0]).any()
    assert np.flatnonzero(after.occurred[0]).tolist() == sorted(set(np.asarray(after.output)[0, :4].tolist()))


def test_a_document_may_end_with_its_first_token(lm):
    """The first token counts as the end of the document, for a prompt and for the next one in its slot."""
    ids = lm.vocabulary.encode(PROMPTS[0])
    first = int(lm.generate_ids(ids, "any", max_new_tokens=1)[0])
    other = Engine(lm.params, lm.config, lm.mesh, lm.vocabulary)
    other.end_ids = (first,)
    one = request(lm, ids, max_new_tokens=24)
    assert [new_ids.tolist() for _, new_ids in other.run([one, one], slots=1)] == [[first]] * 2


def test_generation_ends_soon_after_a_stop_string(lm, monkeypatch):
    """It ends at the first search after the stop string, that is within 16 tokens, however many were asked for."""
    whole = lm.generate_ids(lm.vocabulary.encode(PROMPTS[0]), "text", max_new_tokens=20)
    stop = lm.vocabulary.decode(whole[4:6]).strip()
    made, step = [], Scheduler.step

    def spy(self, max_tokens=None):
        progress = step(self, max_tokens)
        made.extend(len(one.new_ids) for one in progress)
        return progress

    monkeypatch.setattr(Scheduler, "step", spy)
    lm.generate(PROMPTS[0], "text", max_new_tokens=400, stop=stop)
    assert made[-1] <= 6 + 16


def test_only_requests_with_stop_strings_end_at_them(lm):
    """Two equal prompts share a batch, and one of them has a stop string."""
    whole = lm.generate_ids(lm.vocabulary.encode(PROMPTS[0]), "text", max_new_tokens=60).tolist()
    prompt = lm.encode_prompt(PROMPTS[0], "text")
    stop = lm.vocabulary.decode(whole[4:6]).strip()
    requests = [Request(prompt, SamplingParams(max_new_tokens=60, stop=given)) for given in ((), stop)]
    answers = dict(lm.engine.run(requests, slots=2))
    assert answers[0].tolist() == whole
    assert answers[1].tolist() == whole[: len(answers[1])]
    assert len(answers[1]) <= 6 + 16


def test_a_prompt_may_fill_the_context(lm):
    ids = [1, *[300] * (lm.config.max_position_embeddings - 4)]
    assert len(lm.generate_ids(ids, "text", max_new_tokens=100)) <= 3


def test_another_prompt_compiles_nothing(lm, caplog):
    lm.generate(PROMPTS[0], "text", max_new_tokens=20)
    with jax.log_compiles():
        lm.generate("[Text]something else entirely", "speech", max_new_tokens=31)
        assert "Compiling" not in caplog.text
        lm.generate("[Text]something else entirely", "speech", max_new_tokens=131)
        assert "Compiling" in caplog.text  # a longer answer does compile


def test_an_engine_without_a_vocabulary_generates_to_the_end(lm):
    """As benchmarks use it: every token is allowed, and nothing ends an answer early."""
    engine = Engine(lm.params, lm.config, lm.mesh, None)
    requests = [Request(EncodedPrompt(np.array(ids)), SamplingParams(max_new_tokens=9)) for ids in ([1, 300], [1, 301])]
    assert {index: len(new_ids) for index, new_ids in engine.run(requests, slots=2)} == {0: 9, 1: 9}
