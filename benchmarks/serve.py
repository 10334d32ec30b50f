"""Measure the server: what it costs beside the bare engine, when the first audio comes, and how many streams it speaks.

    python -m benchmarks.serve --checkpoint runs/tiny/checkpoints/500 [--hidden 768] [--layers 12] [--streams 1 4 16]
        [--new 128] [--prompt 32] [--tokens-per-step 8] [--requests 3] [--json FILE]

The checkpoint gives the tokenizers and the vocoder. The Llama has random weights of the size asked for, because a tiny
model would spend its time in Python. Clients run in a process of their own, over HTTP on the loopback address. For each
number of streams:

- text: every client asks for `--new` tokens of text, `--requests` times. The bare engine runs the same requests in as
  many slots. What the server has less in tokens a second is lost to it.
- speech: the same clients ask for speech. The first audio is timed from the request, and the seconds of speech that all
  streams get in a second are the real-time factor.
"""

import argparse
import asyncio
import base64
import json
import logging
import multiprocessing
import os
import statistics
import threading
import time
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import httpx
import jax
import uvicorn

from benchmarks import report
from spirit_jax import SamplingParams, SpiritLM
from spirit_jax.inference.sampling import SamplingFeatures
from spirit_jax.inference.scheduler import Capacity, Request
from spirit_jax.models.llama import LlamaConfig, init_params
from spirit_jax.parallel.mesh import MeshConfig, make_mesh
from spirit_jax.serving.app import make_app
from spirit_jax.serving.limits import Limits
from spirit_jax.serving.security import Access
from spirit_jax.serving.service import Service
from spirit_jax.serving.warm_up import warm_up


class Seen(NamedTuple):
    """Counts of the clients."""

    tokens: int
    audio_seconds: float
    first: list[float]
    """Seconds from each request to its first piece of text or audio."""
    seconds: float
    """From the first request to the last answer."""


def model(checkpoint: str, hidden: int, layers: int) -> SpiritLM:
    """Return a model of random weights with the tokenizers of a checkpoint."""
    parts = SpiritLM.from_pretrained(checkpoint)
    config = LlamaConfig(
        vocab_size=parts.config.vocab_size,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=2048,
    )
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    params = init_params(config, jax.random.key(0))
    return SpiritLM(params, config, parts.vocabulary, parts.speech_tokenizer, mesh)


def bare_engine(lm: SpiritLM, capacity: Capacity, body: dict[str, Any], requests: int, tokens_per_step: int) -> float:
    """Return the tokens a second of the scheduler alone, which runs the requests of as many clients as it has slots."""
    scheduler, encoded = lm.engine.scheduler(capacity), lm.encode_prompt(body["prompt"], body["output_modality"])
    tokens, begin = 0, time.perf_counter()
    for seed in range(capacity.slots * requests):
        options = SamplingParams(temperature=1.0, seed=seed, max_new_tokens=body["max_new_tokens"])
        scheduler.submit(Request(encoded, options))
    while scheduler.busy:
        tokens += sum(len(progress.new_ids) for progress in scheduler.step(tokens_per_step) if progress.finished)
    return tokens / (time.perf_counter() - begin)


def run_clients(url: str, body: dict[str, Any], streams: int, requests: int, results: Any) -> None:
    """Ask with as many clients, and put what they counted into a queue; runs in its own process."""
    results.put(asyncio.run(_clients(url, body, streams, requests)))


async def _clients(url: str, body: dict[str, Any], streams: int, requests: int) -> Seen:
    first: list[float] = []
    tokens, samples, seed = 0, 0, 0

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal tokens, samples, seed
        for _ in range(requests):
            begin, heard, own = time.perf_counter(), False, seed
            seed += 1
            async with http.stream("POST", "/v1/generate", json=body | {"seed": own}) as response:
                async for line in response.aiter_lines():
                    if not line:
                        continue
                    event = json.loads(line.removeprefix("data: "))
                    if event["type"] == "error":
                        continue  # the vocoder knows none of the units that random weights generated
                    if event["type"] in ("text", "speech") and not heard:
                        first.append(time.perf_counter() - begin)
                        heard = True
                    if event.get("audio"):
                        samples += len(base64.b64decode(event["audio"])) // 2
                    if event["type"] == "end":
                        tokens += event["usage"]["completion_tokens"]

    limits = httpx.Limits(max_connections=streams)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        begin = time.perf_counter()
        await asyncio.gather(*(client(http) for _ in range(streams)))
        return Seen(tokens, samples / 16_000, first, time.perf_counter() - begin)


def ask(url: str, body: dict[str, Any], streams: int, requests: int) -> Seen:
    """Run clients in another process and return what they counted."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=run_clients, args=(url, body, streams, requests, results))
    process.start()
    seen = results.get(timeout=600)
    process.join()
    return seen


def measure(lm: SpiritLM, streams: int, options: argparse.Namespace) -> dict[str, float]:
    """Return the figures of a number of streams."""
    capacity = Capacity(streams, 2 * options.prompt + options.new, options.new, SamplingFeatures(shortlist=64))
    service = Service(lm, capacity, Limits(), options.tokens_per_step)
    app = make_app(service, "benchmark", Access())
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", access_log=False))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    prompt = "[Text]" + " the" * options.prompt
    body = {"prompt": prompt, "stream": True, "temperature": 1.0, "max_new_tokens": options.new}
    text_body, speech_body = (body | {"output_modality": modality} for modality in ("text", "speech"))
    try:
        warm_up(lm, capacity, every_batch=True)
        ask(url, speech_body, streams, 1)  # compiles the vocoder
        ask(url, text_body, streams, 1)
        text = ask(url, text_body, streams, options.requests)
        bare = bare_engine(lm, capacity, text_body, options.requests, options.tokens_per_step)
        speech = ask(url, speech_body, streams, options.requests)
    finally:
        server.should_exit = True
        thread.join()
    served = text.tokens / text.seconds
    return {
        "streams": streams,
        "engine_tokens_per_second": bare,
        "served_tokens_per_second": served,
        "lost": 1 - served / bare,
        "seconds_to_first_text": statistics.median(text.first),
        "seconds_to_first_audio": statistics.median(speech.first),
        "real_time_factor": speech.audio_seconds / speech.seconds,
    }


def main() -> None:
    """Measure and print every number of streams."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    for name, default in (("hidden", 768), ("layers", 12), ("new", 128), ("prompt", 32), ("tokens-per-step", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=3, help="requests of each client")
    report.add_option(parser)
    options = parser.parse_args()
    where, figures = report.machine(), []
    logging.disable(logging.WARNING)  # the vocoder does not know all units that random weights generate
    lm = model(options.checkpoint, options.hidden, options.layers)
    size = sum(leaf.size for leaf in jax.tree.leaves(lm.params))
    print(f"{size / 1e6:.0f} M parameters, {options.new} new tokens, {os.cpu_count()} cores")
    for streams in options.streams:
        found = measure(lm, streams, options)
        figures.append(found)
        print(
            f"{streams:2} streams  engine {found['engine_tokens_per_second']:7.1f} tok/s  served "
            f"{found['served_tokens_per_second']:7.1f} tok/s  lost {found['lost']:6.1%}  first text "
            f"{found['seconds_to_first_text']:.3f} s  first audio {found['seconds_to_first_audio']:.3f} s  speech "
            f"{found['real_time_factor']:.1f} x real time",
            flush=True,
        )
    report.write(options.json, where, {"parameters": size, "streams": figures})


if __name__ == "__main__":
    main()
