"""Interface between the training loop and the objective. The loop knows no tokens and no audio."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from spirit_jax.data.packing import HostBatch
from spirit_jax.training.state import DeviceBatch, Metrics, Params, TrainState


class Step(Protocol):
    """The compiled functions of a run, such as `step.TrainStep`."""

    @property
    def abstract_state(self) -> TrainState:
        """Shapes, data types and shardings of the train state."""
        ...

    def put_batch(self, batch: HostBatch) -> DeviceBatch:
        """Place this process's rows of a batch on its devices."""
        ...

    def train_step(self, state: TrainState, batch: DeviceBatch) -> tuple[TrainState, Metrics]:
        """Update the state, which is consumed.

        The metrics hold `loss`, `gradient_norm`, `learning_rate`, `bad` (a step that changed no weights) and the
        summary's unit of work. They stay on the devices until a step of the log asks for them.
        """
        ...

    def eval_step(self, params: Params, batch: DeviceBatch) -> Metrics:
        """Metrics of a held-out batch that add up over batches."""
        ...


class Summary(Protocol):
    """Turns metrics into the values and lines of the log."""

    @property
    def unit(self) -> str:
        """Unit in which the run's speed is counted, such as "tokens"; also the name of a metric of each step."""
        ...

    @property
    def flops_per_unit(self) -> float:
        """FLOPs that the model needs to train on one unit."""
        ...

    def train_values(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """The values of one step, `loss` among them."""
        ...

    def source_values(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """The held-out values of one source, `loss` among them, from the sums over its batches."""
        ...

    def evaluation_values(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """The held-out values over all sources, `loss` among them."""
        ...

    def progress_line(self, values: Mapping[str, float]) -> str:
        """A step's values, with `UNIT_per_second` and `mfu`, for the progress bar."""
        ...

    def evaluation_line(self, values: Mapping[str, float]) -> str:
        """One line about an evaluation."""
        ...


class Batches(Protocol):
    """An endless stream of this process's batches, which can be continued from its state."""

    def __next__(self) -> HostBatch:
        """The next batch."""
        ...

    def state(self) -> dict[str, Any]:
        """The state of this process's data streams after the last batch, as JSON."""
        ...


class HeldOut(Protocol):
    """The held-out data of a run."""

    def __call__(self) -> Mapping[str, Iterator[HostBatch]]:
        """Fresh iterators over this process's rows of the held-out batches of each source."""
        ...


@dataclasses.dataclass(frozen=True)
class Task:
    """A task for the training loop: its compiled functions, its values in the log and its data."""

    step: Step
    summary: Summary
    batches: Batches
    held_out: HeldOut
