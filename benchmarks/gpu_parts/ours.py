"""This package's side of `python -m benchmarks.gpu`. Each function takes the sizes and returns its figures."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.clips import speech
from benchmarks.gpu_parts.sizes import GenerateSizes, Sizes, TrainSizes
from spirit_jax.checkpoint import unflatten
from spirit_jax.convert.components import fcpe, hifigan, hubert, style, vqvae
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.hardware import find_gpu
from spirit_jax.inference import network
from spirit_jax.inference.engine import Engine
from spirit_jax.inference.prompts import EncodedPrompt
from spirit_jax.inference.sampling_params import SamplingParams
from spirit_jax.inference.scheduler import Request
from spirit_jax.kernels import gpu as gpu_kernels
from spirit_jax.kernels import reference
from spirit_jax.models import llama, lora
from spirit_jax.models.lora_config import LoraConfig
from spirit_jax.parallel.mesh import MeshConfig, make_mesh
from spirit_jax.parallel.sharding import BatchLayout, tracing
from spirit_jax.speech.released.phonetic import HubertEncoder
from spirit_jax.speech.released.pitch import VQVAEPitch
from spirit_jax.speech.released.style import Wav2Vec2Style
from spirit_jax.speech.released.vocoder import HifiGanVocoder
from spirit_jax.training.config import OptimizerConfig
from spirit_jax.training.estimate import estimate_step
from spirit_jax.training.lora import AdapterWeights, first_adapter
from spirit_jax.training.objectives import Objectives
from spirit_jax.training.optimizer import make_optimizer
from spirit_jax.units import HUBERT_RATE, SpeechUnits
from spirit_jax.vocabulary import TOKEN_KINDS

Figures = dict[str, Any]
Part = Callable[[Sizes], Figures]

_ROOM = 0.92
"""Share of the free memory that the arrays computed from shapes may take."""


def seconds_of(run: Callable[[], Any], repeats: int) -> float:
    """Return the least seconds of a call, whose result is waited for, after one call that compiles."""
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - begin)
    return min(times)


def card(sizes: Sizes) -> Figures:
    """Name the card and measure its limits: a large bfloat16 product, and a copy within its memory."""
    device = jax.devices()[0]
    found = find_gpu(device.device_kind)
    a = jnp.ones((sizes.matmul, sizes.matmul), jnp.bfloat16)
    product = jax.jit(lambda x: x @ x)
    array = jnp.zeros(sizes.copy // 4, jnp.float32)
    add_one = jax.jit(lambda x: x + 1)
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "memory": (device.memory_stats() or {}).get("bytes_limit"),
        "flops_by_datasheet": None if found is None else found.flops,
        "bandwidth_by_datasheet": None if found is None else found.bandwidth,
        "flops_measured": 2 * sizes.matmul**3 / seconds_of(lambda: product(a), 10),
        "bandwidth_measured": 2 * sizes.copy / seconds_of(lambda: add_one(array), 10),
    }


def check(sizes: Sizes) -> Figures:
    """Compare this platform with the plain formulas on the CPU, before any time counts.

    Returns:
        The largest differences, as shares of the largest value: of fused attention on packed rows with its gradients,
        in bfloat16, and of the loss and gradients of a small float32 model. `passed` says whether both are within 2 %
        and 0.01 %.
    """
    del sizes
    return (found := _attention_error() | _model_error()) | {
        "passed": bool(found["attention"] < 0.02 and found["model"] < 1e-4)
    }


def _attention_error() -> Figures:
    rng = np.random.default_rng(0)
    q, k, v, weights = (jnp.asarray(rng.normal(size=(2, 256, 4, 64)), jnp.float32) for _ in range(4))
    segments = jnp.asarray([np.repeat([1, 2, 3], [100, 100, 56]), np.repeat([1, 2, 0], [30, 200, 26])], jnp.int32)
    on_gpu = jax.default_backend() == "gpu"
    fused = functools.partial(gpu_kernels.cudnn_attention, implementation="cudnn" if on_gpu else "xla")

    def outputs(attention: Callable[..., Any], dtype: Any) -> list[np.ndarray]:
        def total(*qkv: Any) -> Any:
            out = attention(*(x.astype(dtype) for x in qkv), segments).astype(jnp.float32)
            out = jnp.where((segments > 0)[..., None, None], out, 0)  # outputs of padding are undefined
            return jnp.sum(out * weights), out

        (_, out), gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(q, k, v)
        return [np.asarray(x) for x in (out, *gradients)]

    with jax.default_matmul_precision("float32"):
        expected = outputs(reference.causal_attention, jnp.float32)
    pairs = zip(outputs(fused, jnp.bfloat16), expected, strict=True)
    return {"kernel": "cudnn" if on_gpu else "xla", "attention": max(_difference(a, b) for a, b in pairs)}


def _model_error() -> Figures:
    config = llama.LlamaConfig(256, 128, 256, 2, 2, 2)
    tokens = np.random.default_rng(0).integers(0, 256, (2, 128)).astype(np.int32)

    def gradients(device: Any) -> list[np.ndarray]:
        def loss(params: Any, tokens: Any) -> Any:
            model = llama.Llama(config)
            hidden, _ = model.apply({"params": params}, tokens[:, :-1])
            logits = jnp.einsum("btd,dv->btv", hidden, params["lm_head"])
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], 2))

        params = jax.device_put(jax.tree.map(np.asarray, init(jax.random.key(0))), device)
        with tracing(make_mesh(MeshConfig(1, 1, 1), [device]), "float32"):
            found = jax.jit(jax.value_and_grad(loss))(params, jax.device_put(tokens, device))
        return [np.asarray(leaf) for leaf in jax.tree.leaves(found)]

    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        init = jax.jit(functools.partial(llama.init_params, config))
        expected = gradients(cpu)
    pairs = zip(gradients(jax.devices()[0]), expected, strict=True)
    return {"model": max(_difference(a, b) for a, b in pairs)}


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def packed_batch(model: llama.LlamaConfig, rows: int, length: int, document: int) -> dict[str, np.ndarray]:
    """Return a batch of random tokens in documents of random lengths that fill each row, as the loader packs them."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, model.vocab_size, (rows, length + 1)).astype(np.int32)
    starts = rng.random((rows, length)) < 1 / document
    starts[:, 0] = True
    places = np.arange(length)
    first = np.maximum.accumulate(np.where(starts, places, 0), axis=1)
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": np.cumsum(starts, axis=1, dtype=np.int32),
        "positions": (places - first).astype(np.int32),
        "loss_mask": np.ones((rows, length), bool),
        "sources": np.zeros(rows, np.int32),
    }


def train(sizes: Sizes) -> Figures:
    """Measure the training step of all weights with Adam."""
    return _largest_step(sizes.train, None)


def train_lora(sizes: Sizes) -> Figures:
    """Measure the training step of an adapter beside a frozen base in bfloat16."""
    return _largest_step(sizes.lora, LoraConfig(rank=sizes.lora_rank, alpha=2.0 * sizes.lora_rank))


def _largest_step(wanted: TrainSizes, adapter: LoraConfig | None) -> Figures:
    """Measure with the most rows that fit, first by computed memory and then in fact."""
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    objectives = Objectives(wanted.model, np.arange(wanted.model.vocab_size) % len(TOKEN_KINDS))
    if adapter is not None:
        with tracing(mesh, wanted.model.dtype):
            base = jax.jit(functools.partial(llama.init_params, wanted.model))(jax.random.key(0))
        objectives = dataclasses.replace(objectives, trained=AdapterWeights(wanted.model, adapter, base))
    failed = []
    for rows in wanted.rows:
        try:
            if not _fits(objectives, rows, wanted.length):
                failed.append(f"{rows} rows are too many by their shapes")
                continue
            return _measured_step(objectives, wanted, rows) | {"tried": failed}
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            failed.append(f"{rows} rows do not fit")
    return {"skipped": f"no number of rows fits: {'; '.join(failed)}"}


def _fits(objectives: Objectives, rows: int, length: int) -> bool:
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit is None:
        return True
    optimizer = make_optimizer(OptimizerConfig(), 1000)
    return estimate_step("h100", objectives, optimizer, rows=rows, length=length).total < _ROOM * limit


def _measured_step(objectives: Objectives, wanted: TrainSizes, rows: int) -> Figures:
    model, length, trained = wanted.model, wanted.length, objectives.trained
    layout = BatchLayout(make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]), rows)
    step = objectives.step(make_optimizer(OptimizerConfig(), 1000), spike_sigmas=6.0, layout=layout)
    begin = time.perf_counter()
    key = jax.random.key(0)
    state = step.init(key) if trained is None else step.start_from(first_adapter(trained, layout.mesh, 0))
    batch = step.put_batch(packed_batch(model, rows, length, wanted.document))
    times, losses = [], []
    for _ in range(wanted.steps + 2):
        start = time.perf_counter()
        state, metrics = step.train_step(state, batch)
        losses.append(float(metrics["loss"]))  # waits for the step
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[2:])
    flops = objectives.summary(length).flops_per_unit * rows * length
    head = (rows, length, model.num_attention_heads, model.head_size)
    fused = jax.default_backend() == "gpu" and gpu_kernels.cudnn_takes(head, llama.DTYPES[model.dtype])
    return {
        "parameters": llama.parameter_count(model),
        "trained_parameters": lora.parameter_count(model, trained.config) if trained else llama.parameter_count(model),
        "rows": rows,
        "length": length,
        "attention": "cuDNN" if fused else "blocks of queries",
        "first_step_seconds": time.perf_counter() - begin - sum(times[1:]),
        "step_seconds": seconds,
        "tokens_per_second": rows * length / seconds,
        "flops_per_second": flops / seconds,
        "losses": [losses[0], losses[-1]],
        "peak_memory": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
    }


def generate(sizes: Sizes) -> Figures:
    """Measure prefill and decoding of random weights in bfloat16, greedily, at each batch size."""
    wanted = sizes.generate
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    with tracing(mesh, wanted.model.dtype):
        params = jax.jit(functools.partial(llama.init_params, wanted.model))(jax.random.key(0))
    engine = Engine(network.arrange(wanted.model, params, mesh), wanted.model, mesh, vocabulary=None)
    embedding = params["embed_tokens"]
    read = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) - embedding.nbytes
    del params
    rows = []
    for batch in wanted.batches:
        try:
            rows.append(_generated(engine, wanted, batch, read))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            rows.append({"batch": batch, "skipped": "does not fit"})
    return {"parameters": llama.parameter_count(wanted.model), "batches": rows}


def _generated(engine: Engine, wanted: GenerateSizes, batch: int, weights: int) -> Figures:
    ids = random_ids(wanted, batch)

    def run(new: int) -> None:
        requests = [Request(EncodedPrompt(row), SamplingParams(max_new_tokens=new)) for row in ids]
        list(engine.run(requests, slots=batch))

    first, whole = (seconds_of(lambda new=new: run(new), wanted.repeats) for new in (1, wanted.new))
    return rates(wanted, batch, first, whole) | {"bytes_per_step": weights + cache_bytes(wanted, batch)}


def random_ids(wanted: GenerateSizes, batch: int) -> np.ndarray:
    """Return prompts of random ids, int32 [batch, prompt], the same for both sides."""
    return np.random.default_rng(batch).integers(5, wanted.model.vocab_size, (batch, wanted.prompt)).astype(np.int32)


def cache_bytes(wanted: GenerateSizes, batch: int) -> int:
    """Return the bytes of keys and values that one step reads on average, in bfloat16."""
    model = wanted.model
    a_token = 2 * 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_size
    return batch * (wanted.prompt + wanted.new // 2) * a_token


def rates(wanted: GenerateSizes, batch: int, first: float, whole: float) -> Figures:
    """Return tokens a second from the seconds of one new token and of all."""
    step = max(whole - first, 1e-9) / (wanted.new - 1)
    return {
        "batch": batch,
        "prefill_tokens_per_second": batch * wanted.prompt / first,
        "decode_tokens_per_second": batch / step,
        "decode_step_seconds": step,
    }


def clips(sizes: Sizes) -> list[np.ndarray]:
    """Return voiced clips, float32 [R] each, the same for both sides; torchfcpe fails on clips without a voice."""
    return [speech(sizes.speech.seconds, seed) for seed in range(sizes.speech.clips)]


def encode(sizes: Sizes) -> Figures:
    """Measure the extraction of phonetic, style and pitch units of clips, in seconds of audio a second."""
    wanted, audio = sizes.speech, clips(sizes)
    encoders: dict[str, Callable[[Sequence[np.ndarray]], Any]] = {
        "hubert": HubertEncoder.load(
            {"encoder": vars(wanted.hubert), "layer": wanted.layer, "quantizer": {"kind": "kmeans"}},
            {
                "encoder": _random(hubert.encoder_shapes(wanted.hubert)),
                "quantizer": {"centroids": np.zeros((500, wanted.hubert.hidden_size), np.float32)},
            },
        ).encode_batch,
        "style": _style(wanted.style).encode_batch,
        "pitch": _pitch(vars(wanted.fcpe)).encode_batch,
    }
    seconds = {name: seconds_of(lambda run=run: run(audio), wanted.repeats) for name, run in encoders.items()}
    length = sum(map(len, audio)) / SAMPLE_RATE
    return {name: length / value for name, value in seconds.items()} | {"all": length / sum(seconds.values())}


def _style(encoder: Any) -> Wav2Vec2Style:
    config = {"kind": "wav2vec2", "encoder": dataclasses.asdict(encoder), "projection_size": 256, "num_labels": 100}
    return Wav2Vec2Style.load(config, _random(style.shapes(config)))


def _pitch(extractor: dict[str, Any]) -> VQVAEPitch:
    config = {"vqvae": {}, "fcpe": extractor, "interpolate": True, "normalize": True}
    arrays = {"vqvae": _random(vqvae.shapes({})), "fcpe": _random(fcpe.shapes(extractor))}
    arrays["fcpe"]["cent_table"] = np.linspace(1000, 6000, arrays["fcpe"]["cent_table"].size, dtype=np.float32)
    return VQVAEPitch.load(config, arrays)


def _random(shapes: Any) -> Any:
    """Return a tree of small random arrays of these shapes, which are given by path."""
    rng = np.random.default_rng(0)
    return unflatten({path: (0.05 * rng.standard_normal(shape)).astype(np.float32) for path, shape in shapes.items()})


def vocoder(sizes: Sizes) -> Figures:
    """Measure the vocoder on units at the frame rate, in seconds of audio a second, for one utterance and for all."""
    wanted = sizes.speech
    config = {"kind": "hifigan", "hifigan": dataclasses.asdict(wanted.vocoder), "speakers": [], "styles": []}
    speaker = HifiGanVocoder.load(config, _random(hifigan.shapes(config)))
    found = {}
    for name, count in (("one", 1), ("batch", wanted.clips)):
        units = [SpeechUnits(row) for row in vocoder_units(sizes, count)]
        seconds = seconds_of(lambda units=units: speaker.decode_batch(units, predict_durations=False), wanted.repeats)
        found[name] = count * wanted.seconds / seconds
    return found


def vocoder_units(sizes: Sizes, count: int) -> np.ndarray:
    """Return phonetic units at the frame rate, int64 [count, frames], the same for both sides."""
    frames = round(sizes.speech.seconds * HUBERT_RATE)
    return np.random.default_rng(0).integers(0, sizes.speech.vocoder.num_embeddings, (count, frames))


PARTS: dict[str, Part] = {
    "card": card,
    "check": check,
    "train": train,
    "generate": generate,
    "encode": encode,
    "vocoder": vocoder,
    "lora": train_lora,
}
"""Each part by name, in the order of their importance."""
