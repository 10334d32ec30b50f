"""python -m benchmarks.evaluate [--checkpoint DIR] [--items 64]

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
    print("hypotheses a second, and how many times as many in batches as one at a time (by wall time, by CPU time)")
    for name, (common, own) in kinds.items():
        groups = pairs(lm, options.items, common, own)
        documents = [document for group in groups for document in group]
        wall, cpu = measure(lm, [[[document]] for document in documents])
        batch_wall, batch_cpu = measure(lm, [groups])
        rates = len(documents) / wall, len(documents) / batch_wall
        print(
            f"{name:20} one at a time {rates[0]:8.1f}   batched {rates[1]:8.1f}   "
            f"ratio {wall / batch_wall:.1f} {cpu / batch_cpu:.1f}"
        )


def measure(lm: SpiritLM, calls: list[list[list[np.ndarray]]]) -> tuple[float, float]:
    """Wall and CPU seconds of scoring each call's documents, once everything is compiled."""
    for groups in calls:
        lm.token_scores(groups)
    start, cpu = time.perf_counter(), time.process_time()
    for groups in calls:
        lm.token_scores(groups)
    return time.perf_counter() - start, time.process_time() - cpu


if __name__ == "__main__":
    main()
