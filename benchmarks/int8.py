"""Measure what weights in 8 bits change: log-likelihoods, the most likely tokens, and memory.

    python -m benchmarks.int8 [--checkpoint RUN/checkpoints/STEP] [--hidden 1024] [--layers 16] [--documents 32]
        [--config FILE]

With a step of a training run, held-out documents of each of its sources (text, speech, interleaved) are scored in
float32 and with int8 weights. Then a random model of the given width scores documents that it generated itself, so that
the mean change is its divergence from its own int8 copy; its weights are drawn so that its tokens are neither certain
nor uniform. Finally, the memory of a 7 B model and its cache is computed from shapes alone.
"""

import argparse
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
import yaml

from spirit_jax import SpiritLM
from spirit_jax.config import from_dict
from spirit_jax.core.constants import GIB
from spirit_jax.core.files import read_text
from spirit_jax.data.records import RecordSource
from spirit_jax.data.sequences import Sequencer
from spirit_jax.inference import network, scoring
from spirit_jax.inference.engine import Engine
from spirit_jax.inference.int8 import quantize_leaf
from spirit_jax.inference.prompts import EncodedPrompt
from spirit_jax.inference.sampling_params import SamplingParams
from spirit_jax.inference.scheduler import Request
from spirit_jax.models import llama
from spirit_jax.models.llama import LlamaConfig
from spirit_jax.parallel.mesh import MeshConfig, make_mesh

SEVEN_B = pathlib.Path(__file__).parents[1] / "configs" / "spirit_lm_expressive_7b.yaml"
VOCABULARY = 32768


def compare(name: str, config: LlamaConfig, mesh, full, int8, documents: list[tuple[list[int], int]]) -> None:
    """Print the change of the documents' log-likelihoods, in nats a token, and of their most likely tokens."""
    tokens = sum(len(ids) - start for ids, start in documents)
    before, after = (scoring.log_likelihoods(config, mesh, params, documents) for params in (full, int8))
    count = np.array([len(ids) - start for ids, start in documents])
    same = [
        (
            scoring.logits(config, mesh, full, ids).argmax(-1) == scoring.logits(config, mesh, int8, ids).argmax(-1)
        ).mean()
        for ids in (np.array([ids], np.int32) for ids, _ in documents[:8])
    ]
    print(
        f"{name}: {before.sum() / tokens:.4f} -> {after.sum() / tokens:.4f} nats a token ({tokens} tokens); "
        f"largest change of a document {np.abs((after - before) / count).max():.4f}; "
        f"most likely token the same at {np.mean(same):.1%}"
    )


def trained_model(checkpoint: pathlib.Path, documents: int) -> None:
    """Compare held-out documents of each source of a training run."""
    full, int8 = (SpiritLM.from_pretrained(checkpoint, "float32", int8=asked) for asked in (False, True))
    run = yaml.safe_load(read_text(checkpoint.parents[1] / "config.yaml"))
    for name, source in run["data"]["sources"].items():
        records = RecordSource(source["path"], source["held_out_split"])
        sequencer = Sequencer(full.vocabulary, source["recipe"], run["sequence_length"] + 1)
        texts = [
            ids.tolist()
            for index in range(min(documents, len(records)))
            for ids in sequencer(records[index], np.random.default_rng(index))
        ]
        starts = len(full.vocabulary.prefix) + 1  # after the modality token
        compare(
            f"{checkpoint}, {name}",
            full.config,
            full.mesh,
            full.params,
            int8.params,
            [(ids, starts) for ids in texts],
        )


def random_model(hidden: int, layers: int, documents: int) -> None:
    """Compare documents that a random model generated."""
    heads = hidden // 64
    config = LlamaConfig(VOCABULARY, hidden, hidden * 8 // 3 // 64 * 64, layers, heads, heads, initializer_range=0.05)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    params = jax.jit(lambda: llama.init_params(config, jax.random.key(0)))()
    full = network.arrange(config, params, mesh)
    int8 = network.arrange(config, jax.tree_util.tree_map_with_path(quantize_leaf, params), mesh)
    engine = Engine(full, config, mesh, vocabulary=None)
    first = np.random.default_rng(0).integers(3, VOCABULARY, (documents, 4)).astype(np.int32)
    requests = [
        Request(EncodedPrompt(row), SamplingParams(temperature=1.0, top_k=0, seed=index, max_new_tokens=60))
        for index, row in enumerate(first)
    ]
    answers = dict(engine.run(requests, slots=documents))
    texts = [([*first[index].tolist(), *answers[index].tolist()], 4) for index in range(documents)]
    compare(f"random, {llama.parameter_count(config) / 1e6:.0f} M", config, mesh, full, int8, texts)


def memory(path: pathlib.Path) -> None:
    """Print the memory of a run's model in bfloat16 and int8, and of a row of its cache."""
    config = from_dict(LlamaConfig, yaml.safe_load(read_text(path))["model"] | {"param_dtype": "bfloat16"})
    shapes = llama.abstract_params(config)
    weights = jax.eval_shape(lambda tree: jax.tree_util.tree_map_with_path(quantize_leaf, tree), shapes)
    cache = jax.eval_shape(lambda: llama.init_cache(config, 1, config.max_position_embeddings))
    before, after, row = (
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)) / GIB
        for tree in (shapes, weights, cache)
    )
    print(
        f"{path.name}: weights {before:.2f} GiB in bfloat16, {after:.2f} GiB in int8; the cache takes {row:.2f} GiB "
        f"a row of {config.max_position_embeddings} tokens ({config.dtype}), so 16 GiB hold "
        f"{int((16 - 1 - after) / row)} rows and 1 GiB to work in"
    )


def main() -> None:
    """Run the comparisons that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=pathlib.Path)
    parser.add_argument("--config", type=pathlib.Path, default=SEVEN_B)
    for name, default in (("hidden", 1024), ("layers", 16), ("documents", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    if options.checkpoint:
        trained_model(options.checkpoint, options.documents)
    random_model(options.hidden, options.layers, options.documents)
    memory(options.config)


if __name__ == "__main__":
    main()
