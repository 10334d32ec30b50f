"""The training loop under real faults: NaN in the weights, signals while it waits or evaluates, missing batches."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spirit_jax.core.interrupts import end_at_once
from spirit_jax.models import llama
from spirit_jax.training.checkpoints import RunCheckpoints
from spirit_jax.training.config import CheckpointConfig, FaultConfig, LoopConfig, OptimizerConfig
from spirit_jax.training.faults import TrainingError, detect_bad_step, no_recent_steps
from spirit_jax.training.language_model import LanguageModelSummary
from spirit_jax.training.loop import RunOutputs, train
from spirit_jax.training.metrics import MetricsLog
from spirit_jax.training.task import Task
from tests.support.steps import language_model_step, one_device, random_params

ROWS, LENGTH, VOCABULARY, STEPS = 2, 8, 32, 12
POISON = VOCABULARY - 1  # its embedding will be NaN
KINDS = np.arange(VOCABULARY) % 5
MODEL = llama.LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
)


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
    """A stream of batches numbered from 1. Some are poisoned; from `blocked_from` on, they never come."""

    def __init__(self, after=0, poisoned=(), blocked_from=None):
        self.taken, self.poisoned, self.blocked_from = after, poisoned, blocked_from

    def __next__(self):
        if self.blocked_from is not None and self.taken + 1 >= self.blocked_from:
            threading.Event().wait()
        self.taken += 1
        return _batch(self.taken, self.taken in self.poisoned)

    def state(self):
        return {"0": self.taken}


@pytest.fixture(scope="module")
def train_step():
    optimizer = OptimizerConfig(learning_rate=1e-2)
    return language_model_step(MODEL, one_device(ROWS), KINDS, steps=STEPS, spike_sigmas=6.0, optimizer=optimizer)


def _state(train_step):
    params = random_params(MODEL)
    params["embed_tokens"] = params["embed_tokens"].at[POISON].set(jnp.nan)
    return train_step.start_from(params)


class Run:
    """A run in a directory that saves every fourth step, resumed at `step`."""

    def __init__(self, train_step, directory, batches, policy: Any = "skip", held_out=dict, step=0, **config):
        config = {"steps": STEPS, "log_every": 2, "evaluate_every": 0, "sample_every": 0} | config
        self.config, self.faults = LoopConfig(**config), FaultConfig(on_bad_step=policy)
        self.task = Task(train_step, LanguageModelSummary(KINDS, flops_per_unit=1.0), batches, held_out)
        self.checkpoints = RunCheckpoints(directory, CheckpointConfig(every=4))
        self.outputs = RunOutputs(directory, MetricsLog(directory, step), self.checkpoints, sample=lambda *_: None)

    def train(self, state):
        return train(state, self.task, self.outputs, config=self.config, faults=self.faults)


def _same(params, others):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), jax.device_get(others))


def _apply(train_step, numbers):
    state = _state(train_step)
    for number in numbers:
        state, _ = train_step.train_step(state, _batch(number))
    return state.params


def test_bad_steps_are_skipped_and_recorded(train_step, tmp_path, capsys):
    """The weights equal those of a run without the bad batches; the batches are on disk."""
    state = Run(train_step, tmp_path, Numbered(poisoned=(3, 6, 7))).train(_state(train_step))
    assert int(state.step) == STEPS
    _same(state.params, _apply(train_step, (1, 2, 4, 5, 8, 9, 10, 11, 12)))
    faults = [json.loads(line) for line in (tmp_path / "faults.jsonl").read_text().splitlines()]
    # the state before batch 3 is after batch 2
    assert [(fault["step"], fault["loss"], fault["data"]) for fault in faults] == [
        (n, "nan", [{"0": n - 1}]) for n in (3, 6, 7)
    ]
    kept = np.load(tmp_path / "faults" / "6-0.npz")
    np.testing.assert_array_equal(kept["inputs"], _batch(6, poisoned=True)["inputs"])


def test_ten_bad_steps_in_a_row_stop_the_run(train_step, tmp_path):
    with pytest.raises(
        TrainingError, match="step 11 is bad: loss nan.*so were the 9 before it; the last checkpoint is intact"
    ):
        Run(train_step, tmp_path, Numbered(poisoned=range(2, 50))).train(_state(train_step))


def test_policy_stop_ends_the_run_at_a_bad_step(train_step, tmp_path):
    with pytest.raises(TrainingError, match=f"step 6 is bad: loss nan, .*its data are in {tmp_path}/faults"):
        Run(train_step, tmp_path, Numbered(poisoned=(6,)), "stop").train(_state(train_step))
    assert RunCheckpoints(tmp_path, CheckpointConfig()).steps == [4]


def test_policy_roll_back_returns_to_the_last_checkpoint(train_step, tmp_path):
    """Back to step 8: the batches 9 and 10, taken before the bad step was found, are not used, nor in the log."""
    run = Run(train_step, tmp_path, Numbered(poisoned=(9,)), "roll_back", log_every=10, steps=8)
    state = run.train(_state(train_step))
    assert int(state.step) == 8  # no bad step so far
    run = Run(train_step, tmp_path, Numbered(after=8, poisoned=(9,)), "roll_back", step=8)
    state = run.train(run.checkpoints.restore(8, train_step.abstract_state))
    assert int(state.step) == STEPS
    # 9 is bad, which the check after 10 finds
    _same(state.params, _apply(train_step, (*range(1, 9), 11, 12, 13, 14)))
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [8, 10, 12]
    assert RunCheckpoints(tmp_path, CheckpointConfig()).read_metadata(12)["data"] == {"0": 14}


def test_rolling_back_without_a_checkpoint_ends_the_run(train_step, tmp_path):
    with pytest.raises(TrainingError, match="a step up to 2 is bad .* there is no checkpoint to roll back to"):
        Run(train_step, tmp_path, Numbered(poisoned=(1,)), "roll_back").train(_state(train_step))


def test_a_spike_is_distinguished_from_noise():
    rng = np.random.default_rng(0)
    recent, step = no_recent_steps(), jax.jit(detect_bad_step, static_argnums=3)
    for loss in rng.normal(3, 0.2, 200):
        bad, recent = step(recent, loss, 1.0 + rng.normal(0, 0.05), 6.0)
        assert not bad
    kept = np.asarray(recent["values"][0])
    assert not step(recent, kept.mean() + 5 * kept.std(), 1.0, 6.0)[0]
    assert step(recent, kept.mean() + 6.5 * kept.std(), 1.0, 6.0)[0]
    assert step(recent, 3.0, 5.0, 6.0)[0]
    assert not step(recent, 3.0, 5.0, 0.0)[0]
    assert step(recent, np.inf, 1.0, 0.0)[0]
    assert int(step(recent, np.nan, 1.0, 0.0)[1]["count"]) == 200  # later steps are not compared with it
    for _ in range(10):  # a lasting change is accepted
        bad, recent = step(recent, 6.0, 1.0, 6.0)
    assert not bad


def test_a_signal_while_waiting_for_data_saves_and_stops(train_step, tmp_path):
    """The batch of step 6 never comes; SIGTERM saves step 5, after which the stream continues with batch 6."""
    run = Run(train_step, tmp_path, Numbered(blocked_from=6), log_every=1)

    def preempt():
        while '"step": 5' not in (tmp_path / "metrics.jsonl").read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=preempt, daemon=True).start()
    assert int(run.train(_state(train_step)).step) == 5
    saved = RunCheckpoints(tmp_path, CheckpointConfig())
    assert saved.steps == [4, 5]
    assert saved.read_metadata(5)["data"] == {"0": 5}


@pytest.fixture
def terminal():
    """Ctrl-C as in a terminal; it is ignored if a shell has started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_a_run_that_has_done_no_step_and_saves_one_that_has(terminal, train_step, tmp_path):
    """Inside the command's block, whose watching thread must leave the first Ctrl-C after a step to the loop."""
    with pytest.raises(KeyboardInterrupt):
        _interrupted_run(train_step, tmp_path / "early", blocked_from=1)
    with end_at_once("prog", "must not end here"):
        state = _interrupted_run(train_step, tmp_path / "late", blocked_from=4)
    assert int(state.step) == 3
    assert RunCheckpoints(tmp_path / "late", CheckpointConfig()).steps == [3]


def _interrupted_run(train_step, directory, blocked_from):
    """Train until the batch that never comes, and interrupt the process there."""
    run = Run(train_step, directory, Numbered(blocked_from=blocked_from), log_every=1)

    log, state, ended = directory / "metrics.jsonl", _state(train_step), threading.Event()

    def interrupt():
        while blocked_from > 1 and not (log.exists() and f'"step": {blocked_from - 1}' in log.read_text()):
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)
        # Python drops a KeyboardInterrupt that is raised while it collects garbage, so another one may be needed. It
        # must not come while the run ends, which takes five seconds or more: it could end the test session.
        while blocked_from == 1 and not ended.wait(30):
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        return run.train(state)
    finally:
        ended.set()


def test_an_evaluation_that_a_signal_ends_is_repeated(train_step, tmp_path):
    """The step of the evaluation is saved; the resumed run logs what an uninterrupted run logs."""

    def held_out(break_at=None):
        for index in range(4):
            if index == break_at:
                os.kill(os.getpid(), signal.SIGTERM)
            yield {**_batch(100 + index)}

    breaks = iter((None, 2, None, None))
    config = {"held_out": lambda: {"some": held_out(next(breaks))}, "evaluate_every": 6, "steps": 8}
    assert int(Run(train_step, tmp_path / "broken", Numbered(), **config).train(_state(train_step)).step) == 6
    saved = RunCheckpoints(tmp_path / "broken", CheckpointConfig())
    resumed = Run(train_step, tmp_path / "broken", Numbered(after=6), **config, step=6)
    resumed.train(saved.restore(6, train_step.abstract_state))
    breaks = iter((None,) * 3)
    Run(train_step, tmp_path / "whole", Numbered(), **config).train(_state(train_step))
    logs = []
    for name in ("broken", "whole"):
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        logs.append([{key: value for key, value in line.items() if key == "step" or "loss" in key} for line in lines])
    by_step = [sorted(log, key=lambda line: (line["step"], *line)) for log in logs]
    assert by_step[0] == by_step[1]
    assert [line["step"] for line in logs[0] if "validation/loss" in line] == [0, 6, 8]


def test_watchdog_kills_a_hung_run():
    code = (
        "import time\nfrom spirit_jax.training.watchdog import Watchdog\n"
        "with Watchdog(1) as watchdog:\n    watchdog.alive('in step 7')\n    time.sleep(60)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert result.returncode == 1
    assert "process 0 of 1: in step 7 for 1 s, more than faults.hang_timeout; ending the job" in result.stderr
    assert "time.sleep" in result.stderr or "line 5" in result.stderr  # the stack of the hung thread


def test_tasks_are_measured_and_logged_with_every_evaluation(train_step, tmp_path):
    run = Run(train_step, tmp_path, Numbered(), evaluate_every=6, evaluate_tasks=["mini_sblimp:T"])
    measured = []
    outputs = dataclasses.replace(run.outputs, measure=lambda params, step: measured.append(step) or {"x/T": step})
    train(_state(train_step), run.task, outputs, config=run.config, faults=run.faults)
    assert measured == [0, 6, 12]
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["evaluation/x/T"] for record in records if "evaluation/x/T" in record] == measured


@pytest.mark.parametrize("is_given_up", [False, True])
def test_a_resumed_run_measures_only_the_tasks_that_were_given_up(is_given_up, train_step, tmp_path):
    """Without held-out data, the log tells by the tasks alone whether the last step was evaluated."""
    measured, log = [], tmp_path / "metrics.jsonl"
    for step in (0, STEPS):
        run = Run(train_step, tmp_path, Numbered(), step=step, evaluate_every=STEPS, evaluate_tasks=["mini_sblimp:T"])
        outputs = dataclasses.replace(run.outputs, measure=lambda _, step: measured.append(step) or {"x/T": step})
        state = run.checkpoints.restore(step, train_step.abstract_state) if step else _state(train_step)
        train(state, run.task, outputs, config=run.config, faults=run.faults)
        if is_given_up and not step:
            log.write_text(
                "".join(line for line in log.read_text().splitlines(True) if '"evaluation/x/T": 12' not in line)
            )
    assert measured == ([0, STEPS, STEPS] if is_given_up else [0, STEPS])
    assert log.read_text().count('"evaluation/x/T": 12') == 1
