"""AdamW with the schedules of the field, as one optax transformation."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW. The paper states the learning rate alone (3e-5, constant); the rest defaults to Llama 2's."""

    learning_rate: float = 3e-5
    """Peak learning rate."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """What follows the warm-up, until the run's last step: stay at the peak, or fall to final_fraction of it."""
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
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name} must lie in [0, 1), found {getattr(self, name)}")


def make_schedule(config: OptimizerConfig, steps: int) -> Callable[[Any], Any]:
    """Learning rate by update, counted from 0, over a run of `steps` updates."""
    peak, rest = config.learning_rate, max(steps - config.warmup_steps, 1)
    after = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, rest, config.final_fraction),
        "linear": optax.linear_schedule(peak, peak * config.final_fraction, rest),
    }[config.schedule]
    if not config.warmup_steps:
        return after
    # the first update has a learning rate above zero, the one numbered warmup_steps the peak
    warmup = optax.linear_schedule(peak / (config.warmup_steps + 1), peak, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def _is_matrix(params: Any) -> Any:
    """True for what decays: all but the norms."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "norm" not in jax.tree_util.keystr(path), params)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The transformation from gradients to updates, clipping included."""
    adamw = optax.adamw(
        make_schedule(config, steps),
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=_is_matrix,
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw
