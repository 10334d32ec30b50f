"""The loop under real faults: NaN in the weights, signals while it waits and evaluates, batches that never come."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spirit_jax.models import llama
from spirit_jax.parallel.mesh import MeshConfig, make_mesh
from spirit_jax.training.checkpoints import CheckpointConfig, RunCheckpoints
from spirit_jax.training.faults import FaultConfig, judge, no_recent
from spirit_jax.training.loop import Loop, LoopConfig, TrainingError
from spirit_jax.training.metrics import MetricsLog
from spirit_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from spirit_jax.training.step import make_program

ROWS, LENGTH, VOCABULARY, STEPS = 2, 8, 32, 12
POISON = VOCABULARY - 1  # its embedding will be NaN
KINDS = np.arange(VOCABULARY) % 5
MODEL = llama.LlamaConfig(
    vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1
)  # fmt: skip
MESH = make_mesh(MeshConfig(), jax.devices()[:1])


def _batch(number, poisoned=False):
    tokens = np.random.default_rng(number).integers(0, POISON, (ROWS, LENGTH + 1)).astype(np.int32)
    if poisoned:
        tokens[0, 3] = POISON
    return {
        "inputs": tokens[:, :-1],
        "targets": np.minimum(tokens[:, 1:], POISON - 1),
        "segment_ids": np.ones((ROWS, LENGTH), np.int32),
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
        "loss_mask": np.ones((ROWS, LENGTH), bool),
    }


class Numbered:
    """Batch n of a stream, counted from 1; some of them poisoned, and from one on they do not come."""

    def __init__(self, after=0, poisoned=(), blocked_from=None):
        self.taken, self.poisoned, self.blocked_from = after, poisoned, blocked_from

    def __iter__(self):
        return self

    def __next__(self):
        if self.blocked_from is not None and self.taken + 1 >= self.blocked_from:
            threading.Event().wait()
        self.taken += 1
        return _batch(self.taken, self.taken in self.poisoned)

    def state(self):
        return {"0": self.taken}


@pytest.fixture(scope="module")
def program():
    config = OptimizerConfig(learning_rate=1e-2)
    optimizer, schedule = make_optimizer(config, STEPS), make_schedule(config, STEPS)
    return make_program(MODEL, optimizer, schedule, MESH, rows=ROWS, token_kinds=KINDS, spike_sigmas=6.0)


def _state(program):
    params = llama.init_params(MODEL, jax.random.key(0))
    params["embed_tokens"] = params["embed_tokens"].at[POISON].set(jnp.nan)
    return program.start_from(params)


def _loop(program, directory, batches, policy="skip", held_out=dict, step=0, **config):
    config = {"steps": STEPS, "log_every": 2, "evaluate_every": 0, "sample_every": 0} | config
    return Loop(
        config=LoopConfig(**config), faults=FaultConfig(on_bad_step=policy), program=program, mesh=MESH, rows=ROWS, batches=batches,
        held_out=held_out, log=MetricsLog(directory, step), checkpoints=RunCheckpoints(directory, CheckpointConfig()),
        checkpoint_every=4, extra={}, sample=lambda *_: None, flops_per_token=1.0, token_kinds=KINDS, directory=directory,
    )  # fmt: skip


def _same(params, others):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), jax.device_get(others))


def _apply(program, numbers):
    state = _state(program)
    for number in numbers:
        state, _ = program.train_step(state, _batch(number))
    return state.params


def test_bad_steps_are_skipped_and_kept(program, tmp_path, capsys):
    """The weights are those of a run that never had the bad batches; what they were is on disk."""
    state = _loop(program, tmp_path, Numbered(poisoned=(3, 6, 7))).run(_state(program))
    assert int(state.step) == STEPS
    _same(state.params, _apply(program, (1, 2, 4, 5, 8, 9, 10, 11, 12)))
    faults = [json.loads(line) for line in (tmp_path / "faults.jsonl").read_text().splitlines()]
    # the state before batch 3 is after batch 2
    assert [(fault["step"], fault["loss"], fault["data"]) for fault in faults] == [
        (n, "nan", [{"0": n - 1}]) for n in (3, 6, 7)
    ]
    kept = np.load(tmp_path / "faults" / "6-0.npz")
    np.testing.assert_array_equal(kept["inputs"], _batch(6, poisoned=True)["inputs"])


def test_bad_steps_without_end_stop_the_run(program, tmp_path):
    with pytest.raises(
        TrainingError, match="step 11 is bad: loss nan.*so were the 9 before it; the last checkpoint stands"
    ):
        _loop(program, tmp_path, Numbered(poisoned=range(2, 50))).run(_state(program))


def test_policy_stop(program, tmp_path):
    with pytest.raises(TrainingError, match=f"step 6 is bad: loss nan, .*its data are in {tmp_path}/faults"):
        _loop(program, tmp_path, Numbered(poisoned=(6,)), "stop").run(_state(program))
    assert RunCheckpoints(tmp_path, CheckpointConfig()).steps == [4]


def test_policy_roll_back(program, tmp_path):
    """Back to step 4; the batches 5 to 10, looked at by then, are not used, and the log reads as if it had gone so at once."""
    loop = _loop(program, tmp_path, Numbered(poisoned=(9,)), "roll_back", log_every=10, steps=8)
    loop.checkpoint_every = 4
    state = loop.run(_state(program))
    assert int(state.step) == 8  # nothing bad up to there
    loop = _loop(program, tmp_path, Numbered(after=8, poisoned=(9,)), "roll_back", step=8)
    state = loop.run(loop.checkpoints.restore(8, program.abstract_state))
    assert int(state.step) == STEPS
    # 9 is bad, seen after 10
    _same(state.params, _apply(program, (*range(1, 9), 11, 12, 13, 14)))
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [8, 10, 12]
    assert RunCheckpoints(tmp_path, CheckpointConfig()).read_extra(12)["data"] == {"0": 14}


def test_nothing_to_roll_back_to(program, tmp_path):
    with pytest.raises(TrainingError, match="a step up to 2 is bad .* there is no checkpoint to roll back to"):
        _loop(program, tmp_path, Numbered(poisoned=(1,)), "roll_back").run(_state(program))


def test_a_spike_is_told_from_noise():
    rng = np.random.default_rng(0)
    recent, step = no_recent(), jax.jit(judge, static_argnums=3)
    for loss in rng.normal(3, 0.1, 200):
        bad, recent = step(recent, loss, 1.0 + rng.normal(0, 0.05), 6.0)
        assert not bad
    kept = np.asarray(recent["values"][0])
    threshold = kept.mean() + 6 * kept.std()
    assert not step(recent, threshold - 0.01, 1.0, 6.0)[0]
    assert step(recent, threshold + 0.01, 1.0, 6.0)[0]
    assert step(recent, 3.0, 5.0, 6.0)[0]
    assert not step(recent, 3.0, 5.0, 0.0)[0]
    assert step(recent, np.inf, 1.0, 0.0)[0]
    assert int(step(recent, np.nan, 1.0, 0.0)[1]["count"]) == 200  # what is not finite is not compared with
    for _ in range(10):  # a lasting change is accepted
        bad, recent = step(recent, 6.0, 1.0, 6.0)
    assert not bad


def test_a_signal_while_waiting_for_data(program, tmp_path):
    """The batch of step 6 never comes; SIGTERM saves step 5, and the stream goes on with batch 6."""
    loop = _loop(program, tmp_path, Numbered(blocked_from=6), log_every=1)

    def preempt():
        while '"step": 5' not in (tmp_path / "metrics.jsonl").read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=preempt, daemon=True).start()
    assert int(loop.run(_state(program)).step) == 5
    saved = RunCheckpoints(tmp_path, CheckpointConfig())
    assert saved.steps == [4, 5]
    assert saved.read_extra(5)["data"] == {"0": 5}


def test_a_signal_during_evaluation(program, tmp_path):
    """The evaluation is given up, its step saved; the resumed run makes up for it and logs what an unbroken one does."""

    def held_out(break_at=None):
        for index in range(4):
            if index == break_at:
                os.kill(os.getpid(), signal.SIGTERM)
            yield {**_batch(100 + index)}

    breaks = iter((None, 2, None, None))
    config = {"held_out": lambda: {"some": held_out(next(breaks))}, "evaluate_every": 6, "steps": 8}
    assert int(_loop(program, tmp_path / "broken", Numbered(), **config).run(_state(program)).step) == 6
    saved = RunCheckpoints(tmp_path / "broken", CheckpointConfig())
    resumed = _loop(program, tmp_path / "broken", Numbered(after=6), **config, step=6)
    resumed.run(saved.restore(6, program.abstract_state))
    breaks = iter((None,) * 3)
    _loop(program, tmp_path / "whole", Numbered(), **config).run(_state(program))
    logs = []
    for name in ("broken", "whole"):
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        logs.append([{key: value for key, value in line.items() if key == "step" or "loss" in key} for line in lines])
    by_step = [sorted(log, key=lambda line: (line["step"], *line)) for log in logs]
    assert by_step[0] == by_step[1]
    assert [line["step"] for line in logs[0] if "validation/loss" in line] == [0, 6, 8]


def test_what_hangs_ends_with_a_message():
    code = (
        "import time\nfrom spirit_jax.training.watchdog import Watchdog\n"
        "with Watchdog(1) as watchdog:\n    watchdog.alive('in step 7')\n    time.sleep(60)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert result.returncode == 1
    assert "process 0 of 1: in step 7 for 1 s, more than faults.hang_timeout; ending the job" in result.stderr
    assert "time.sleep" in result.stderr or "line 5" in result.stderr  # where it hung
