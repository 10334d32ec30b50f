"""Many clients at once, of the model and of an adapter: every answer is the one that its prompt gets alone.

Some clients leave, and some read slowly.
"""

import asyncio
import collections
import json
import random
import resource
import time

import httpx
import pytest

from spirit_jax import SpiritLM
from spirit_jax.serving.limits import Limits
from tests.support.servers import NAME, Server, ids_alone, running

WORDS = ["hello", "[Text]a", "[Text]The bus was late[Speech]", "[Speech][Hu3][Hu5]", "[Text]one two"]


def bodies(number: int) -> list[dict]:
    """Different requests, few enough that each answer is computed alone only once."""
    options = [{"max_new_tokens": 6 + 2 * n, "temperature": 0.5 * (n % 3), "seed": n} for n in range(number)]
    names = (NAME, f"{NAME}:voice")
    return [
        {"model": names[n // 4 % 2], "prompt": WORDS[n % len(WORDS)], "stream": True, **option}
        for n, option in enumerate(options)
    ]


def expected(lm: SpiritLM, body: dict) -> str:
    """The string form of an answer when nothing else runs, without modality tokens and spaces."""
    options = {name: body[name] for name in ("max_new_tokens", "temperature", "seed")}
    _, ids = ids_alone(lm, body["prompt"], **options)
    text = lm.vocabulary.decode([lm.vocabulary.text_id, *ids]).removeprefix("[Text]")
    return text.replace("[Text]", "").replace("[Speech]", "").replace(" ", "")


async def client(
    http: httpx.AsyncClient, body: dict, text: str, draw: random.Random, counts: collections.Counter
) -> None:
    """One request: read to the end, read slowly, or leave in the middle."""
    manner = draw.choices(["whole", "slow", "leave"], [6, 2, 2])[0]
    async with http.stream("POST", "/v1/generate", json=body) as got:
        if got.status_code == 429:
            counts["refused"] += 1
            return
        assert got.status_code == 200
        found, last = "", None
        async for line in got.aiter_lines():
            if not line:
                continue
            last = json.loads(line.removeprefix("data: "))
            found += last.get("text", last.get("units")) or ""
            if manner == "leave" and draw.random() < 0.3:
                counts["left"] += 1
                return
            if manner == "slow":
                await asyncio.sleep(draw.random() * 0.05)
    assert last is not None
    assert last["type"] == "end", last
    assert found.replace(" ", "") == text, body
    counts["answered"] += 1


def run_load(lm: SpiritLM, voice: SpiritLM, seconds: float, clients: int) -> collections.Counter:
    """Keep a number of clients busy for a time, or once each at least; returns what happened."""
    counts: collections.Counter = collections.Counter()
    requests = [(body, expected(lm if body["model"] == NAME else voice, body)) for body in bodies(16)]
    durations: list[float] = []

    async def busy(http: httpx.AsyncClient, number: int, end: float) -> None:
        draw = random.Random(number)
        while True:
            begin = time.monotonic()
            await client(http, *draw.choice(requests), draw, counts)
            durations.append(time.monotonic() - begin)
            if time.monotonic() > end:
                return

    async def everyone(server: Server) -> None:
        end = time.monotonic() + seconds
        limits = httpx.Limits(max_connections=clients)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as http:
            await asyncio.gather(*(busy(http, number, end) for number in range(clients)))

    with running(lm, limits=Limits(pending=clients), adapters={"voice": voice}) as server:
        asyncio.run(everyone(server))
        server.wait_until_idle()
        assert server.service.healthy
    durations.sort()
    counts["p50_ms"], counts["p95_ms"] = (round(1000 * durations[int(part * len(durations))]) for part in (0.5, 0.95))
    return counts


def test_64_clients_get_the_answers_of_each_alone(lm, voice):
    counts = run_load(lm, voice, seconds=0, clients=64)
    assert counts["answered"] + counts["left"] == 64
    assert counts["answered"] > 30
    assert counts["left"]


@pytest.mark.slow
def test_64_clients_for_two_minutes_keep_memory_level(lm, voice):
    run_load(lm, voice, seconds=20, clients=64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    counts = run_load(lm, voice, seconds=120, clients=64)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(dict(counts), f"grown by {grown:.0f} MiB")
    assert grown < 100
    assert not counts["refused"]
