"""The thread that owns the device, and the admission of requests, without HTTP."""

import asyncio
import contextlib
import dataclasses
import time

import pytest

from spirit_jax.inference.sampling_params import SamplingParams
from spirit_jax.inference.scheduler import CapacityError, Request, Scheduler
from spirit_jax.serving.engine_thread import EngineError, EngineThread
from spirit_jax.serving.limits import LimitError, Limits
from spirit_jax.serving.metrics import Counter, Histogram, ServerMetrics
from spirit_jax.serving.service import BusyError, Finished, Generation, Service
from tests.support.servers import CAPACITY, ids_alone


@pytest.fixture
def engine(lm):
    engine = EngineThread({"": lm.engine}, CAPACITY, ServerMetrics(), tokens_per_step=4)
    engine.start()
    yield engine
    engine.close(5)
    assert not engine.alive


def request(lm, text: str, **options) -> Request:
    return Request(lm.encode_prompt(f"[Text]{text}"), SamplingParams(**options))


def soon(seconds: float = 60) -> float:
    return time.monotonic() + seconds


def test_answers_of_many_requests_are_those_of_each_alone(lm, engine):
    requests = [request(lm, "hello " * n, max_new_tokens=8 + 5 * n, temperature=1.0, seed=n) for n in range(1, 8)]
    tickets = [engine.submit(one, soon()) for one in requests]
    for one, ticket in zip(requests, tickets, strict=True):
        ids = [i for arrived in ticket for i in arrived]
        assert ids == ids_alone(lm, one.prompt, **dataclasses.asdict(one.sampling))[1]
        assert ticket.finish_reason == ("stop" if ids[-1] == lm.vocabulary.eos_id else "length")


def test_a_cancelled_request_ends_and_frees_its_slot(lm, engine):
    tickets = [engine.submit(request(lm, "hello", max_new_tokens=120), soon()) for _ in range(CAPACITY.slots)]
    waiting = engine.submit(request(lm, "hello", max_new_tokens=4), soon())
    for ticket in tickets:
        ticket.cancel()
        ticket.cancel()
    assert len([i for arrived in waiting for i in arrived]) == 4
    for ticket in tickets:
        assert len([i for arrived in ticket for i in arrived]) < 120
        assert ticket.finish_reason == "cancelled"


def test_time_is_limited(lm, engine):
    ticket = engine.submit(request(lm, "hello", max_new_tokens=128), time.monotonic() - 1)
    assert list(ticket) == []
    assert ticket.finish_reason == "timeout"


def test_a_request_that_does_not_fit_is_refused(lm, engine):
    with pytest.raises(CapacityError, match="does not fit"):
        engine.submit(request(lm, "hello", max_new_tokens=129), soon())


def test_after_a_failure_the_thread_takes_new_requests(lm, engine, monkeypatch):
    """The requests of the failed step end with an error, and nothing else does."""
    list(engine.submit(request(lm, "a", max_new_tokens=1), soon()))
    step = Scheduler.step

    def fail(*_):
        monkeypatch.setattr(Scheduler, "step", step)
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(Scheduler, "step", fail)
    ticket = engine.submit(request(lm, "hello", max_new_tokens=8), soon())
    with pytest.raises(EngineError, match="the engine failed"):
        list(ticket)
    again = engine.submit(request(lm, "hello", max_new_tokens=8), soon())
    assert len([i for arrived in again for i in arrived]) == 8


def test_closing_finishes_what_runs_and_refuses_the_rest(lm):
    engine = EngineThread({"": lm.engine}, CAPACITY, ServerMetrics(), tokens_per_step=4)
    engine.start()
    ticket = engine.submit(request(lm, "hello", max_new_tokens=60), soon())
    engine.close(30)
    assert len([i for arrived in ticket for i in arrived]) == 60
    with pytest.raises(EngineError, match="shutting down"):
        engine.submit(request(lm, "hello"), soon())


def test_the_queue_is_bounded_and_a_client_that_leaves_frees_its_place(lm, monkeypatch):
    """Two run, the third is refused; when the first client leaves, another is admitted."""
    step = Scheduler.step
    monkeypatch.setattr(Scheduler, "step", lambda self, tokens: time.sleep(0.01) or step(self, tokens))
    service = Service(lm, CAPACITY, Limits(pending=0), tokens_per_step=1)
    service.start()
    long = Generation("[Text]hello", "text", SamplingParams(max_new_tokens=120), stream=True)

    async def run() -> None:
        first, second = service.events(long), service.events(long)
        await anext(first)
        waiting = asyncio.ensure_future(anext(second))
        await asyncio.sleep(0)
        with pytest.raises(BusyError, match="2 requests run or wait"):
            await anext(service.events(long))
        await first.aclose()
        await waiting
        await second.aclose()
        for _ in range(500):
            if not service._admitted:
                break
            await asyncio.sleep(0.01)
        async with contextlib.aclosing(service.events(long)) as events:
            last = [event async for event in events][-1]
        assert isinstance(last, Finished)
        assert last.reason in ("length", "stop")

    try:
        asyncio.run(run())
    finally:
        service.close()
    assert service.metrics.refused._values[()] == 1
    assert service.metrics.requests._values["cancelled",] == 2
    assert not service.healthy


def test_metrics_are_in_prometheus_text_format():
    counter = Counter("a_total", "A.", ("path",))
    counter.add(2, 'x"\\\n')
    assert counter.lines()[-1] == 'a_total{path="x\\"\\\\\\n"} 2'
    histogram = Histogram("b_seconds", "B.")
    for seconds in (0.01, 0.2, 1000):
        histogram.observe(seconds)
    lines = histogram.lines()
    assert lines[2:3] == ['b_seconds_bucket{le="0.01"} 1']
    assert lines[-3:] == ['b_seconds_bucket{le="+Inf"} 3', "b_seconds_sum 1000.21", "b_seconds_count 3"]


def test_limits_are_checked():
    with pytest.raises(LimitError, match=r"limits\.seconds must be 1 or more, found 0"):
        Limits(seconds=0)
