"""Detects bad training steps inside the compiled step: a loss or gradient that is not finite, or a spike."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from spirit_jax.core.errors import JobError

_WINDOW = 128  # Recent steps that are kept; half of them are needed, as in OLMo-core's SkipStepAdamW.
_LEVEL = 32  # Steps whose median a step is compared with.
_OUTLIERS = 8  # The greatest differences between steps, two a spike, which count like the next smaller one.
_LEAST_RATIOS = ((1.25,), (2.0,))  # Ratios of a loss and of a gradient norm to the median. Less is no spike.
_LASTING = 8  # Values in a row that are all above the limit are a lasting change; fewer than end a run.


class TrainingError(JobError):
    """A run that cannot continue; the message says at which step and why."""


RecentSteps = dict[str, Array]
"""Statistics of recent finite steps: `values` float32 [2, W] (losses, gradient norms; a ring buffer), and `count`
int32, the number of finite steps so far."""


def no_recent_steps() -> RecentSteps:
    """The statistics before the first step."""
    return {"values": jnp.zeros((2, _WINDOW), jnp.float32), "count": jnp.zeros((), jnp.int32)}


def detect_bad_step(
    recent: RecentSteps, loss: Float[Array, ""], norm: Float[Array, ""], sigmas: float
) -> tuple[Bool[Array, ""], RecentSteps]:
    """Decide whether a step is bad, and add it to the statistics if it is finite.

    A spike is far above recent steps by two measures, because each alone fails on healthy runs. Gradient norms have a
    heavy tail, in which a step of a small batch exceeds six standard deviations now and then; and where steps hardly
    differ, a small change is many deviations. The deviation is taken from the differences between consecutive steps, so
    that the fall of the loss at the start of a run does not count. Their few greatest are cut down, so that a spike
    does not hide the next one. Values that stay above the limit for some steps are a lasting change and are accepted.

    Args:
        recent: statistics of the steps before.
        loss: the step's loss.
        norm: global norm of the step's gradient.
        sigmas: distance from the median, in standard deviations, of a spike; 0: only values that are not finite are
            bad.

    Returns:
        Whether the step is bad, and the statistics for the next step.
    """
    now = jnp.stack([loss, norm]).astype(jnp.float32)
    values, count = recent["values"], recent["count"]
    finite = jnp.isfinite(now).all()
    spike = _is_spike(values, count, now, sigmas) if sigmas else jnp.zeros((), bool)
    kept = jnp.where(finite, values.at[:, count % _WINDOW].set(now), values)
    return ~finite | spike, {"values": kept, "count": count + finite}


def _is_spike(
    values: Float[Array, "2 W"], count: Int[Array, ""], now: Float[Array, "2"], sigmas: float
) -> Bool[Array, ""]:
    """Whether the loss or the gradient norm of a step is a spike."""
    slots, total = jnp.arange(_WINDOW), jnp.clip(count, 1, _WINDOW)
    newest_first = values[:, (count - 1 - slots) % _WINDOW]
    median = jnp.median(newest_first[:, :_LEVEL], axis=1, keepdims=True)
    changes = jnp.abs(newest_first[:, :-1] - newest_first[:, 1:])
    ascending = jnp.sort(jnp.where(slots[:-1] < total - 1, changes, jnp.inf), axis=1)
    greatest = jnp.take(ascending, jnp.maximum(total - 2 - _OUTLIERS, 0), axis=1)[:, None]
    squares = jnp.where(slots[:-1] < total - 1, jnp.minimum(ascending, greatest) ** 2, 0)
    deviation = jnp.sqrt(squares.sum(1, keepdims=True) / (2 * jnp.maximum(total - 1, 1)))
    limit = jnp.maximum(median + sigmas * deviation, jnp.asarray(_LEAST_RATIOS) * median)
    lasting = (newest_first[:, :_LASTING] > limit).all(1)
    return (count >= _WINDOW // 2) & ((now > limit[:, 0]) & ~lasting).any()


def recent_to_json(recent: RecentSteps) -> dict[str, Any]:
    """The statistics as JSON for a checkpoint's metadata, exactly."""
    return {"values": np.asarray(recent["values"], np.float64).tolist(), "count": int(recent["count"])}


def recent_from_json(value: Mapping[str, Any] | None, shardings: Any) -> RecentSteps:
    """The inverse of `recent_to_json`; None, from a checkpoint without statistics, gives empty ones."""
    if value is None:
        return jax.device_put(no_recent_steps(), shardings)
    recent = {"values": np.asarray(value["values"], np.float32), "count": np.asarray(value["count"], np.int32)}
    return jax.device_put(recent, shardings)
