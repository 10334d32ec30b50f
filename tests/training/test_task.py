"""The training loop with a task that has no tokens: a linear regression."""

import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spirit_jax.training.checkpoints import RunCheckpoints
from spirit_jax.training.config import CheckpointConfig, FaultConfig, LoopConfig, OptimizerConfig
from spirit_jax.training.loop import RunOutputs, train
from spirit_jax.training.metrics import MetricsLog
from spirit_jax.training.optimizer import make_optimizer
from spirit_jax.training.step import TrainStep, UpdateRule
from spirit_jax.training.task import Task
from tests.support.steps import one_device

ROWS, FEATURES, STEPS = 8, 4, 60
WEIGHTS = np.arange(1.0, FEATURES + 1)


class LeastSquares:
    """The mean squared error of a linear function."""

    dtype = "float32"

    def init(self, key: jax.Array) -> dict[str, Any]:
        return {"w": jax.random.normal(key, (FEATURES,))}

    def logical_axes(self) -> Any:
        return {"w": ("embed",)}

    def loss_scale(self, batch: dict[str, jax.Array]) -> jax.Array:
        return jnp.asarray(1 / batch["y"].size)

    def loss(self, params: dict[str, Any], batch: dict[str, jax.Array], scale: Any) -> tuple[jax.Array, dict]:
        squares = (batch["x"] @ params["w"] - batch["y"]) ** 2
        loss = squares.sum() * scale
        return loss, {"loss": loss, "squares": squares.sum(), "examples": jnp.asarray(float(squares.size))}

    def evaluate(self, params: dict[str, Any], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return self.loss(params, batch, 1.0)[1]


class SquaresSummary:
    """The mean squared error in the log."""

    unit = "examples"
    flops_per_unit = 6.0 * FEATURES

    def train_values(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        return {"loss": float(metrics["squares"]) / float(metrics["examples"])}

    def source_values(self, sums: Mapping[str, Any]) -> dict[str, float]:
        return self.train_values(sums)

    def evaluation_values(self, sums: Mapping[str, Any]) -> dict[str, float]:
        return self.train_values(sums)

    def progress_line(self, values: Mapping[str, float]) -> str:
        return f"{values['loss']:.3f}, {values['examples_per_second']:.0f} examples/s"

    def evaluation_line(self, values: Mapping[str, float]) -> str:
        return f"{values['loss']:.3f}"


def _batch(seed: int) -> dict[str, np.ndarray]:
    x = np.random.default_rng(seed).normal(size=(ROWS, FEATURES)).astype(np.float32)
    return {"x": x, "y": (x @ WEIGHTS).astype(np.float32)}


class Numbered:
    """Batches numbered from 1; the state is the number of the last one."""

    def __init__(self, number: int = 0):
        self._number = number

    def __next__(self) -> dict[str, np.ndarray]:
        self._number += 1
        return _batch(self._number)

    def state(self) -> dict[str, int]:
        return {"0": self._number}


def _train(directory, steps, accumulate=1):
    """Train, or continue from the newest checkpoint, to a number of steps; the log's lines and the weights."""
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.2, weight_decay=0.0), STEPS)
    step = TrainStep(UpdateRule(LeastSquares(), optimizer), one_device(ROWS, accumulate))
    checkpoints = RunCheckpoints(directory, CheckpointConfig(every=10))
    state, batches = step.init(jax.random.key(0)), Numbered()
    if checkpoints.steps:
        newest = checkpoints.steps[-1]
        state = checkpoints.restore(newest, step.abstract_state)
        batches = Numbered(checkpoints.read_metadata(newest)["data"]["0"])
    task = Task(step, SquaresSummary(), batches, held_out=lambda: {"far": iter([_batch(1000), _batch(1001)])})
    outputs = RunOutputs(directory, MetricsLog(directory, int(state.step)), checkpoints, sample=lambda *_: None)
    config = LoopConfig(steps=steps, log_every=10, evaluate_every=30, sample_every=0)
    state = train(state, task, outputs, config=config, faults=FaultConfig())
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return lines, np.asarray(state.params["w"])


def test_the_loop_trains_evaluates_and_logs_a_task_without_tokens(tmp_path):
    lines, weights = _train(tmp_path, STEPS)
    np.testing.assert_allclose(weights, WEIGHTS, atol=0.3)
    trained = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in trained] == [10, 20, 30, 40, 50, 60]
    assert all(line["train/examples"] == ROWS and line["train/examples_per_second"] > 0 for line in trained)
    evaluated = [line for line in lines if "validation/loss" in line]
    assert [line["step"] for line in evaluated] == [0, 30, 60]
    assert evaluated[-1]["validation/loss"] < 0.01 * evaluated[0]["validation/loss"]


def test_a_task_without_tokens_resumes_and_accumulates(tmp_path):
    _, uninterrupted = _train(tmp_path / "uninterrupted", STEPS)
    _train(tmp_path / "resumed", 25)
    _, resumed = _train(tmp_path / "resumed", STEPS)
    np.testing.assert_array_equal(resumed, uninterrupted)
    _, accumulated = _train(tmp_path / "accumulated", STEPS, accumulate=4)
    np.testing.assert_allclose(accumulated, uninterrupted, rtol=1e-4)  # float32 sums in another order, 60 updates
