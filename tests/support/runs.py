"""Readers of the files that a training run writes."""

import pathlib
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from spirit_jax.checkpoint import latest_step


def newest_step(run: pathlib.Path) -> pathlib.Path:
    """The newest complete step of a run; a run without one fails the test."""
    step = latest_step(run)
    assert step is not None, f"{run} has no complete step"
    return step


def newest_arrays(run: pathlib.Path) -> dict[str, Any]:
    """Parameters (`llm`) and optimizer state (`optimizer`) of the newest step as NumPy arrays."""
    return jax.tree.map(np.asarray, ocp.load_checkpointables(str(newest_step(run))))
