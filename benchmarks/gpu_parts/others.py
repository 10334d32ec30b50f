"""PyTorch's and Hugging Face's side of `python -m benchmarks.gpu`, on the same sizes as `ours`.

PyTorch runs as its users run it without further tuning: eager, with scaled_dot_product_attention, fused AdamW, and
float32 where this package computes in float32.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch

from benchmarks.gpu_parts import ours
from benchmarks.gpu_parts.sizes import Sizes, TrainSizes
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.models.llama_config import LlamaConfig

Figures = dict[str, Any]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def prepare() -> None:
    """Ask for full float32 products, as this package computes speech networks. Call it once, before any part."""
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def wait() -> None:
    """Wait until the card has done its work."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(run: Callable[[], Any], repeats: int) -> float:
    """Return the least seconds of a call, after one to warm up."""

    def waited() -> None:
        run()
        wait()

    return ours.seconds_of(waited, repeats)


def _peak_memory() -> int | None:
    return torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else None


def _llama(config: LlamaConfig, dtype: torch.dtype) -> Any:
    """Return Hugging Face's Llama with random weights, made on the device."""
    from benchmarks.hugging_face import random_llama

    with torch.device(DEVICE):
        torch.set_default_dtype(dtype)
        try:
            return random_llama(config, config.initializer_range)
        finally:
            torch.set_default_dtype(torch.float32)


def train(sizes: Sizes) -> Figures:
    """Measure Hugging Face's Llama with float32 weights under autocast to bfloat16, without packed segments."""
    model = _llama(sizes.train.model, torch.float32).train()
    return _largest_step(model, sizes.train)


def train_lora(sizes: Sizes) -> Figures:
    """Measure PEFT's LoRA on a base in bfloat16, with gradient checkpointing."""
    import peft

    base = _llama(sizes.lora.model, torch.bfloat16)
    base.gradient_checkpointing_enable()
    base.enable_input_require_grads()
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(r=sizes.lora_rank, lora_alpha=2 * sizes.lora_rank, target_modules=targets)
    return _largest_step(peft.get_peft_model(base, config).train(), sizes.lora)


def _largest_step(model: Any, wanted: TrainSizes) -> Figures:
    failed = []
    for rows in wanted.rows:
        try:
            return _measured_step(model, wanted, rows) | {"tried": failed}
        except torch.OutOfMemoryError:
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            failed.append(f"{rows} rows do not fit")
    return {"skipped": f"no number of rows fits: {'; '.join(failed)}"}


def _measured_step(model: Any, wanted: TrainSizes, rows: int) -> Figures:
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, 3e-5, fused=True)
    batch = ours.packed_batch(wanted.model, rows, wanted.length, wanted.document)
    inputs, targets = (torch.tensor(batch[name], device=DEVICE).long() for name in ("inputs", "targets"))

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            logits = model(input_ids=inputs, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return loss.item()

    times, losses = [], []
    for _ in range(wanted.steps + 2):
        begin = time.perf_counter()
        losses.append(step())
        times.append(time.perf_counter() - begin)
    seconds = statistics.median(times[2:])
    return {
        "rows": rows,
        "length": wanted.length,
        "step_seconds": seconds,
        "tokens_per_second": rows * wanted.length / seconds,
        "losses": [losses[0], losses[-1]],
        "peak_memory": _peak_memory(),
    }


def generate(sizes: Sizes) -> Figures:
    """Measure Hugging Face's `generate`, greedy, with its default cache."""
    wanted = sizes.generate
    model = _llama(wanted.model, torch.bfloat16).eval()
    rows = []
    for batch in wanted.batches:
        given = torch.tensor(ours.random_ids(wanted, batch), device=DEVICE).long()
        options = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(given)}

        @torch.inference_mode()
        def run(new: int, given: Any = given, options: dict[str, Any] = options) -> None:
            model.generate(given, eos_token_id=None, max_new_tokens=new, min_new_tokens=new, **options)

        try:
            first, whole = (seconds_of(lambda new=new, run=run: run(new), wanted.repeats) for new in (1, wanted.new))
            rows.append(ours.rates(wanted, batch, first, whole))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            rows.append({"batch": batch, "skipped": "does not fit"})
    return {"batches": rows}


def encode(sizes: Sizes) -> Figures:
    """Measure transformers' HuBERT and wav2vec2 on the clips in four batches, and torchfcpe clip by clip."""
    import transformers

    wanted = sizes.speech
    audio = torch.tensor(np.stack(ours.clips(sizes)), device=DEVICE)
    chunk = max(1, len(audio) // 4)

    def shape(config: Any, layers: int) -> dict[str, Any]:
        channels, kernels, strides = zip(*config.conv_layers, strict=True)
        return {
            "conv_dim": channels,
            "conv_kernel": kernels,
            "conv_stride": strides,
            "num_hidden_layers": layers,
            "hidden_size": config.hidden_size,
            "num_attention_heads": config.num_heads,
            "intermediate_size": config.intermediate_size,
            "num_conv_pos_embeddings": config.position_kernel,
            "num_conv_pos_embedding_groups": config.position_groups,
        }

    hubert_config = transformers.HubertConfig.from_dict(shape(wanted.hubert, wanted.layer))
    phonetic: Any = cast(torch.nn.Module, transformers.HubertModel(hubert_config)).to(DEVICE).eval()
    style_config = transformers.Wav2Vec2Config.from_dict(
        shape(wanted.style, wanted.style.num_layers) | {"num_labels": 100}
    )
    classifier = transformers.Wav2Vec2ForSequenceClassification(style_config)
    styles: Any = cast(torch.nn.Module, classifier).to(DEVICE).eval()

    def in_chunks(run: Callable[[Any], Any]) -> Callable[[], None]:
        @torch.inference_mode()
        def all_clips() -> None:
            for begin in range(0, len(audio), chunk):
                run(audio[begin : begin + chunk]).cpu()

        return all_clips

    def style_units(clips: Any) -> Any:
        x = (clips - clips.mean(1, keepdim=True)) / torch.sqrt(clips.var(1, keepdim=True) + 1e-7)
        x = styles.projector(styles.wav2vec2(x).last_hidden_state)
        pooled = torch.stack([window.mean(1) for window in torch.split(x, 50, dim=1)], 1)
        return styles.classifier(pooled).argmax(-1)

    runs = {"hubert": lambda clips: phonetic(clips).last_hidden_state, "style": style_units}
    seconds = {name: seconds_of(in_chunks(run), wanted.repeats) for name, run in runs.items()}
    length = audio.numel() / SAMPLE_RATE
    return {name: length / value for name, value in seconds.items()} | _pitch(
        sizes, audio, length, sum(seconds.values())
    )


def _pitch(sizes: Sizes, audio: Any, length: float, others: float) -> Figures:
    try:
        from benchmarks.torch_fcpe import bundled_fcpe

        contour = bundled_fcpe(str(DEVICE))
    except ImportError as error:
        return {"pitch": None, "all": None, "missing": str(error)}

    @torch.inference_mode()
    def run() -> None:
        for clip in audio:
            contour(clip)

    seconds = seconds_of(run, sizes.speech.repeats)
    return {"pitch": length / seconds, "all": length / (seconds + others)}


def vocoder(sizes: Sizes) -> Figures:
    """Measure the same network in PyTorch (`tests/support/torch_hifigan.py`), in batches of a quarter of the clips."""
    from spirit_jax.convert.components.hifigan import released_config
    from tests.support.torch_hifigan import TorchHifiGan

    wanted = sizes.speech
    network = TorchHifiGan(released_config({"hifigan": dataclasses.asdict(wanted.vocoder)})).eval().fold().to(DEVICE)
    found = {}
    for name, count in (("one", 1), ("batch", wanted.clips)):
        units = torch.tensor(ours.vocoder_units(sizes, count), device=DEVICE)
        chunk = max(1, count // 4)

        @torch.inference_mode()
        def run(units: Any = units, chunk: int = chunk) -> None:
            for begin in range(0, len(units), chunk):
                part = units[begin : begin + chunk]
                voice = torch.full((len(part),), 2, device=DEVICE)
                network(part, speaker=voice, style=voice).cpu()

        found[name] = count * wanted.seconds / seconds_of(run, wanted.repeats)
    return found


PARTS: dict[str, Callable[[Sizes], Figures]] = {
    "train": train,
    "generate": generate,
    "encode": encode,
    "vocoder": vocoder,
    "lora": train_lora,
}
"""The parts that have another side, by name as in `ours.PARTS`."""
