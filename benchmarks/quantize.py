"""Measure what weights in 8 and 4 bits change: log-likelihoods by kind of token, speed, and memory.

    python -m benchmarks.quantize [--checkpoint RUN/checkpoints/STEP] [--documents 32] [--hidden 1024] [--layers 8]
        [--new 32] [--config FILE] [--json FILE]

With a step of a training run, held-out documents of each of its sources are scored with weights in float32, 8 and
4 bits. A random model of the given width then decodes one prompt. Finally, the memory of a 7 B model and its cache is
computed from shapes alone.
"""

import argparse
import functools
import os
import pathlib
import time
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import yaml

from benchmarks import report
from spirit_jax import SpiritLM
from spirit_jax.config import from_dict
from spirit_jax.core.constants import GIB
from spirit_jax.core.files import read_text
from spirit_jax.data.records import RecordSource
from spirit_jax.data.sequences import Sequencer
from spirit_jax.inference import network
from spirit_jax.inference.engine import Engine
from spirit_jax.inference.prompts import EncodedPrompt
from spirit_jax.inference.sampling_params import SamplingParams
from spirit_jax.inference.scheduler import Request
from spirit_jax.inference.scoring import token_scores
from spirit_jax.models import llama, quantized
from spirit_jax.models.llama import LlamaConfig, Params
from spirit_jax.models.llama_config import Quantization
from spirit_jax.parallel.mesh import MeshConfig, make_mesh
from spirit_jax.vocabulary import TOKEN_KINDS

SEVEN_B = pathlib.Path(__file__).parents[1] / "configs" / "spirit_lm_expressive_7b.yaml"
VOCABULARY = 32768
KINDS: tuple[Quantization | None, ...] = (None, "int8", "int4")
NAMES = ("floats", "int8", "int4")
"""Names of `KINDS` in the JSON."""


def held_out_documents(checkpoint: pathlib.Path, lm: SpiritLM, count: int) -> list[np.ndarray]:
    """Return the ids of up to `count` held-out documents of each source of a training run."""
    run = yaml.safe_load(read_text(checkpoint.parents[1] / "config.yaml"))
    documents = []
    for source in run["data"]["sources"].values():
        path = pathlib.Path(source["path"].replace("{run}", run["run_directory"]))
        records = RecordSource(path, source["held_out_split"])
        sequencer = Sequencer(lm.vocabulary, source["recipe"], run["sequence_length"] + 1)
        for index in range(min(count, len(records))):
            documents += [np.asarray(ids) for ids in sequencer(records[index], np.random.default_rng(index))]
    return documents


def trained_model(checkpoint: pathlib.Path, count: int) -> list[dict[str, Any]]:
    """Print and return the nats a token of each kind of token, and how often the most likely token is the right one."""
    models = {kind: SpiritLM.from_pretrained(checkpoint, "float32", quantize=kind) for kind in KINDS}
    lm = models[None]
    documents = held_out_documents(checkpoint, lm, count)
    start = len(lm.vocabulary.prefix) + 1  # after the modality token
    kinds = np.concatenate([lm.vocabulary.token_kinds[ids[start:]] for ids in documents])
    print(f"{checkpoint}: nats a token of {len(documents)} held-out documents, and the change\n")
    print("| kind | tokens | float32 | int8 | int4 |\n|---|---|---|---|---|")
    nats = {}
    for kind, model in models.items():
        groups = [[ids] for ids in documents]
        scores = token_scores(model.config, model.mesh, model.params, model.vocabulary, groups)
        nats[kind] = -np.concatenate([group[0].all[start:] for group in scores])
    rows = []
    for name, chosen in [
        *((name, kinds == index) for index, name in enumerate(TOKEN_KINDS)),
        ("all", np.ones(len(kinds), bool)),
    ]:
        if chosen.any():
            full, *others = values = [float(nats[kind][chosen].mean()) for kind in KINDS]
            rows.append({"kind": name, "tokens": int(chosen.sum()), **dict(zip(NAMES, values, strict=True))})
            changes = " | ".join(f"{other:.4f} ({other - full:+.4f})" for other in others)
            print(f"| {name} | {chosen.sum()} | {full:.4f} | {changes} |")
    return rows


def random_model(hidden: int, layers: int, new: int) -> dict[str, Any]:
    """Print and return how many tokens a second each form decodes at batch 1."""
    heads = hidden // 64
    config = LlamaConfig(VOCABULARY, hidden, hidden * 8 // 3 // 64 * 64, layers, heads, heads, initializer_range=0.05)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    params = jax.jit(lambda: llama.init_params(config, jax.random.key(0)))()
    print(f"\nrandom model of {llama.parameter_count(config) / 1e6:.0f} M, float32, batch 1, {os.cpu_count()} cores\n")
    print("| weights | decoded tokens a second |\n|---|---|")
    speeds = {}
    for name, kind in zip(NAMES, KINDS, strict=True):
        own = params if kind is None else quantized.quantize_tree(params, kind)
        speeds[name] = decoded_per_second(network.arrange(config, own, mesh), config, mesh, new)
        print(f"| {kind or 'float32'} | {speeds[name]:.1f} |", flush=True)
    return {"parameters": llama.parameter_count(config), "tokens_per_second": speeds}


def decoded_per_second(params: Params, config: LlamaConfig, mesh: jax.sharding.Mesh, new: int) -> float:
    """Return the tokens a second after the first, the best of three times."""
    engine = Engine(params, config, mesh, vocabulary=None)
    prompt = EncodedPrompt(np.random.default_rng(0).integers(3, VOCABULARY, 16).astype(np.int32))

    def seconds(count: int) -> float:
        begin = time.perf_counter()
        list(engine.run([Request(prompt, SamplingParams(max_new_tokens=count))], slots=1))
        return time.perf_counter() - begin

    for count in (1, new):
        seconds(count)  # compiles
    return (new - 1) / (min(seconds(new) for _ in range(3)) - min(seconds(1) for _ in range(3)))


def memory(path: pathlib.Path) -> list[dict[str, Any]]:
    """Print and return the memory of a run's model in each form, and how many rows of its cache 16 GiB hold."""
    config = from_dict(LlamaConfig, yaml.safe_load(read_text(path))["model"] | {"param_dtype": "bfloat16"})
    shapes = llama.abstract_params(config)
    cache = jax.eval_shape(lambda: llama.init_cache(config, 1, config.max_position_embeddings))
    row = size_of(cache)
    print(f"\n{path.name}; the cache of {config.max_position_embeddings} tokens takes {row / GIB:.2f} GiB a row\n")
    print("| weights | GB | GiB | rows beside them in 16 GiB, with 1 GiB to work in |\n|---|---|---|---|")
    rows = []
    for name, kind in zip(NAMES, KINDS, strict=True):
        own = shapes if kind is None else jax.eval_shape(functools.partial(quantized.quantize_tree, kind=kind), shapes)
        size = size_of(own)
        print(f"| {kind or 'bfloat16'} | {size / 1e9:.2f} | {size / GIB:.2f} | {int((15 * GIB - size) / row)} |")
        rows.append({"weights": name, "bytes": size, "rows": int((15 * GIB - size) / row)})
    return rows


def size_of(shapes: object) -> int:
    """Return the bytes of arrays of these shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def main() -> None:
    """Run the comparisons that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=pathlib.Path)
    parser.add_argument("--config", type=pathlib.Path, default=SEVEN_B)
    for name, default in (("documents", 32), ("hidden", 1024), ("layers", 8), ("new", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    report.add_option(parser)
    options = parser.parse_args()
    where = report.machine()
    figures: dict[str, Any] = {"memory": memory(options.config)}
    if options.checkpoint:
        figures["nats"] = trained_model(options.checkpoint, options.documents)
    figures["decoding"] = random_model(options.hidden, options.layers, options.new)
    report.write(options.json, where, figures)


if __name__ == "__main__":
    main()
