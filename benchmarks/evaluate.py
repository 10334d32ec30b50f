"""python -m benchmarks.evaluate [--checkpoint DIR] [--items 64] [--json FILE]

Compares scoring of hypotheses in batches with scoring them one at a time, on the model of a checkpoint or on a random
one of 20 M parameters. The hypotheses are random ids in the lengths of three tasks: pairs of words, pairs of stories
that differ in their ending, and questions with four answers after the same examples, as MMLU has them.
"""

import argparse
import dataclasses
import time

import jax
import numpy as np

from benchmarks import report
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


@dataclasses.dataclass(frozen=True)
class Kind:
    """Lengths of a task's documents; ranges are drawn from."""

    hypotheses: int
    """Documents of an item."""
    own: tuple[int, int]
    """Tokens of one document alone."""
    common: tuple[int, int]
    """Tokens that the documents of an item begin with."""
    examples: int = 0
    """Tokens that all documents begin with."""
    share: float = 1.0
    """Part of `--items` that is scored."""


KINDS = {
    "words": Kind(2, own=(8, 30), common=(3, 4)),
    "stories": Kind(2, own=(20, 50), common=(100, 180)),
    "MMLU": Kind(4, own=(1, 2), common=(60, 120), examples=500, share=0.25),
}


def documents(lm: SpiritLM, kind: Kind, items: int) -> list[list[np.ndarray]]:
    """Random documents of a kind, a group for each item."""
    rng = np.random.default_rng(0)

    def draw(low: int, high: int) -> np.ndarray:
        return rng.integers(3, lm.vocabulary.size, rng.integers(low, high)).astype(np.int32)

    examples = draw(kind.examples, kind.examples + 1)
    heads = [np.concatenate([examples, draw(*kind.common)]) for _ in range(max(round(items * kind.share), 1))]
    return [[np.concatenate([head, draw(*kind.own)]) for _ in range(kind.hypotheses)] for head in heads]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="checkpoint directory or step of a run")
    parser.add_argument("--items", type=int, default=64, help="items of each task; a quarter of them for MMLU")
    report.add_option(parser)
    options = parser.parse_args()
    where, figures = report.machine(), []
    lm = SpiritLM.from_pretrained(options.checkpoint) if options.checkpoint else random_model()
    print("hypotheses a second, and how many times as many in batches as one at a time (by wall time, by CPU time)")
    for name, kind in KINDS.items():
        groups = documents(lm, kind, options.items)
        alone = [document for group in groups for document in group]
        wall, cpu = measure(lm, [[[document]] for document in alone])
        batch_wall, batch_cpu = measure(lm, [groups])
        rates = len(alone) / wall, len(alone) / batch_wall
        print(
            f"{name:8} one at a time {rates[0]:8.1f}   batched {rates[1]:8.1f}   "
            f"ratio {wall / batch_wall:.1f} {cpu / batch_cpu:.1f}"
        )
        figures.append(
            {
                "task": name,
                "one_at_a_time": rates[0],
                "batched": rates[1],
                "ratio": wall / batch_wall,
                "ratio_cpu_seconds": cpu / batch_cpu,
            }
        )
    report.write(options.json, where, figures)


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
