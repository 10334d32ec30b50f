"""A server of a model on the loopback address, in threads of this process."""

import contextlib
import dataclasses
import functools
import json
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import numpy as np
import uvicorn

from spirit_jax import Segment, SpiritLM
from spirit_jax.inference.prompts import EncodedPrompt, Modality, Prompt
from spirit_jax.inference.sampling import SamplingFeatures
from spirit_jax.inference.sampling_params import SamplingParams
from spirit_jax.inference.scheduler import Capacity, Request, Scheduler
from spirit_jax.serving.app import make_app
from spirit_jax.serving.limits import Limits
from spirit_jax.serving.security import Access
from spirit_jax.serving.service import Service

CAPACITY = Capacity(slots=2, length=256, new_tokens=128, features=SamplingFeatures(shortlist=64))
LIMITS, OPEN = Limits(), Access()
NAME = "small"


@dataclasses.dataclass(frozen=True)
class Server:
    """A server that runs."""

    service: Service
    url: str

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        """POST JSON."""
        return httpx.post(self.url + path, json=body, timeout=60, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        """GET."""
        return httpx.get(self.url + path, timeout=60, **options)

    def events(self, body: dict[str, Any], path: str = "/v1/generate") -> list[dict[str, Any]]:
        """The server-sent events of a streamed answer."""
        response = self.post(path, body | {"stream": True})
        assert response.status_code == 200, response.text
        return parse_events(response.text)

    def wait_until_idle(self, seconds: float = 20) -> None:
        """Wait until no request is left."""
        end = time.monotonic() + seconds
        while self.service._admitted or self.service.engine._tickets:
            assert time.monotonic() < end, "requests are left"
            time.sleep(0.01)


@functools.cache
def _scheduler(lm: SpiritLM) -> Scheduler:
    return lm.engine.scheduler(CAPACITY)


def ids_alone(
    lm: SpiritLM, prompt: Prompt, modality: Modality = "any", **options: Any
) -> tuple[EncodedPrompt, list[int]]:
    """A prompt and the ids of its answer when nothing else runs, on the steps that the server has compiled."""
    encoded, scheduler = lm.encode_prompt(prompt, modality), _scheduler(lm)
    scheduler.submit(Request(encoded, SamplingParams(**options)))
    ids: list[int] = []
    while scheduler.busy:
        ids = scheduler.step()[-1].new_ids.tolist()
    return encoded, ids


def alone(
    lm: SpiritLM, prompt: Prompt, modality: Modality = "any", speaker: int | str = 2, **options: Any
) -> list[Segment]:
    """The answer to a prompt when nothing else runs: that of `SpiritLM.generate`, without compiling for its shapes."""
    encoded, ids = ids_alone(lm, prompt, modality, **options)
    return lm.decode_answer(encoded, np.array(ids, np.int32), options.get("stop", ()), speaker)


def parse_events(text: str) -> list[dict[str, Any]]:
    """The JSON of server-sent events."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@contextlib.contextmanager
def running(
    lm: SpiritLM,
    capacity: Capacity = CAPACITY,
    limits: Limits = LIMITS,
    access: Access = OPEN,
    adapters: Mapping[str, SpiritLM] | None = None,
) -> Iterator[Server]:
    """Serve a model, and its adapters, on a free port."""
    service = Service(lm, capacity, limits, tokens_per_step=4, adapters=adapters)
    config = uvicorn.Config(make_app(service, NAME, access), port=0, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        end = time.monotonic() + 30
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < end, "the server does not start"
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Server(service, f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
