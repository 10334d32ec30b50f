"""The training loop.

Resuming, in order: the newest intact step gives parameters, optimiser and the data streams' state; the log is cut back to
it; an evaluation that was given up is made up for; the loop goes on with the batch that an unbroken run would have had next.
"""

import collections
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from spirit_jax.core.errors import JobError
from spirit_jax.models.llama import Params
from spirit_jax.parallel.processes import gather_json, is_primary, report
from spirit_jax.parallel.sharding import put_batch
from spirit_jax.training import faults
from spirit_jax.training.checkpoints import RunCheckpoints
from spirit_jax.training.faults import FaultConfig
from spirit_jax.training.feed import Batches, Feed
from spirit_jax.training.interruption import Interruption
from spirit_jax.training.metrics import MetricsLog, by_kind, peak_flops, unigram_entropy
from spirit_jax.training.step import Batch, Program, TrainState
from spirit_jax.training.watchdog import Watchdog
from spirit_jax.vocabulary import TOKEN_KINDS

_HOPELESS = 10  # bad steps in a row, or returns to the same checkpoint, that end a run


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


class TrainingError(JobError):
    """A run that cannot go on; the message says at which step and why."""


@dataclasses.dataclass(frozen=True)
class _Taken:
    """A step whose outcome has not been looked at yet."""

    step: int
    batch: Batch
    streams: dict[str, Any]  # before it
    metrics: Mapping[str, Any]


@dataclasses.dataclass
class Loop:
    """One run: everything that `run` needs, wired by the command."""

    config: LoopConfig
    faults: FaultConfig
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
    directory: pathlib.Path
    _profiling: bool = False
    _taken: list[_Taken] = dataclasses.field(default_factory=list)
    _bad_in_a_row: int = 0
    _returns: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def run(self, state: TrainState) -> TrainState:
        """Train from `state` to the last step, or until a signal asks to stop; the last state is saved either way.

        Raises:
            TrainingError: bad steps that the policy does not pass over.
        """
        config, step = self.config, int(state.step)
        pace = _Pace(self.flops_per_token, jax.device_count() * peak_flops(jax.devices()[0]))
        progress = tqdm(total=config.steps, initial=step, unit="step", disable=not is_primary(), dynamic_ncols=True)
        feed = Feed(self.batches)
        # a batch can only be given up where no other process has gone on with its own
        give_up = Interruption.poll if jax.process_count() == 1 else lambda _: False
        with Interruption() as stop, Watchdog(self.faults.hang_timeout) as watchdog, progress, contextlib.closing(feed):
            if config.evaluate_every and (step == 0 or self._missed(step)):
                self._evaluate(state, step, stop, watchdog)
            while step < config.steps and not stop.poll():
                self._profile(step)
                watchdog.alive(f"waiting for the batch of step {step + 1}")
                streams = feed.state
                batch = feed.next(lambda: give_up(stop))
                if batch is None:
                    break
                watchdog.alive(f"in step {step + 1}")
                state, metrics = self.program.train_step(state, put_batch(self.mesh, batch, self.rows))
                step += 1
                progress.update()
                pace.step(metrics["tokens"])
                self._taken.append(_Taken(step, batch, streams, metrics))
                last = step == config.steps
                log, save = last or step % config.log_every == 0, last or step % self.checkpoint_every == 0
                evaluate = config.evaluate_every and (last or step % config.evaluate_every == 0)
                sample = config.sample_every and (last or step % config.sample_every == 0)
                if not (log or save or evaluate or sample):
                    continue  # nothing is fetched, so that the device has the next step to work on meanwhile
                if self._look():
                    state = self._roll_back(step)
                    step = int(state.step)
                    progress.reset()
                    progress.update(step)
                    continue
                if log:
                    self._report(step, metrics, pace, feed.take_waited(), progress)
                with pace.paused():
                    if save:
                        watchdog.alive(f"saving step {step}")
                        self._save(state, feed.state)
                    if evaluate and not stop.poll():
                        self._evaluate(state, step, stop, watchdog)
                    if sample and not stop.poll():
                        watchdog.alive(f"sampling after step {step}")
                        self.sample(state.params, step)
            self._profile(step)
            if self._look():
                state = self._roll_back(step)
                step = int(state.step)
            watchdog.alive(f"saving step {step}")
            if stop.signal:
                report(f"{stop.signal}: saving step {step} and stopping; the same command goes on from there")
            self._save(state, feed.state)
            self.checkpoints.close()
        return state

    def _save(self, state: TrainState, streams: dict[str, Any]) -> None:
        gathered: dict[str, Any] = {}
        for part in gather_json(streams):
            gathered |= part
        self.checkpoints.save(state, {**self.extra, "data": gathered})

    def _look(self) -> bool:
        """Look at the steps since the last look, record the bad ones, and say whether to roll back.

        Raises:
            TrainingError: the policy is to stop, or passing over bad steps leads nowhere.
        """
        found = False
        taken, self._taken = self._taken, []
        for one in taken:
            if not bool(one.metrics["bad"]):
                self._bad_in_a_row = 0
                continue
            found = True
            self._bad_in_a_row += 1
            faults.record(self.directory, one.step, one.metrics, one.batch, gather_json(one.streams))
            what = f"step {one.step} is bad: loss {float(one.metrics['loss']):.4g}, gradient norm {float(one.metrics['gradient_norm']):.4g}"
            if self.faults.on_bad_step == "stop":
                self._stop(f"{what}; its data are in {self.directory}/faults; the last checkpoint stands")
            if self._bad_in_a_row == _HOPELESS:
                self._stop(f"{what}, and so were the {_HOPELESS - 1} before it; the last checkpoint stands")
            if is_primary():
                tqdm.write(f"{what}; its update is left out, its data are in {self.directory}/faults")
        return found and self.faults.on_bad_step == "roll_back"

    def _roll_back(self, step: int) -> TrainState:
        """The newest checkpoint; the data go on after the batches taken since."""
        self.checkpoints.wait()
        back = max(self.checkpoints.steps, default=None)
        self._returns[back] += 1
        if back is None or self._returns[back] == _HOPELESS:
            why = (
                "there is no checkpoint to roll back to"
                if back is None
                else f"{_HOPELESS} returns to step {back} did not help"
            )
            self._stop(f"a step up to {step} is bad (see {self.directory}/faults.jsonl), and {why}")
        report(f"rolling back from step {step} to {back}; the data go on")
        self.log.cut_back(back)
        return self.checkpoints.restore(back, self.program.abstract_state)

    def _stop(self, why: str) -> NoReturn:
        """End the run, once the checkpoint that it is left with is whole."""
        self.checkpoints.wait()
        raise TrainingError(why)

    def _missed(self, step: int) -> bool:
        """Whether the evaluation of a resumed step was given up."""
        due = step == self.config.steps or step % self.config.evaluate_every == 0
        return due and not gather_json(self.log.has(step, "validation/loss"))[0]

    def _report(self, step: int, metrics: Mapping[str, Any], pace: "_Pace", waited: float, progress: tqdm) -> None:
        """Log a step's values, and the pace since the last report."""
        values = by_kind(metrics)
        values |= {name: float(metrics[name]) for name in ("gradient_norm", "learning_rate")}
        values |= {"tokens": float(metrics["tokens"].sum()), **pace.take(waited)}
        progress.set_postfix_str(
            f"loss {values['loss']:.3f} "
            + " ".join(f"{kind} {values[f'loss_{kind}']:.2f}" for kind in TOKEN_KINDS[:4] if f"loss_{kind}" in values)
            + f" | {values['tokens_per_second']:,.0f} tok/s, MFU {100 * values['mfu']:.0f} %"
        )
        self.log.write(step, values)

    def _evaluate(self, state: TrainState, step: int, stop: Interruption, watchdog: Watchdog) -> None:
        """Held-out losses of each source and of all, beside the entropy that a unigram model could reach at best.

        Given up, with nothing logged, when the run is asked to stop.
        """
        total: collections.Counter = collections.Counter()
        logged: dict[str, dict[str, float]] = {}
        for name, batches in self.held_out().items():
            sums: collections.Counter = collections.Counter()
            for index, batch in enumerate(batches):
                if self.config.evaluate_batches is not None and index >= self.config.evaluate_batches:
                    break
                if stop.poll():
                    return
                watchdog.alive(f"evaluating on {name}, batch {index + 1}, after step {step}")
                for key, value in self.program.eval_step(state.params, put_batch(self.mesh, batch, self.rows)).items():
                    sums[key] = sums[key] + np.asarray(value, np.float64)
            if sums:
                logged[f"validation/{name}"] = by_kind(sums)
                for key, value in sums.items():
                    total[key] = total[key] + value
        if total:
            values = by_kind(total) | unigram_entropy(total["targets"], self.token_kinds)
            for prefix, record in logged.items():
                self.log.write(step, record, prefix)
            self.log.write(step, values, "validation")
            kinds = [kind for kind in TOKEN_KINDS if f"loss_{kind}" in values]
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
            jax.profiler.start_trace(str(self.directory / "profile"))
            self._profiling = True


class _Pace:
    """Tokens a second and utilisation since the last report, pauses left out."""

    def __init__(self, flops_per_token: float, peak: float):
        self._flops_per_token, self._peak = flops_per_token, peak
        self._restart()

    def _restart(self) -> None:
        self._tokens: list[jax.Array] = []
        self._start = time.perf_counter()

    def step(self, tokens: jax.Array) -> None:
        """Count a step: its tokens, still on their way."""
        self._tokens.append(tokens)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent within it does not count."""
        began = time.perf_counter()
        yield
        self._start += time.perf_counter() - began

    def take(self, waited: float) -> dict[str, float]:
        """The figures since the last call, `waited` seconds of which went into waiting for batches."""
        tokens = float(sum(np.asarray(part).sum() for part in self._tokens))
        seconds = time.perf_counter() - self._start
        rate = tokens / seconds
        values = {
            "tokens_per_second": rate,
            "mfu": rate * self._flops_per_token / self._peak,
            "data_wait": waited / seconds,
        }
        self._restart()
        return values
