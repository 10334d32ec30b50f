"""The steps of a run: asynchronous, atomic Orbax checkpoints with everything that resuming needs.

A step holds `llm/` (parameters) and `optimizer/`, and as metadata the data streams' state, the config and the vocabulary's
fingerprint. It is written under a temporary name and renamed, so that a run killed at any moment finds the step before; then
every process seals its share of the files with checksums, since Orbax restores what a disk has changed without a word.
"""

import concurrent.futures
import dataclasses
import os
import pathlib
import time
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from spirit_jax.checkpoint import LLM, STEPS, CheckpointError
from spirit_jax.core.checksums import find_damage, read_checksums, write_checksums
from spirit_jax.parallel.processes import gather_json, is_primary, report, wait_for_all
from spirit_jax.training import faults
from spirit_jax.training.step import TrainState

_OPTIMIZER = "optimizer"
_DAMAGED = "damaged"
_SEAL_PATIENCE = 600  # seconds until a step that is written must be seen by all hosts


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
    """The checkpoints of one run, `RUN/checkpoints/STEP`. Steps newer than the newest intact one are set aside in `RUN/damaged`.

    Raises:
        CheckpointError: there are steps, and none of them can be trusted.
    """

    def __init__(self, run_directory: str | os.PathLike, config: CheckpointConfig):
        self._directory = pathlib.Path(run_directory).resolve() / STEPS
        _set_damaged_aside(self._directory)
        training = ocp.training
        keep = [training.preservation_policies.LatestN(config.keep)]
        if config.keep_every:
            keep.append(training.preservation_policies.EveryNSteps(config.keep_every))
        context = ocp.Context()
        context.array.saving.scoped_storage_options_creator = _by_layer
        self._checkpointer = training.Checkpointer(
            self._directory,
            context=context,
            save_decision_policy=training.save_decision_policies.FixedIntervalPolicy(1),  # the loop decides
            preservation_policy=training.preservation_policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=True,
        )
        self._sealer = concurrent.futures.ThreadPoolExecutor(1, "seal")
        self._sealing: concurrent.futures.Future | None = None

    @property
    def steps(self) -> list[int]:
        """The complete steps, oldest first."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def save(self, state: TrainState, extra: dict[str, Any]) -> None:
        """Start saving a step; returns as soon as the arrays are copied. `extra` is JSON: data state, config and so on."""
        step = int(state.step)
        if step not in self.steps:
            self.wait()
            response = self._checkpointer.save_checkpointables_async(
                step,
                {LLM: state.params, _OPTIMIZER: state.opt_state},
                custom_metadata={**extra, "recent": faults.to_json(state.recent)},
            )
            self._sealing = self._sealer.submit(self._seal, step, response)

    def _seal(self, step: int, response: Any) -> None:
        response.result()
        path, deadline = self._directory / str(step), time.monotonic() + _SEAL_PATIENCE
        while not path.is_dir():  # another process may be the one that renames it
            if time.monotonic() > deadline:
                raise CheckpointError(f"{path}: saved, but not there: do all hosts share the run directory?")
            time.sleep(0.05)
        write_checksums(path, jax.process_index(), jax.process_count())

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
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state.recent)
        recent = faults.from_json(self.read_extra(step).get("recent"), shardings)
        return TrainState(step=count, params=found[LLM], opt_state=found[_OPTIMIZER], recent=recent)

    def wait(self) -> None:
        """Wait for the last save to be complete and sealed by this process; raises what went wrong with it."""
        if self._sealing is not None:
            self._sealing.result()

    def close(self) -> None:
        """Wait for the last save to be complete and sealed by all."""
        self.wait()
        self._checkpointer.close()
        wait_for_all("sealed")


def _by_layer(path: tuple[Any, ...], _value: Any) -> Any:
    """Stacked arrays are stored a layer a chunk, so that an export reads one layer at a time, however many there are."""
    stacked = any(getattr(key, "key", None) == "layers" for key in path)
    return ocp.options.ArrayOptions.Saving.StorageOptions(shard_axes=(0,)) if stacked else None


def _set_damaged_aside(directory: pathlib.Path) -> None:
    """Move the steps that are newer than the newest intact one out of the way.

    Where none is known to be intact, the newest without checksums is taken on Orbax's own word that it is complete: a run may
    be killed in the moment between writing its first step and sealing it.
    """
    steps = sorted((int(path.name) for path in directory.glob("*") if path.name.isdigit()), reverse=True)
    steps = gather_json(steps)[0]
    problems: dict[int, str] = {}
    for step in steps:
        found = find_damage(directory / str(step), jax.process_index(), jax.process_count())
        if not any(found := gather_json(found)):
            break
        problems[step] = next(filter(None, found))
    else:
        unsealed = [step for step in steps if read_checksums(directory / str(step)) is None]
        if not steps:
            return
        if not unsealed:
            raise CheckpointError(f"no step in {directory} is intact: {problems[steps[0]]}; remove it to start afresh")
        step = unsealed[0]
        problems = {other: problem for other, problem in problems.items() if other > step}
        report(f"no step in {directory} is known to be intact; going on from step {step}, which has no checksums")
    for bad, problem in problems.items():
        report(f"step {bad} cannot be trusted and is set aside ({problem}); going back to step {step}")
    wait_for_all("damage known")
    if is_primary():
        for bad in problems:
            aside = directory.parent / _DAMAGED / f"{bad}-{time.time_ns()}"
            aside.parent.mkdir(exist_ok=True)
            os.rename(directory / str(bad), aside)
    wait_for_all("damage set aside")
