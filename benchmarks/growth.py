"""How time and memory grow: measured curves with fitted lines, as JSON and as pictures.

    python -m benchmarks.growth [--parts training loading decoding encoding] [--repeats 3]
        [--json benchmarks/results/growth.json] [--pictures docs/images]
    python -m benchmarks.growth --draw benchmarks/results/growth.json --pictures docs/images

- training: the step's time and the time to compile it, against layers and against the length of a row
- loading: the time of a packed token, against streams and against sources
- decoding: the time of a step, against the rows of a batch and against the tokens of context
- encoding: the time of HuBERT, against the length of a clip and against the clips of a call

Everything is small enough for two minutes a part on one core. With `--json`, parts of the file that are not asked for
stay as they are. Times are CPU seconds of all threads, which other programs disturb less than the clock, the best of
`--repeats` calls. Memory is the peak of the process above what it held before, as the kernel counts resident pages;
buffers that the allocator keeps are not seen, so that small figures are rough. Fits have no negative term and weigh
relative errors.

`--pictures` draws `growth_PART.png` and needs matplotlib. `--draw` draws an earlier run's JSON and measures nothing.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import functools
import gc
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from benchmarks import report
from benchmarks.curves import Curve, draw
from benchmarks.data import SOURCES, Language, write_records
from spirit_jax.checkpoint import unflatten
from spirit_jax.convert.components import hubert
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.files import read_json
from spirit_jax.data.config import DataConfig, SourceConfig
from spirit_jax.data.loader import Loader
from spirit_jax.inference import network
from spirit_jax.inference.engine import Engine
from spirit_jax.inference.prompts import EncodedPrompt
from spirit_jax.inference.sampling_params import SamplingParams
from spirit_jax.inference.scheduler import Capacity, Request
from spirit_jax.models import llama
from spirit_jax.models.wav2vec2_config import Wav2Vec2Config
from spirit_jax.parallel.mesh import MeshConfig, make_mesh
from spirit_jax.parallel.sharding import BatchLayout
from spirit_jax.speech.released.phonetic import HubertEncoder
from spirit_jax.training.config import OptimizerConfig
from spirit_jax.training.objectives import Objectives
from spirit_jax.training.optimizer import make_optimizer
from spirit_jax.vocabulary import TOKEN_KINDS, Vocabulary

MODEL = llama.LlamaConfig(
    vocab_size=2048,
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
)


@contextlib.contextmanager
def peak_memory() -> Iterator[list[float]]:
    """A context with a list that holds, after its end, the peak of resident bytes above those at its begin.

    The list stays empty on systems that cannot reset the peak.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    found: list[float] = []
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak to what is resident
        before = _status("VmRSS")
    except OSError:
        before = None
    yield found
    if before is not None:
        found.append(max(_status("VmHWM") - before, 0.0))


def _status(name: str) -> float:
    for line in pathlib.Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return 1024.0 * float(line.split()[1])
    raise OSError(f"/proc/self/status has no {name}")


def best_of(run: Callable[[], Any], repeats: int) -> tuple[float, float | None]:
    """Return the least CPU seconds of a call after one that compiles, and the peak of memory of all calls."""
    with peak_memory() as peak:
        jax.block_until_ready(run())
        times = []
        for _ in range(repeats):
            begin = time.process_time()
            jax.block_until_ready(run())
            times.append(time.process_time() - begin)
    return min(times), peak[0] if peak else None


def training(repeats: int) -> Iterator[Curve]:
    """Yield the curves of a training step of 2 rows."""
    for against, fixed, points in (
        ("layers", "2 rows of 256 tokens", (1, 2, 4, 8, 12)),
        ("tokens of a row", "2 rows, 2 layers", (128, 256, 512, 1024, 2048)),
    ):
        degree = 1 if against == "layers" else 2
        step = Curve("training", "training step", against, fixed, "CPU s", degree)
        compiling = Curve("training", "compilation of the training step", against, fixed, "CPU s", 1)
        for point in points:
            layers, length = (point, 256) if against == "layers" else (2, point)
            seconds, memory, compile_seconds = _training_step(layers, length, repeats)
            step.add(point, seconds, memory)
            compiling.add(point, compile_seconds)
        yield step
        yield compiling
    unrolled = Curve("training", "compilation, layers unrolled", "layers", "2 rows of 256 tokens", "CPU s", 1)
    for layers in (1, 2, 4, 8):
        unrolled.add(layers, _training_step(layers, 256, 1, scan=False)[2])
    yield unrolled


def _training_step(layers: int, length: int, repeats: int, scan: bool = True) -> tuple[float, float | None, float]:
    """Return the step's seconds, its peak of memory, and what its first call takes longer: tracing and compilation."""
    model = dataclasses.replace(MODEL, num_hidden_layers=layers, scan_layers=scan)
    layout = BatchLayout(make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]), 2)
    objectives = Objectives(model, np.arange(model.vocab_size) % len(TOKEN_KINDS))
    step = objectives.step(make_optimizer(OptimizerConfig(), 1000), spike_sigmas=6.0, layout=layout)
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, (2, length + 1)).astype(np.int32)
    batch = {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": np.ones((2, length), np.int32),
        "positions": np.broadcast_to(np.arange(length, dtype=np.int32), (2, length)).copy(),
        "loss_mask": np.ones((2, length), bool),
        "sources": np.zeros(2, np.int32),
    }
    state = [step.init(jax.random.key(0))]
    placed = step.put_batch(batch)

    def run() -> Any:
        state[0], metrics = step.train_step(state[0], placed)
        return metrics["loss"]

    begin = time.process_time()
    jax.block_until_ready(run())
    first = time.process_time() - begin
    seconds, memory = best_of(run, repeats)
    return seconds, memory, first - seconds


def loading(repeats: int) -> Iterator[Curve]:
    """Yield the curves of the loader: packed rows of 1024 tokens from synthetic records, without workers."""
    batches = 8 * max(repeats, 1)
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        language, rng = Language(np.random.default_rng(0), 5000), np.random.default_rng(2)
        vocabulary = Vocabulary.train([language.text(rng, 1000) for _ in range(50)], 2000)
        write_records(str(directory), language, 400)
        streams = Curve("loading", "loader", "streams", "3 sources, 32 rows of 1024 tokens", "CPU µs a token", 1)
        for count in (1, 2, 4, 8, 16, 32):
            sources = {key: SourceConfig(str(directory / key), recipe) for key, recipe in SOURCES.items()}
            streams.add(count, *_loaded(DataConfig(sources, streams=count), vocabulary, batches))
        yield streams
        many = Curve("loading", "loader", "sources", "8 streams, 32 rows of 1024 tokens", "CPU µs a token", 1)
        for count in (1, 2, 4, 8, 16, 32):
            kinds = [list(SOURCES.items())[index % 3] for index in range(count)]
            sources = {
                f"source_{index}": SourceConfig(str(directory / key), recipe)
                for index, (key, recipe) in enumerate(kinds)
            }
            many.add(count, *_loaded(DataConfig(sources, streams=8), vocabulary, batches))
        yield many


def _loaded(config: DataConfig, vocabulary: Vocabulary, batches: int) -> tuple[float, float | None]:
    """Return the CPU microseconds a token after the first batch, and the peak of memory from the opening of files."""
    with peak_memory() as peak, Loader(config, vocabulary, 1024, 32, 0) as batches_of_run:
        next(batches_of_run)
        begin, tokens = time.process_time(), 0
        for _ in range(batches):
            tokens += int((next(batches_of_run)["segment_ids"] > 0).sum())
        seconds = time.process_time() - begin
    return 1e6 * seconds / tokens, peak[0] if peak else None


def decoding(repeats: int) -> Iterator[Curve]:
    """Yield the curves of one decode step of the model with four layers."""
    config = dataclasses.replace(MODEL, max_position_embeddings=8192)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    params = network.arrange(config, jax.jit(functools.partial(llama.init_params, config))(jax.random.key(0)), mesh)
    engine = Engine(params, config, mesh, vocabulary=None)
    rows = Curve("decoding", "decode step", "rows of a batch", "64 tokens of context", "CPU s", 1)
    for batch in (1, 2, 4, 8, 16, 32):
        rows.add(batch, *_decode_step(engine, batch, 64, repeats))
    yield rows
    context = Curve("decoding", "decode step", "tokens of context", "4 rows", "CPU s", 1)
    for length in (128, 512, 1024, 2048):
        context.add(length, *_decode_step(engine, 4, length, repeats))
    yield context


def _decode_step(engine: Engine, batch: int, context: int, repeats: int, steps: int = 16) -> tuple[float, float | None]:
    """Return the seconds of a step after prompts of this context, the least mean of `steps`, and the peak of memory."""
    ids = np.random.default_rng(0).integers(5, engine.config.vocab_size, (batch, context)).astype(np.int32)
    sampling = SamplingParams(max_new_tokens=steps * (repeats + 2))
    requests = [Request(EncodedPrompt(row), sampling) for row in ids]
    with peak_memory() as peak:
        scheduler = engine.scheduler(Capacity.for_requests(requests, batch, engine.config.max_position_embeddings))
        for request in requests:
            scheduler.submit(request)
        while len(scheduler.step(1)) < batch:  # prompts are read in chunks
            pass
        times = []
        for _ in range(repeats):
            begin = time.process_time()
            scheduler.step(steps)
            times.append((time.process_time() - begin) / steps)
    return min(times), peak[0] if peak else None


def encoding(repeats: int) -> Iterator[Curve]:
    """Yield the curves of the phonetic encoder of full size."""
    rng, shape = np.random.default_rng(0), Wav2Vec2Config()
    arrays = {
        path: (0.05 * rng.standard_normal(size)).astype(np.float32)
        for path, size in hubert.encoder_shapes(shape).items()
    }
    encoder = HubertEncoder.load(
        {"encoder": vars(shape), "layer": 11, "quantizer": {"kind": "kmeans"}},
        {"encoder": unflatten(arrays), "quantizer": {"centroids": np.zeros((500, 768), np.float32)}},
    )

    def clip(seconds: float) -> np.ndarray:
        return rng.normal(0, 0.1, int(seconds * SAMPLE_RATE)).astype(np.float32)

    length = Curve("encoding", "HuBERT", "seconds of a clip", "one clip", "CPU s", 2)
    for seconds in (1, 2, 5, 10, 20):
        audio = [clip(seconds)]
        length.add(seconds, *best_of(lambda audio=audio: encoder.encode_batch(audio), min(repeats, 2)))
    yield length
    clips = Curve("encoding", "HuBERT", "clips of a call", "clips of 2 s", "CPU s", 1)
    for count in (1, 2, 4, 8):
        audio = [clip(2) for _ in range(count)]
        clips.add(count, *best_of(lambda audio=audio: encoder.encode_batch(audio), min(repeats, 2)))
    yield clips


PARTS = {"training": training, "loading": loading, "decoding": decoding, "encoding": encoding}


def main() -> None:
    """Measure the parts that are asked for, or draw what an earlier run measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to measure, default all")
    parser.add_argument("--repeats", type=int, default=3, help="measured calls of each point (default 3)")
    parser.add_argument("--pictures", type=pathlib.Path, help="directory for the pictures")
    parser.add_argument("--draw", type=pathlib.Path, metavar="FILE", help="draw this JSON and measure nothing")
    report.add_option(parser)
    options = parser.parse_args()
    if options.draw is not None:
        curves = [Curve(**curve) for curve in read_json(options.draw)["figures"]]
    else:
        where, curves = report.machine(), []
        if options.json is not None and options.json.exists():
            stored = [Curve(**curve) for curve in read_json(options.json)["figures"]]
            curves = [curve for curve in stored if curve.part not in options.parts]
        jax.config.update("jax_enable_compilation_cache", False)
        for part in options.parts:
            for curve in PARTS[part](options.repeats):
                found = curve.fit()
                print(f"  fit: {found} {curve.unit}, off by at most {found.largest_error:.0%}", flush=True)
                curves.append(curve)
            report.write(options.json, where, [dataclasses.asdict(curve) for curve in curves])
    if options.pictures is not None:
        options.pictures.mkdir(parents=True, exist_ok=True)
        draw(curves, options.pictures)


if __name__ == "__main__":
    main()
