"""Configuration of a training run's parts. Reading it never starts JAX."""

import dataclasses
from typing import Literal

from spirit_jax.data.preference_config import PreferenceData


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Run length and the intervals of evaluation, logging and sampling."""

    steps: int = 100_000
    """Updates of the whole run."""
    log_every: int = 10
    """Steps between lines of metrics; a line holds the values of its own step."""
    evaluate_every: int = 1000
    """Steps between evaluations on held-out data, which also run before the first and after the last step. 0: never."""
    evaluate_batches: int | None = None
    """Batches of each held-out source; null for all."""
    evaluate_tasks: list[str] = dataclasses.field(default_factory=list)
    """Tasks of `python -m spirit_jax.evaluate` whose figures are logged with every evaluation, such as mini_sblimp:T.
    Their data must be bundled; one process only."""
    evaluate_items: int | None = 50
    """Items of each of these tasks and directions; null for all."""
    sample_every: int = 1000
    """Steps between sets of samples, which are also made after the last step. 0: never."""
    profile_start: int | None = None
    """First step that `jax.profiler` records into RUN/profile; null for no profile."""
    profile_steps: int = 5
    """Number of steps to record."""

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "profile_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"loop.{name} must be positive, found {getattr(self, name)}")
        if self.evaluate_items is not None and self.evaluate_items < 1:
            raise ValueError(f"loop.evaluate_items must be positive, found {self.evaluate_items}")
        for name in ("evaluate_every", "sample_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"loop.{name} must not be negative, found {getattr(self, name)}")

    def is_due(self, step: int, interval: int) -> bool:
        """Whether something that happens at this interval, and after the last step, follows a step; 0 is never."""
        return interval > 0 and (step == self.steps or step % interval == 0)


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
    """Last value of cosine and linear schedules, as a fraction of the peak."""
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
class CheckpointConfig:
    """When a run saves a step, and which steps it keeps."""

    every: int = 1000
    """Steps between checkpoints; the last step and an interrupted one are also saved."""
    keep: int = 3
    """Number of newest checkpoints to keep."""
    keep_every: int | None = None
    """Checkpoints of steps divisible by this are never deleted."""

    def __post_init__(self) -> None:
        for name in ("every", "keep", "keep_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"checkpoint.{name} must be positive, found {value}")


@dataclasses.dataclass(frozen=True)
class FaultConfig:
    """When a step or a process counts as faulty, and what the run does about it."""

    on_bad_step: Literal["skip", "roll_back", "stop"] = "skip"
    """A step with a loss or gradient that is not finite, or with a spike, never changes the weights. Afterwards the run
    continues with the next batch (skip), returns to the last checkpoint and continues with the next batch (roll_back),
    or ends (stop). The data of the step are kept in RUN/faults."""
    spike_sigmas: float = 6.0
    """A spike is a loss or gradient norm this many standard deviations above the median of the last 32 steps, and at
    least 1.25 times (loss) or twice (gradient norm) that median; 0 disables the check."""
    hang_timeout: int = 1800
    """Seconds without progress (a batch, step, evaluation or checkpoint) after which a process ends the job. Must be
    longer than a compilation and a save."""
    heartbeat_timeout: int = 100
    """Seconds without a heartbeat after which a process counts as dead, which ends the job's other processes."""

    def __post_init__(self) -> None:
        if self.spike_sigmas < 0:
            raise ValueError(f"faults.spike_sigmas must not be negative, found {self.spike_sigmas}")
        for name in ("hang_timeout", "heartbeat_timeout"):
            if getattr(self, name) < 1:
                raise ValueError(f"faults.{name} must be positive, found {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class PreferenceConfig:
    """Training on preferences instead of documents.

    Raises:
        ValueError: a value out of range.
    """

    data: PreferenceData
    """The preferences."""
    beta: float = 0.1
    """Factor of the difference of log-probabilities. The larger it is, the closer the model stays to the
    reference. With length_normalized, the SimPO paper uses 2 to 2.5."""
    label_smoothing: float = 0.0
    """Probability that a preference is the wrong way round, below 0.5."""
    reference: bool = True
    """Compare with the frozen initial weights. false: take the model's log-probabilities alone, which saves a forward
    pass."""
    length_normalized: bool = False
    """Divide the log-probability of an answer by its number of tokens."""

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"preferences.beta must be positive, found {self.beta}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"preferences.label_smoothing must lie in 0..0.5, found {self.label_smoothing}")
