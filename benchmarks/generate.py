"""Compare greedy generation with Hugging Face's `generate` in PyTorch: same weights, same prompts.

    python -m benchmarks.generate [--hidden 768] [--layers 12] [--batch 1 16] [--prompt 64] [--new 32] [--repeats 3]
        [--dtype float32] [--stacked] [--json FILE]

Prefill and decode are timed apart. Prefill is the time of a prompt with one new token; decode is the time that each
further token takes. The best of the repeats counts; spirit_jax and PyTorch run in turn. Both must generate the same ids
(in bfloat16, rounding may separate them). Every token reads all weights but the embedding, so at batch 1 decoding
cannot be faster than memory; how fast all cores read memory is measured first. `--stacked` runs the layout of
accelerators (`models/llama.py`) instead of the CPU's (`inference/llama_cpu.py`), which shows what the CPU layout gains.
"""

import argparse
import os
import threading
import time
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import torch
import transformers

from benchmarks import report
from benchmarks.hugging_face import random_llama
from spirit_jax.checkpoint import unflatten
from spirit_jax.convert.components import llama as table
from spirit_jax.convert.table import to_jax
from spirit_jax.inference import network
from spirit_jax.inference.engine import Engine
from spirit_jax.inference.prompts import EncodedPrompt
from spirit_jax.inference.sampling_params import SamplingParams
from spirit_jax.inference.scheduler import Request
from spirit_jax.models.llama import LlamaConfig
from spirit_jax.parallel.mesh import MeshConfig, make_mesh

VOCABULARY = 32768


def models(hidden: int, layers: int, dtype: str, stacked: bool) -> tuple[transformers.LlamaForCausalLM, Engine]:
    """Return the same random model for PyTorch and for spirit_jax."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        rms_norm_eps=1e-6,
        dtype=dtype,
        param_dtype=dtype,
    )
    reference = random_llama(config, initializer_range=0.1).eval()
    tensors = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
    arrays, _ = to_jax(table.rows(config), tensors, table.shapes(config), "torch")
    params = unflatten({path: np.asarray(array) for path, array in arrays.items()})
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    params = jax.tree.map(lambda array: array.astype(dtype), jax.device_put(params))
    if not stacked:
        params = network.arrange(config, params, mesh)
    return reference.to(getattr(torch, dtype)), Engine(params, config, mesh, vocabulary=None)


def memory_bandwidth(arrays: list[np.ndarray]) -> float:
    """Return the bytes a second at which all cores together read these arrays, the best of five times."""
    words = [array.view(np.uint32).reshape(-1) for array in arrays]
    cores = os.cpu_count() or 1

    def read(core: int) -> None:
        for array in words:
            np.array_split(array, cores)[core].max()

    best = float("inf")
    for _ in range(5):
        threads = [threading.Thread(target=read, args=(core,)) for core in range(cores)]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best = min(best, time.perf_counter() - begin)
    return sum(array.nbytes for array in arrays) / best


def run_ours(engine: Engine, ids: np.ndarray, new: int) -> np.ndarray:
    """Return the new ids of each prompt, [B, new]."""
    requests = [Request(EncodedPrompt(row), SamplingParams(max_new_tokens=new)) for row in ids]
    answers = dict(engine.run(requests, slots=len(ids)))
    return np.stack([answers[index] for index in range(len(ids))])


def run_torch(reference: transformers.LlamaForCausalLM, ids: np.ndarray, new: int) -> np.ndarray:
    """Return the new ids of each prompt, [B, new]."""
    given = torch.tensor(ids).long()
    options = {"do_sample": False, "max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0}
    with torch.no_grad():
        # The protocol that transformers declares for its own models does not fit them.
        output = reference.generate(  # pyright: ignore[reportAttributeAccessIssue]
            given, attention_mask=torch.ones_like(given), eos_token_id=None, **options
        )
    return output[:, ids.shape[1] :].numpy()


def best_times(runs: dict[str, Callable[[int], np.ndarray]], new: int, repeats: int) -> dict[tuple[str, int], float]:
    """Return the least seconds of each run for one new token and for `new` tokens; the runs take turns."""
    times: dict[tuple[str, int], list[float]] = {}
    for _ in range(repeats):
        for name, run in runs.items():
            for count in (1, new):
                begin = time.perf_counter()
                run(count)
                times.setdefault((name, count), []).append(time.perf_counter() - begin)
    return {key: min(values) for key, values in times.items()}


def main() -> None:
    """Measure and print every batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("hidden", 768), ("layers", 12), ("prompt", 64), ("new", 32), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--stacked", action="store_true", help="run the layout of accelerators")
    report.add_option(parser)
    options = parser.parse_args()
    where = report.machine()
    reference, engine = models(options.hidden, options.layers, options.dtype, options.stacked)
    size = sum(parameter.numel() for parameter in reference.parameters())
    params = engine.arrays.params
    read = [np.asarray(x) for key, tree in params.items() if key != "embed_tokens" for x in jax.tree.leaves(tree)]
    bandwidth = memory_bandwidth(read)
    most = bandwidth / sum(array.nbytes for array in read)
    print(
        f"{size / 1e6:.0f} M parameters, {options.dtype}, prompts of {options.prompt}, {options.new} new, "
        f"{os.cpu_count()} cores; memory is read at {bandwidth / 1e9:.1f} GB/s, all weights {most:.1f} times a second"
    )
    figures = []
    for batch in options.batch:
        ids = np.random.default_rng(batch).integers(5, 30000, (batch, options.prompt)).astype(np.int32)
        runs: dict[str, Callable[[int], np.ndarray]] = {
            "ours": lambda new, ids=ids: run_ours(engine, ids, new),
            "torch": lambda new, ids=ids: run_torch(reference, ids, new),
        }
        same = float(np.mean(runs["ours"](options.new) == runs["torch"](options.new)))
        runs["ours"](1)
        best = best_times(runs, options.new, options.repeats)
        prefill = {name: batch * options.prompt / best[name, 1] for name in runs}
        decode = {name: batch * (options.new - 1) / (best[name, options.new] - best[name, 1]) for name in runs}
        for stage, speed in (("prefill", prefill), ("decode", decode)):
            print(
                f"batch {batch:2} {stage:7}  ours {speed['ours']:8.1f} tok/s   torch {speed['torch']:8.1f} tok/s   "
                f"{speed['ours'] / speed['torch']:.2f} x"
            )
        steps = decode["ours"] / batch
        print(
            f"batch {batch:2} {same:.1%} of the ids are the same; decoding reads weights at {steps / most:.0%} of the "
            "speed of memory"
        )
        figures.append(
            {"batch": batch, "prefill": prefill, "decode": decode, "same_ids": same, "share_of_memory": steps / most}
        )
    report.write(options.json, where, {"parameters": size, "dtype": options.dtype, "batches": figures})


if __name__ == "__main__":
    main()
