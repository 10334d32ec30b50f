"""The steps of a run: asynchronous, atomic Orbax checkpoints with everything that resuming needs.

A step holds `llm/` (parameters) and `optimizer/`, and as metadata the data streams' state, the config and the vocabulary's
fingerprint. It is written under a temporary name and renamed, so that a run killed at any moment finds the step before.
"""

import dataclasses
import os
import pathlib
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from spirit_jax.checkpoint import LLM, STEPS, CheckpointError
from spirit_jax.training.step import TrainState

_OPTIMIZER = "optimizer"


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When steps are saved and which are kept."""

    every: int = 1000
    """Steps from one checkpoint to the next; the last step and an interrupted one are saved besides."""
    keep: int = 3
    """How many of the newest are kept."""
    keep_every: int | None = None
    """Steps divisible by this are kept for good."""

    def __post_init__(self) -> None:
        for name in ("every", "keep", "keep_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"checkpoint.{name} must be positive, found {value}")


class RunCheckpoints:
    """The checkpoints of one run, `RUN/checkpoints/STEP`."""

    def __init__(self, run_directory: str | os.PathLike, config: CheckpointConfig):
        training = ocp.training
        keep = [training.preservation_policies.LatestN(config.keep)]
        if config.keep_every:
            keep.append(training.preservation_policies.EveryNSteps(config.keep_every))
        self._checkpointer = training.Checkpointer(
            pathlib.Path(run_directory).resolve() / STEPS,
            save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),  # the loop decides
            preservation_policy=training.preservation_policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=True,
        )

    @property
    def steps(self) -> list[int]:
        """The complete steps, oldest first."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def save(self, state: TrainState, extra: dict[str, Any]) -> None:
        """Start saving a step; returns as soon as the arrays are copied. `extra` is JSON: data state, config and so on."""
        step = int(state.step)
        if step not in self.steps:
            self._checkpointer.save_checkpointables_async(
                step, {LLM: state.params, _OPTIMIZER: state.opt_state}, custom_metadata=extra
            )

    def read_extra(self, step: int) -> dict[str, Any]:
        """The JSON that was saved with a step."""
        return dict(self._checkpointer.checkpointables_metadata(step).custom_metadata or {})

    def restore(self, step: int, abstract_state: TrainState) -> TrainState:
        """A saved step, every array straight into the sharding that `abstract_state` gives it.

        Raises:
            CheckpointError: the step does not hold such a state.
        """
        wanted = {LLM: abstract_state.params, _OPTIMIZER: abstract_state.opt_state}
        try:
            found = self._checkpointer.load_checkpointables(step, wanted)
        except Exception as error:  # Orbax raises whatever its storage raises
            path = self._checkpointer.directory / str(step)
            reason = " ".join(str(error).split())[:500]
            raise CheckpointError(
                f"{path}: cannot be restored into this run's model and optimiser ({reason})"
            ) from error
        count = jax.device_put(step, abstract_state.step.sharding).astype(abstract_state.step.dtype)
        return TrainState(step=count, params=found[LLM], opt_state=found[_OPTIMIZER])

    def close(self) -> None:
        """Wait for the last save to be complete."""
        self._checkpointer.close()
