"""AdamW with the field's learning-rate schedules, as one optax transformation."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax

from spirit_jax.training.config import OptimizerConfig

Schedule = Callable[[Any], Any]
"""Learning rate by update, counted from 0."""


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A transformation from gradients to updates, and the learning rate that it uses."""

    transformation: optax.GradientTransformation
    schedule: Schedule


def make_schedule(config: OptimizerConfig, steps: int) -> Schedule:
    """Return the learning rate by update over a run of `steps` updates."""
    peak, rest = config.learning_rate, max((config.schedule_steps or steps) - config.warmup_steps, 1)
    after = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, rest, config.final_fraction),
        "linear": optax.linear_schedule(peak, peak * config.final_fraction, rest),
    }[config.schedule]
    if not config.warmup_steps:
        return after
    # The first update has a learning rate above zero, update number warmup_steps has the peak.
    warmup = optax.linear_schedule(peak / (config.warmup_steps + 1), peak, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def _is_decayed(params: Any) -> Any:
    """A tree of True for the parameters that weight decay applies to: all but the norms."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "norm" not in jax.tree_util.keystr(path), params)


def make_optimizer(config: OptimizerConfig, steps: int) -> Optimizer:
    """Build AdamW, with clipping, for a run of `steps` updates."""
    schedule = make_schedule(config, steps)
    adamw = optax.adamw(
        schedule,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=_is_decayed,
    )
    clipped = optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw
    return Optimizer(transformation=clipped, schedule=schedule)
