"""The train command meets a step that is not finite: each policy's files, messages and exit code.

The run starts from weights with a NaN in the embedding of a token that only one batch holds, as from a damaged file.
"""

import collections
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from spirit_jax import checkpoint, train
from spirit_jax.config import to_dict
from spirit_jax.core.checksums import find_damage
from spirit_jax.core.files import write_file
from spirit_jax.data.config import DataConfig, SourceConfig
from spirit_jax.data.loader import Loader
from spirit_jax.data.records import RecordWriter
from spirit_jax.data.unit_record import UnitRecord
from spirit_jax.models import llama
from spirit_jax.vocabulary import Vocabulary
from tests.support.runs import newest_arrays, newest_step
from tests.support.steps import random_params

STEPS, TAKEN, ROWS, LENGTH = 8, 16, 2, 32  # the fixture looks at batches 1 to TAKEN, more than a run takes
WORDS = "sun moon star rain snow wind leaf tree root stone river sea salt sand fire smoke bird fish wolf bear".split()


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """The arguments of a run without its directory and policy, the step whose batch is poisoned, and that batch."""
    directory = tmp_path_factory.mktemp("poisoned")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 20)) for _ in range(200)]
    vocabulary = Vocabulary.train(texts, 330, "base")
    vocabulary.save(directory / "tokenizer")
    with RecordWriter(directory / "records", "train") as writer:
        for index, text in enumerate(texts):
            writer.write(UnitRecord(str(index), text if index % 25 else f"{text} {index}"))
    model = llama.LlamaConfig(
        vocab_size=vocabulary.padded_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    data = DataConfig({"text": SourceConfig(str(directory / "records"))})
    with Loader(data, vocabulary, LENGTH, ROWS, 0, 0, 1) as loader:
        batches = [next(loader) for _ in range(TAKEN)]
    steps = collections.defaultdict(list)
    for step, batch in enumerate(batches, 1):
        for token in np.unique(batch["inputs"]):
            steps[int(token)].append(step)
    token, bad = next((token, at[0]) for token, at in steps.items() if len(at) == 1 and 4 <= at[0] < STEPS)
    params = random_params(model)
    params["embed_tokens"] = params["embed_tokens"].at[token, 3].set(jnp.nan)
    ocp.save_checkpointables(directory / "weights", {checkpoint.LLM: params})
    write_file(directory / "weights" / checkpoint.CONFIG, json.dumps({"model": to_dict(model), "variant": "base"}))
    values = {"variant": "base", "tokenizer": directory / "tokenizer", "init_from": directory / "weights"}
    values |= {"sequence_length": LENGTH, "global_batch_size": ROWS, "checkpoint.every": 3}
    values |= {f"model.{name}": value for name, value in to_dict(model).items() if value is not None}
    values |= {"data.sources": json.dumps({"text": {"path": str(directory / "records")}})}
    values |= {"loop.steps": STEPS, "loop.log_every": 1, "loop.evaluate_every": 0, "loop.sample_every": 0}
    return [part for name, value in values.items() for part in (f"--{name}", str(value))], bad, batches[bad - 1]


def _run(poisoned, run, policy):
    train.main([*poisoned[0], "--run_directory", str(run), "--faults.on_bad_step", policy])


def _losses(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["train/loss"] for line in lines}


def _assert_recorded(poisoned, run):
    """The record holds the bad step's number, its loss, the state of the data and the batch itself."""
    _, bad, batch = poisoned
    (fault,) = map(json.loads, (run / "faults.jsonl").read_text().splitlines())
    assert (fault["step"], fault["loss"], fault["gradient_norm"]) == (bad, "nan", "nan")
    assert fault["data"]
    with np.load(run / "faults" / f"{bad}-0.npz") as kept:
        for name, value in batch.items():
            np.testing.assert_array_equal(kept[name], value, err_msg=name)


@pytest.fixture(scope="module")
def skipped(poisoned, tmp_path_factory):
    run = tmp_path_factory.mktemp("skip") / "run"
    _run(poisoned, run, "skip")
    return run


def test_skip_leaves_the_bad_update_out(poisoned, skipped):
    _assert_recorded(poisoned, skipped)
    losses = _losses(skipped)
    assert list(losses) == list(range(1, STEPS + 1))
    assert [step for step, loss in losses.items() if loss is None] == [poisoned[1]]  # JSON has no NaN
    weights = newest_arrays(skipped)
    assert [np.isnan(leaf).sum() for leaf in jax.tree.leaves(weights["llm"])].count(0) > 8
    assert np.isnan(weights["llm"]["embed_tokens"]).sum() == 1  # the NaN of the initial weights
    assert newest_step(skipped).name == str(STEPS)


def test_roll_back_repeats_the_steps_since_the_checkpoint_with_later_batches(poisoned, tmp_path, capsys):
    run, bad = tmp_path / "run", poisoned[1]
    _run(poisoned, run, "roll_back")
    back = (bad - 1) // 3 * 3
    assert f"rolling back from step {bad} to {back}; the data continue" in capsys.readouterr().out
    _assert_recorded(poisoned, run)
    losses = _losses(run)
    assert list(losses) == list(range(1, STEPS + 1))
    assert None not in losses.values()
    assert newest_step(run).name == str(STEPS)


def test_stop_ends_the_run_which_another_policy_can_continue(poisoned, skipped, tmp_path, capsys):
    """Exit code 1 and an intact checkpoint; with policy skip, the run then ends like one that always had it."""
    run, bad = tmp_path / "run", poisoned[1]
    with pytest.raises(SystemExit) as end:
        _run(poisoned, run, "stop")
    assert end.value.code == 1
    message = capsys.readouterr().err
    assert f"step {bad} is bad: loss nan, gradient norm nan; its data are in {run}/faults" in message
    _assert_recorded(poisoned, run)
    last = newest_step(run)
    assert int(last.name) == (bad - 1) // 3 * 3
    assert find_damage(last) is None
    _run(poisoned, run, "skip")
    assert f"at step {last.name} of {STEPS}" in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, newest_arrays(run), newest_arrays(skipped))
    assert _losses(run) == _losses(skipped)
