"""Evaluation on held-out data during training."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from spirit_jax.training.state import Params
from spirit_jax.training.task import Task

TOTAL = "validation"
"""Prefix of the values over all sources; those of one source have the prefix `validation/SOURCE`."""


def evaluate(
    task: Task,
    params: Params,
    *,
    max_batches: int | None,
    progress: Callable[[str], None],
    stop: Callable[[], bool],
) -> dict[str, dict[str, float]] | None:
    """Compute held-out values of each source and of all sources together.

    Args:
        task: what is trained.
        params: its parameters.
        max_batches: batches of each source; None for all.
        progress: called before each batch with a description of it.
        stop: asked before each batch whether to give up.

    Returns:
        Values by prefix of their names in the log, with `TOTAL` last; nothing if there are no held-out data; None if
        the evaluation was given up.
    """
    records: dict[str, dict[str, float]] = {}
    total: dict[str, Any] = {}
    for name, batches in task.held_out().items():
        sums: dict[str, Any] = {}
        for index, batch in enumerate(batches):
            if max_batches is not None and index >= max_batches:
                break
            if stop():
                return None
            progress(f"evaluating on {name}, batch {index + 1}")
            metrics = task.step.eval_step(params, task.step.put_batch(batch))
            _add(sums, {key: np.asarray(value, np.float64) for key, value in metrics.items()})
        if sums:
            records[f"{TOTAL}/{name}"] = task.summary.source_values(sums)
            _add(total, sums)
    if total:
        records[TOTAL] = task.summary.evaluation_values(total)
    return records


def _add(total: dict[str, Any], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        total[name] = total[name] + value if name in total else value
