"""Applies the policy for bad steps on the host: finds, records and counts them, and returns to a checkpoint."""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from tqdm import tqdm

from spirit_jax.core.files import naming
from spirit_jax.data.packing import HostBatch
from spirit_jax.parallel.processes import gather_json, is_primary, report
from spirit_jax.training.checkpoints import RunCheckpoints
from spirit_jax.training.config import FaultConfig
from spirit_jax.training.faults import TrainingError
from spirit_jax.training.state import Metrics, TrainState

MAX_CONSECUTIVE_BAD_STEPS = 10
"""Bad steps in a row, or returns to the same checkpoint, that end a run."""


@dataclasses.dataclass(frozen=True)
class PendingStep:
    """A step that was started and not checked yet."""

    step: int
    batch: HostBatch
    streams: dict[str, Any]
    """State of this process's data streams before the batch."""
    metrics: Metrics


class BadStepPolicy:
    """Checks steps some time after they were started, so that the devices always have work, and acts on bad ones.

    Args:
        config: the policy.
        directory: the run directory; bad steps are recorded in it.
        checkpoints: those of the run.
    """

    def __init__(self, config: FaultConfig, directory: str | os.PathLike, checkpoints: RunCheckpoints):
        self._config, self._directory, self._checkpoints = config, pathlib.Path(directory), checkpoints
        self._pending: list[PendingStep] = []
        self._consecutive = 0
        self._returns: collections.Counter[int] = collections.Counter()

    def add(self, step: PendingStep) -> None:
        """Note a step that was started."""
        self._pending.append(step)

    def check_pending_steps(self) -> bool:
        """Check all steps since the last check, record bad ones, and return whether to roll back.

        Raises:
            TrainingError: the policy is to stop, or too many steps in a row are bad.
        """
        pending, self._pending = self._pending, []
        found = False
        for each in pending:
            if not bool(each.metrics["bad"]):
                self._consecutive = 0
                continue
            found = True
            self._consecutive += 1
            streams = gather_json(each.streams)
            record_bad_step(self._directory, each.step, metrics=each.metrics, batch=each.batch, streams=streams)
            loss, norm = float(each.metrics["loss"]), float(each.metrics["gradient_norm"])
            description = f"step {each.step} is bad: loss {loss:.4g}, gradient norm {norm:.4g}"
            kept = f"its data are in {self._directory}/faults"
            if self._config.on_bad_step == "stop":
                self._stop(f"{description}; {kept}; the last checkpoint is intact")
            if self._consecutive == MAX_CONSECUTIVE_BAD_STEPS:
                before = f"and so were the {MAX_CONSECUTIVE_BAD_STEPS - 1} before it"
                self._stop(f"{description}, {before}; the last checkpoint is intact")
            if is_primary():
                tqdm.write(f"{description}; its update is left out, {kept}")
        return found and self._config.on_bad_step == "roll_back"

    def roll_back(self, step: int, abstract_state: TrainState) -> TrainState:
        """Return the state of the newest checkpoint. The data continue with the batch after the last one taken.

        Raises:
            TrainingError: there is no checkpoint, or returning to it has not helped.
        """
        self._checkpoints.wait()
        back = max(self._checkpoints.steps, default=None)
        bad = f"a step up to {step} is bad (see {self._directory}/faults.jsonl), and"
        if back is None:
            self._stop(f"{bad} there is no checkpoint to roll back to")
        self._returns[back] += 1
        if self._returns[back] == MAX_CONSECUTIVE_BAD_STEPS:
            self._stop(f"{bad} {MAX_CONSECUTIVE_BAD_STEPS} returns to step {back} did not help")
        report(f"rolling back from step {step} to {back}; the data continue after the last batch")
        return self._checkpoints.restore(back, abstract_state)

    def _stop(self, reason: str) -> NoReturn:
        """End the run after the save in progress is complete."""
        self._checkpoints.wait()
        raise TrainingError(reason)


def record_bad_step(
    directory: pathlib.Path, step: int, *, metrics: Mapping[str, Any], batch: HostBatch, streams: Any
) -> None:
    """Keep a bad step for inspection.

    Every process writes its rows of the batch to `faults/STEP-PROCESS.npz`. The primary process appends a line to
    `faults.jsonl`, with the state of all data streams before the batch.
    """
    (directory / "faults").mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = dict(batch)
    kept = directory / "faults" / f"{step}-{jax.process_index()}.npz"
    with naming(kept):
        np.savez_compressed(kept, **arrays)
    if is_primary():
        line = {"step": step} | {name: repr(float(metrics[name])) for name in ("loss", "gradient_norm")}
        listed = directory / "faults.jsonl"
        with naming(listed), listed.open("a") as file:
            file.write(json.dumps(line | {"data": streams}) + "\n")
