"""Greedy generation, ours against Hugging Face's `generate` in torch: the same weights, the same run, prefill and decode apart.

    python benchmarks/generate.py [--hidden 768] [--layers 12] [--batch 1 16] [--prompt 64] [--new 32] [--repeats 3]
        [--dtype float32]

Prefill is the time of a prompt with one new token; decoding what each further token takes. The best of the repeats counts, ours
and theirs by turns. Both must give the same ids (in bfloat16, roundings may part them). Every token needs all weights but the
embedding: at batch 1 decoding can be no faster than they are read, and how fast all cores read them is measured first.
"""

# ruff: noqa: E402 - the environment must be set before JAX and transformers are imported

import argparse
import os
import sys
import threading
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.modules.setdefault("torchaudio", None)  # transformers imports it when there; a build for another torch breaks that

import jax
import numpy as np
import torch
import transformers

from spirit_jax.checkpoint import unflatten
from spirit_jax.convert.components import llama as table
from spirit_jax.convert.table import to_jax
from spirit_jax.inference import network
from spirit_jax.inference.engine import Engine, Request, Tables
from spirit_jax.inference.grammar import Grammar
from spirit_jax.models.llama import LlamaConfig
from spirit_jax.parallel.mesh import MeshConfig, make_mesh

VOCABULARY = 32768


def models(hidden: int, layers: int, dtype: str) -> tuple[transformers.LlamaForCausalLM, Engine]:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": hidden, "intermediate_size": hidden * 8 // 3 // 64 * 64}
    sizes |= {"num_hidden_layers": layers, "num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64}
    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, initializer_range=0.1)).eval()
    config = LlamaConfig(**sizes, rms_norm_eps=theirs.config.rms_norm_eps, dtype=dtype, param_dtype=dtype)
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    arrays, _ = to_jax(table.rows(config), tensors, table.shapes(config), "torch")
    params = unflatten({path: np.asarray(array) for path, array in arrays.items()})
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    params = jax.tree.map(lambda array: array.astype(dtype), jax.device_put(params))
    params = network.arrange(config, params, mesh)
    free = Grammar(np.ones((6, VOCABULARY), bool), np.zeros(VOCABULARY, np.int32), np.zeros((6, 7), np.int32))
    return theirs.to(getattr(torch, dtype)), Engine(
        params, config, mesh, Tables(np.zeros((3, VOCABULARY), bool), free), eos_id=-1
    )


def memory_bandwidth(arrays: list[np.ndarray]) -> float:
    """Bytes a second at which all cores together read these arrays, the best of five times."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("hidden", 768), ("layers", 12), ("prompt", 64), ("new", 32), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    theirs, ours = models(options.hidden, options.layers, options.dtype)
    size = sum(parameter.numel() for parameter in theirs.parameters())
    read = [np.asarray(x) for key, tree in ours.params.items() if key != "embed_tokens" for x in jax.tree.leaves(tree)]
    bandwidth = memory_bandwidth(read)
    most = bandwidth / sum(array.nbytes for array in read)
    print(
        f"{size / 1e6:.0f} M parameters, {options.dtype}, prompts of {options.prompt}, {options.new} new, {os.cpu_count()} cores; "
        f"memory is read at {bandwidth / 1e9:.1f} GB/s, all weights {most:.1f} times a second"
    )
    for batch in options.batch:
        ids = np.random.default_rng(batch).integers(5, 30000, (batch, options.prompt)).astype(np.int32)

        def run_ours(new: int, ids=ids) -> np.ndarray:
            requests = [Request(row, new, 2) for row in ids]
            answers = {index: tokens for index, tokens, _ in ours.run(requests, slots=len(ids))}
            return np.stack([answers[index] for index in range(len(ids))])

        def run_theirs(new: int, ids=ids) -> np.ndarray:
            given = torch.tensor(ids).long()
            options = {"do_sample": False, "max_new_tokens": new, "min_new_tokens": new, "pad_token_id": 0}
            with torch.no_grad():
                return theirs.generate(given, attention_mask=torch.ones_like(given), eos_token_id=None, **options)[
                    :, ids.shape[1] :
                ].numpy()

        same = np.mean(run_ours(options.new) == run_theirs(options.new))
        run_ours(1)
        times: dict[tuple[str, int], list[float]] = {}
        for _ in range(options.repeats):
            for name, run in (("ours", run_ours), ("torch", run_theirs)):
                for new in (1, options.new):
                    begin = time.perf_counter()
                    run(new)
                    times.setdefault((name, new), []).append(time.perf_counter() - begin)
        best = {key: min(values) for key, values in times.items()}
        prefill = {name: batch * options.prompt / best[name, 1] for name in ("ours", "torch")}
        decode = {
            name: batch * (options.new - 1) / (best[name, options.new] - best[name, 1]) for name in ("ours", "torch")
        }
        for stage, speed in (("prefill", prefill), ("decode", decode)):
            print(
                f"batch {batch:2} {stage:7}  ours {speed['ours']:8.1f} tok/s   torch {speed['torch']:8.1f} tok/s   "
                f"{speed['ours'] / speed['torch']:.2f} x"
            )
        steps = decode["ours"] / batch
        print(
            f"batch {batch:2} {same:.1%} of the ids are the same; decoding reads weights at {steps / most:.0%} of that speed"
        )


if __name__ == "__main__":
    main()
