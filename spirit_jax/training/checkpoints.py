"""The checkpoints of a run: asynchronous, atomic Orbax steps that hold everything that resuming needs.

A step holds the parameters (`llm/` of a language model), `optimizer/` and metadata: the state of the data streams, the
config and the vocabulary's fingerprint. Orbax writes it under a temporary name and renames it, so that a run that is
killed at any moment finds the step before. Then every process seals its share of the files with checksums, because
Orbax does not notice when a disk has changed a file.
"""

import concurrent.futures
import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from spirit_jax.checkpoint import LLM, STEPS, CheckpointError, is_committed
from spirit_jax.core import buckets
from spirit_jax.core.checksums import find_damage, read_checksums, write_checksums
from spirit_jax.core.errors import JobError, SpiritError
from spirit_jax.core.paths import absolute_path
from spirit_jax.parallel.processes import gather_json, is_primary, report, wait_for_all
from spirit_jax.training import faults
from spirit_jax.training.config import CheckpointConfig
from spirit_jax.training.state import TrainState

_OPTIMIZER = "optimizer"
_DAMAGED = "damaged"
_SEAL_TIMEOUT = 600  # Seconds until a step that is written must be visible to all hosts.


class SaveError(JobError):
    """A step that could not be saved; the message names its directory and the reason."""


class RunCheckpoints:
    """The checkpoints of one run, `RUN/checkpoints/STEP`.

    Opening them moves steps that are newer than the newest intact one to `RUN/damaged`.

    Args:
        run_directory: the run directory, on a disk or in a bucket; all hosts must share it.
        config: when to save and what to keep.
        metadata: JSON that is saved with every step: the config and the vocabulary's fingerprint.
        params: name of the folder of a step that holds the parameters.
        before_seal: called before a step is sealed, to put the log of the run where the step is.

    Attributes:
        every: steps between checkpoints.

    Raises:
        CheckpointError: there are steps, but none is intact.
    """

    def __init__(
        self,
        run_directory: str | os.PathLike,
        config: CheckpointConfig,
        metadata: Mapping[str, Any] | None = None,
        *,
        params: str = LLM,
        before_seal: Callable[[], None] = lambda: None,
    ):
        self.every, self._params, self._before_seal = config.every, params, before_seal
        self._metadata = dict(metadata or {})
        self._directory = absolute_path(run_directory) / STEPS
        _set_damaged_aside(self._directory)
        training = ocp.training
        keep: list[Any] = [training.preservation_policies.LatestN(config.keep)]
        if config.keep_every:
            keep.append(training.preservation_policies.EveryNSteps(config.keep_every))
        context = ocp.Context()
        context.array.saving.scoped_storage_options_creator = _by_layer
        # Orbax's annotations contradict each other: its policies name other types than its protocols.
        save_decision: Any = training.save_decision_policies.FixedIntervalPolicy(1)  # The loop decides when to save.
        preservation: Any = training.preservation_policies.AnyPreservationPolicy(keep)
        self._checkpointer = training.Checkpointer(
            str(self._directory),
            context=context,
            save_decision_policy=save_decision,
            preservation_policy=preservation,
            cleanup_tmp_directories=True,
        )
        self._sealer = concurrent.futures.ThreadPoolExecutor(1, "seal")
        self._sealing: concurrent.futures.Future | None = None

    @property
    def steps(self) -> list[int]:
        """The complete steps, oldest first."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def save(self, state: TrainState, streams: Mapping[str, Any]) -> None:
        """Start saving a step, and return when the arrays are copied. Every process must call it.

        Args:
            state: the train state.
            streams: the state of this process's data streams; those of all processes are saved.

        Raises:
            SaveError: this step or the one before cannot be saved.
        """
        data: dict[str, Any] = {}
        for part in gather_json(streams):
            data |= part
        step = int(state.step)
        if step not in self.steps:
            self.wait()
            with self._saving(step):
                response = self._checkpointer.save_checkpointables_async(
                    step,
                    {self._params: state.params, _OPTIMIZER: state.opt_state},
                    custom_metadata={**self._metadata, "data": data, "recent": faults.recent_to_json(state.recent)},
                )
            self._sealing = self._sealer.submit(self._seal, step, response)

    def _seal(self, step: int, response: Any) -> None:
        path, deadline = self._directory / str(step), time.monotonic() + _SEAL_TIMEOUT
        with self._saving(step):
            response.result()
            while not is_committed(path):  # Another process may be the one that renames it.
                if not (self._directory.is_dir() or buckets.is_bucket(path)):
                    raise SaveError(f"{self._directory}: was removed while step {step} was saved")
                if time.monotonic() > deadline:
                    raise SaveError(f"{path}: saved, but not there: do all hosts share the run directory?")
                time.sleep(1.0 if buckets.is_bucket(path) else 0.05)
            self._before_seal()
            write_checksums(path, jax.process_index(), jax.process_count())

    @contextlib.contextmanager
    def _saving(self, step: int) -> Iterator[None]:
        """Name the step in the errors of Orbax and its storage, which have no common base and often many lines."""
        try:
            yield
        except SpiritError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise SaveError(
                f"{self._directory / str(step)}: could not be saved ({type(error).__name__}: {reason}); the steps "
                "before it are as they were"
            ) from error

    def read_metadata(self, step: int) -> dict[str, Any]:
        """Return the JSON that was saved with a step; `data` holds the state of the data streams."""
        metadata: Any = self._checkpointer.checkpointables_metadata(step).custom_metadata
        return dict(metadata or {})

    def restore(self, step: int, abstract_state: TrainState) -> TrainState:
        """Restore a step, reading every array directly into the sharding that `abstract_state` gives it.

        Raises:
            CheckpointError: the step does not hold such a state.
        """
        wanted = {self._params: abstract_state.params, _OPTIMIZER: abstract_state.opt_state}
        try:
            found: Any = self._checkpointer.load_checkpointables(step, wanted)
        except Exception as error:  # Orbax passes on the errors of its storage.
            reason = " ".join(str(error).split())[:500]
            raise CheckpointError(
                f"{self._directory / str(step)}: cannot be restored into this run's model and optimizer ({reason})"
            ) from error
        count = jax.device_put(step, abstract_state.step.sharding).astype(abstract_state.step.dtype)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state.recent)
        recent = faults.recent_from_json(self.read_metadata(step).get("recent"), shardings)
        return TrainState(step=count, params=found[self._params], opt_state=found[_OPTIMIZER], recent=recent)

    def wait(self) -> None:
        """Wait until the last save is complete and sealed by this process.

        Raises:
            SaveError: it failed.
        """
        if self._sealing is not None:
            self._sealing.result()

    def close(self) -> None:
        """Wait until the last save is complete and sealed by all processes. Every process must call it."""
        self.wait()
        self._checkpointer.close()
        wait_for_all("sealed")


def _by_layer(key: Sequence[Any], value: Any) -> Any:
    """Store stacked arrays with one layer per chunk, so that reading a layer reads no other."""
    del value
    stacked = any(getattr(part, "key", None) == "layers" for part in key)
    return ocp.options.ArrayOptions.Saving.StorageOptions(shard_axes=(0,)) if stacked else None


def _set_damaged_aside(directory: Any) -> None:
    """Move the steps that are newer than the newest intact one to `RUN/damaged`.

    If no step is known to be intact, the newest one without checksums is trusted, because Orbax considers it complete:
    a run may be killed between writing its first step and sealing it. In a bucket it is moved too, because the log that
    belongs to it may not have been uploaded, and so are steps that Orbax has not finished.
    """
    steps = sorted((int(path.name) for path in directory.glob("*") if path.name.isdigit()), reverse=True)
    steps = gather_json(steps)[0]
    problems: dict[int, str] = {}
    for step in steps:
        found = gather_json(find_damage(directory / str(step), jax.process_index(), jax.process_count()))
        if not any(found):
            break
        problems[step] = next(filter(None, found))
    else:
        if not steps:
            return
        committed = [step for step in steps if is_committed(directory / str(step))]
        unsealed = [step for step in committed if read_checksums(directory / str(step)) is None]
        trusted = [] if buckets.is_bucket(directory) else unsealed
        if len(unsealed) < len(committed) and not trusted:
            raise CheckpointError(f"no step in {directory} is intact: {problems[steps[0]]}; remove it to start afresh")
        step = trusted[0] if trusted else 0  # 0: the run was killed in its first save
        problems = {other: problem for other, problem in problems.items() if other > step}
        if trusted:
            report(f"no step in {directory} is known to be intact; continuing from step {step}, which has no checksums")
    for bad, problem in problems.items():
        report(f"step {bad} cannot be trusted and is set aside ({problem}); going back to step {step}")
    wait_for_all("damage known")
    if is_primary():
        for bad in problems:
            aside = directory.parent / _DAMAGED / f"{bad}-{time.time_ns()}"
            if buckets.is_bucket(directory):
                buckets.move_folder(os.fspath(directory / str(bad)), os.fspath(aside))
                continue
            aside.parent.mkdir(exist_ok=True)
            os.rename(directory / str(bad), aside)
    wait_for_all("damage set aside")
