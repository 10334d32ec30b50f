"""Records the loss and gradient norm of every step of the tiny run with many seeds, and asks which steps count as bad.

    python -m benchmarks.bad_steps --run runs/tiny [--seeds 20] [--until 500] [--output TRACES]

RUN is a finished run of configs/tiny.yaml, whose tokenizers and records serve for every seed. Evaluation, samples and
checkpoints are off; `--until 260` records the first 260 of its 500 steps. TRACES is written after each seed, and seeds
that it holds are not repeated. Losses are stored in hundredths, gradient norms in thousandths.
tests/training/test_faults.py reads such a file.
"""

import argparse
import dataclasses
import json
import pathlib

import jax

from spirit_jax import checkpoint, config
from spirit_jax.core.files import read_json, write_file
from spirit_jax.data.loader import Loader
from spirit_jax.parallel.mesh import make_mesh
from spirit_jax.parallel.sharding import BatchLayout
from spirit_jax.run.config import TrainConfig
from spirit_jax.training.language_model import LanguageModelObjective, padded_token_kinds
from spirit_jax.training.optimizer import make_optimizer
from spirit_jax.training.step import TrainStep, UpdateRule
from spirit_jax.vocabulary import Vocabulary


def trace(settings: TrainConfig, vocabulary: Vocabulary, seed: int, until: int) -> dict[str, list[int]]:
    """Train with a seed; the losses, gradient norms and bad steps (numbered from 1) of the first steps."""
    rows = settings.global_batch_size
    layout = BatchLayout(make_mesh(settings.mesh, rows=rows // settings.accumulate), rows, settings.accumulate)
    objective = LanguageModelObjective(settings.model, padded_token_kinds(vocabulary, settings.model.vocab_size))
    rule = UpdateRule(objective, make_optimizer(settings.optimizer, settings.loop.steps), settings.faults.spike_sigmas)
    step = TrainStep(rule, layout)
    state, recorded = step.init(jax.random.key(seed)), []
    loader = Loader(
        settings.data, vocabulary, sequence_length=settings.sequence_length, global_batch_size=rows, seed=seed
    )
    with loader:
        for _ in range(until):
            state, metrics = step.train_step(state, step.put_batch(next(loader)))
            recorded.append([metrics["loss"], metrics["gradient_norm"], metrics["bad"]])
    losses, norms, bad = zip(*jax.device_get(recorded), strict=True)
    return {
        "loss": [round(100 * float(loss)) for loss in losses],
        "norm": [round(1000 * float(norm)) for norm in norms],
        "bad": [number for number, is_bad in enumerate(bad, 1) if is_bad],
    }


def main() -> None:
    """Record the traces and print a line for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--until", type=int, default=500)
    parser.add_argument("--output", default="traces.json")
    options = parser.parse_args()
    run, output = pathlib.Path(options.run), pathlib.Path(options.output)
    stored = config.from_dict(TrainConfig, read_json(run / checkpoint.CONFIG))
    settings = dataclasses.replace(stored, run_directory=str(run)).resolved()
    vocabulary = Vocabulary.load(run / checkpoint.TOKENIZER, settings.variant)
    traces = json.loads(output.read_text()) if output.exists() else {}
    for seed in range(options.seeds):
        if str(seed) not in traces:
            traces[str(seed)] = trace(settings, vocabulary, seed, options.until)
            write_file(output, json.dumps(traces, separators=(",", ":")).replace('},"', '},\n"') + "\n")
        print(f"seed {seed}: bad steps {traces[str(seed)]['bad'] or 'none'}", flush=True)


if __name__ == "__main__":
    main()
