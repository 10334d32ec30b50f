"""The training loop.

Resuming, in order: the newest complete step gives parameters, optimiser and the data streams' state; the log is cut back to
it; the loop goes on with the batch that an unbroken run would have had next.
"""

import collections
import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from spirit_jax.models.llama import Params
from spirit_jax.parallel.processes import gather_json, is_primary, report
from spirit_jax.parallel.sharding import put_batch
from spirit_jax.training.checkpoints import RunCheckpoints
from spirit_jax.training.interruption import Interruption
from spirit_jax.training.metrics import MetricsLog, by_kind, peak_flops, unigram_entropy
from spirit_jax.training.step import Batch, Program, TrainState
from spirit_jax.vocabulary import KINDS


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long a run is and what it does besides training, and how often."""

    steps: int = 100_000
    """Updates of the whole run."""
    log_every: int = 10
    """Steps from one line of metrics to the next; a line holds the values of its own step."""
    evaluate_every: int = 1000
    """Steps from one evaluation on held-out data to the next; before the first and after the last step besides. 0: never."""
    evaluate_batches: int | None = None
    """Batches of each held-out source; null for all."""
    sample_every: int = 1000
    """Steps from one set of samples to the next; after the last step besides. 0: never."""
    profile_start: int | None = None
    """First step that `jax.profiler` records into RUN/profile; null for no profile."""
    profile_steps: int = 5
    """How many steps it records."""

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "profile_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"loop.{name} must be positive, found {getattr(self, name)}")
        for name in ("evaluate_every", "sample_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"loop.{name} must not be negative, found {getattr(self, name)}")


class Batches(Protocol):
    """A stream of this host's batches that can say where it stands."""

    def __iter__(self) -> Iterator[Batch]: ...
    def __next__(self) -> Batch: ...
    def state(self) -> dict[str, Any]: ...


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says at which step and why."""


@dataclasses.dataclass
class Loop:
    """One run: everything that `run` needs, wired by the command."""

    config: LoopConfig
    program: Program
    mesh: Mesh
    rows: int
    batches: Batches
    held_out: Callable[[], Mapping[str, Iterator[Batch]]]
    log: MetricsLog
    checkpoints: RunCheckpoints
    checkpoint_every: int
    extra: dict[str, Any]
    sample: Callable[[Params, int], None]
    flops_per_token: float
    token_kinds: np.ndarray
    profile_directory: str
    _profiling: bool = False

    def run(self, state: TrainState) -> TrainState:
        """Train from `state` to the last step, or until a signal asks to stop; the last state is saved either way.

        Raises:
            TrainingError: the loss or the gradient is not finite.
        """
        config, step, metrics = self.config, int(state.step), None
        if step == 0:
            self._evaluate(state, 0)
        pace = _Pace(self.flops_per_token, jax.device_count() * peak_flops(jax.devices()[0]))
        progress = tqdm(total=config.steps, initial=step, unit="step", disable=not is_primary(), dynamic_ncols=True)
        with Interruption() as interruption:
            while step < config.steps and not interruption.signal:
                self._profile(step)
                waited = time.perf_counter()
                batch = next(self.batches)
                waited = time.perf_counter() - waited
                state, metrics = self.program.train_step(state, put_batch(self.mesh, batch, self.rows))
                step += 1
                progress.update()
                pace.step(metrics["tokens"], waited)
                last = step == config.steps
                log, save = last or step % config.log_every == 0, last or step % self.checkpoint_every == 0
                evaluate = config.evaluate_every and (last or step % config.evaluate_every == 0)
                sample = config.sample_every and (last or step % config.sample_every == 0)
                if not (log or save or evaluate or sample):
                    continue  # nothing is fetched, so that the device has the next step to work on meanwhile
                self._check(step, metrics, progress)
                if log:
                    self._report(step, metrics, pace, progress)
                with pace.paused():
                    if evaluate:
                        self._evaluate(state, step)
                    if save:
                        self._save(state)
                    if sample:
                        self.sample(state.params, step)
            progress.close()
            self._profile(step)
            if metrics is not None:
                self._check(step, metrics, progress)
            if interruption.signal:
                report(f"{interruption.signal}: saving step {step} and stopping; the same command goes on from there")
            self._save(state)
            self.checkpoints.close()
        return state

    def _save(self, state: TrainState) -> None:
        streams = {}
        for part in gather_json(self.batches.state()):
            streams |= part
        self.checkpoints.save(state, {**self.extra, "data": streams})

    def _check(self, step: int, metrics: Mapping[str, Any], progress: tqdm) -> None:
        """Stop a run whose loss or gradient is not finite, before its weights are saved."""
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(float(metrics[name])):
                progress.close()
                raise TrainingError(f"the {name} of step {step} is {float(metrics[name])}; the last checkpoint stands")

    def _report(self, step: int, metrics: Mapping[str, Any], pace: "_Pace", progress: tqdm) -> None:
        """Log a step's values, and the pace since the last report."""
        values = by_kind(metrics)
        values |= {name: float(metrics[name]) for name in ("gradient_norm", "learning_rate")}
        values |= {"tokens": float(metrics["tokens"].sum()), **pace.take()}
        progress.set_postfix_str(
            f"loss {values['loss']:.3f} "
            + " ".join(f"{kind} {values[f'loss_{kind}']:.2f}" for kind in KINDS[:4] if f"loss_{kind}" in values)
            + f" | {values['tokens_per_second']:,.0f} tok/s, MFU {100 * values['mfu']:.0f} %"
        )
        self.log.write(step, values)

    def _evaluate(self, state: TrainState, step: int) -> None:
        """Held-out losses of each source and of all, beside the entropy that a unigram model could reach at best."""
        if not self.config.evaluate_every:
            return
        total: collections.Counter = collections.Counter()
        for name, batches in self.held_out().items():
            sums: collections.Counter = collections.Counter()
            for index, batch in enumerate(batches):
                if self.config.evaluate_batches is not None and index >= self.config.evaluate_batches:
                    break
                for key, value in self.program.eval_step(state.params, put_batch(self.mesh, batch, self.rows)).items():
                    sums[key] = sums[key] + np.asarray(value, np.float64)
            if sums:
                self.log.write(step, by_kind(sums), f"validation/{name}")
                for key, value in sums.items():
                    total[key] = total[key] + value
        if total:
            values = by_kind(total) | unigram_entropy(total["targets"], self.token_kinds)
            self.log.write(step, values, "validation")
            kinds = [kind for kind in KINDS if f"loss_{kind}" in values]
            within = ", ".join(
                f"{kind} {values[f'loss_within_{kind}']:.2f} / {values[f'unigram_entropy_{kind}']:.2f}"
                for kind in kinds
            )
            if is_primary():
                tqdm.write(
                    f"step {step}: held-out loss {values['loss']:.3f}; within each kind / unigram entropy: {within}"
                )

    def _profile(self, step: int) -> None:
        """Start and stop the profiler where the config says so; a run that ends earlier ends the profile too."""
        start = self.config.profile_start
        if self._profiling and (step >= start + self.config.profile_steps or step == self.config.steps):
            jax.profiler.stop_trace()
            self._profiling = False
        elif step == start and step < self.config.steps:
            jax.profiler.start_trace(self.profile_directory)
            self._profiling = True


class _Pace:
    """Tokens a second and utilisation since the last report, pauses left out."""

    def __init__(self, flops_per_token: float, peak: float):
        self._flops_per_token, self._peak = flops_per_token, peak
        self._restart()

    def _restart(self) -> None:
        self._tokens: list[jax.Array] = []
        self._waited, self._start = 0.0, time.perf_counter()

    def step(self, tokens: jax.Array, waited: float) -> None:
        """Count a step: its tokens, still on their way, and the seconds that its batch was waited for."""
        self._tokens.append(tokens)
        self._waited += waited

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent within it does not count."""
        began = time.perf_counter()
        yield
        self._start += time.perf_counter() - began

    def take(self) -> dict[str, float]:
        """The figures since the last call."""
        tokens = float(sum(np.asarray(part).sum() for part in self._tokens))
        seconds = time.perf_counter() - self._start
        rate = tokens / seconds
        values = {
            "tokens_per_second": rate,
            "mfu": rate * self._flops_per_token / self._peak,
            "data_wait": self._waited / seconds,
        }
        self._restart()
        return values
