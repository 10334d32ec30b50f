"""AdamW with the field's learning-rate schedules, as one optax transformation."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import optax

Schedule = Callable[[Any], Any]
"""Learning rate by update, counted from 0."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW. The paper states only the learning rate (3e-5, constant); the other defaults are Llama 2's."""

    learning_rate: float = 3e-5
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Learning rate after the warm-up: constant, or falling to final_fraction of the peak at the last step."""
    schedule_steps: int | None = None
    """Steps that the schedule spans, after which the learning rate stays; null for those of the run."""
    warmup_steps: int = 0
    """Steps of linear warm-up from zero."""
    final_fraction: float = 0.1
    """Where cosine and linear schedules end, as a fraction of the peak."""
    beta1: float = 0.9
    """Decay of the mean of gradients."""
    beta2: float = 0.95
    """Decay of the mean of squared gradients."""
    epsilon: float = 1e-5
    """Added to the root of the mean of squared gradients."""
    weight_decay: float = 0.1
    """Decoupled decay of weight matrices; norms are not decayed."""
    clip_norm: float = 1.0
    """Gradients of a larger global norm are scaled down to it; 0 for no clipping."""
    z_loss: float = 0.0
    """Coefficient of the squared log-partition added to each token's loss; PaLM used 1e-4."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epsilon"):
            if not getattr(self, name) > 0:
                raise ValueError(f"optimizer.{name} must be positive, found {getattr(self, name)}")
        for name in ("warmup_steps", "weight_decay", "clip_norm", "z_loss", "final_fraction"):
            if getattr(self, name) < 0:
                raise ValueError(f"optimizer.{name} must not be negative, found {getattr(self, name)}")
        if self.schedule_steps is not None and self.schedule_steps < 1:
            raise ValueError(f"optimizer.schedule_steps must be positive, found {self.schedule_steps}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name} must lie in [0, 1), found {getattr(self, name)}")


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
