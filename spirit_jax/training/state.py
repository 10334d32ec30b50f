"""The train state and the names of what flows through a training step."""

from typing import Any

import flax.struct
import jax
from jaxtyping import Array, Int

from spirit_jax.training.faults import RecentSteps

Params = dict[str, Any]
"""Nested dict of a model's arrays."""
DeviceBatch = dict[str, jax.Array]
"""A batch as global arrays on the mesh, split by rows."""
Metrics = dict[str, jax.Array]
"""Results of a compiled step or evaluation by name."""


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes: plain nested dicts of arrays and the optimizer's own state."""

    step: Int[Array, ""]
    """Updates so far."""
    params: Params
    opt_state: Any
    recent: RecentSteps
    """Losses and gradient norms of recent steps, with which the next step is compared."""
