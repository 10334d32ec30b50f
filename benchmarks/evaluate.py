"""python benchmarks/evaluate.py [--checkpoint DIR] [--items 64]

Compares scoring of hypotheses in batches with scoring them one at a time, on the model of a checkpoint or on a random
one of 20 M parameters. The hypotheses are random: pairs of endings of one story with a common beginning, and pairs
without.
"""

import argparse
import time

import jax
import numpy as np

from spirit_jax import SpiritLM
from spirit_jax.models import llama
from spirit_jax.models.llama import LlamaConfig
from spirit_jax.vocabulary import Vocabulary


def random_model() -> SpiritLM:
    """A Llama of 20 M parameters with random weights."""
    vocabulary = Vocabulary.train(["a small vocabulary is enough for random ids"] * 50, size=290)
    config = LlamaConfig(
        vocab_size=vocabulary.padded_size,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    return SpiritLM(llama.init_params(config, jax.random.key(0)), config, vocabulary)


def pairs(lm: SpiritLM, items: int, common: tuple[int, int], own: tuple[int, int]) -> list[list[np.ndarray]]:
    """Pairs of documents with a common beginning; lengths are drawn from ranges."""
    rng = np.random.default_rng(0)

    def draw(length: tuple[int, int]) -> np.ndarray:
        return rng.integers(3, lm.vocabulary.size, rng.integers(*length)).astype(np.int32)

    return [[np.concatenate([head, draw(own)]) for _ in range(2)] for head in (draw(common) for _ in range(items))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="checkpoint directory or step of a run")
    parser.add_argument("--items", type=int, default=64, help="pairs of hypotheses of each kind")
    options = parser.parse_args()
    lm = SpiritLM.from_pretrained(options.checkpoint) if options.checkpoint else random_model()
    kinds = {"words": ((3, 4), (8, 30)), "endings of stories": ((100, 180), (20, 50)), "options": ((200, 250), (1, 2))}
    print("hypotheses a second")
    for name, (common, own) in kinds.items():
        groups = pairs(lm, options.items, common, own)
        single = [[document] for group in groups for document in group]
        rates = []
        for batches in ([[group] for group in single], [groups]):
            for batch in batches:  # compiles
                lm.token_scores(batch)
            start = time.perf_counter()
            for batch in batches:
                lm.token_scores(batch)
            rates.append(len(single) / (time.perf_counter() - start))
        print(f"{name:20} one at a time {rates[0]:8.1f}   batched {rates[1]:8.1f}   ratio {rates[1] / rates[0]:.1f}")


if __name__ == "__main__":
    main()
