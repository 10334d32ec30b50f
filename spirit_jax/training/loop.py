"""The training loop, for the language model and for every other task.

A run resumes in this order: the newest intact step gives parameters, optimizer and the state of the data streams; the
log is cut back to that step; an evaluation that was given up is repeated; the loop continues with the batch that an
uninterrupted run would take next.
"""

import collections
import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Mapping

import jax
from tqdm import tqdm

from spirit_jax.parallel.processes import gather_json, is_primary, report
from spirit_jax.training.bad_steps import BadStepPolicy, PendingStep
from spirit_jax.training.checkpoints import RunCheckpoints
from spirit_jax.training.config import FaultConfig, LoopConfig
from spirit_jax.training.evaluation import TOTAL, evaluate
from spirit_jax.training.feed import Feed
from spirit_jax.training.goodput import Goodput
from spirit_jax.training.interruption import Interruption
from spirit_jax.training.metrics import MetricsLog
from spirit_jax.training.pace import Pace, peak_flops
from spirit_jax.training.state import Metrics, Params, TrainState
from spirit_jax.training.task import Summary, Task
from spirit_jax.training.watchdog import Watchdog

_STEPS_AHEAD = 2  # Steps that are started while an earlier one runs, so that the devices never wait for the host.
_MEASURED = "evaluation"  # Prefix of the figures of `RunOutputs.measure`.


@dataclasses.dataclass(frozen=True)
class RunOutputs:
    """Places of a run's results."""

    directory: pathlib.Path
    """The run directory."""
    log: MetricsLog
    checkpoints: RunCheckpoints
    sample: Callable[[Params, int], None]
    """Writes samples of these parameters after this step."""
    measure: Callable[[Params, int], Mapping[str, float]] | None = None
    """Returns further values of these parameters after this step, which are logged with every evaluation."""
    check: Callable[[], None] = lambda: None
    """Raises an error if the run directory was removed. The loop calls it before it writes."""
    goodput: Goodput | None = None
    """The time of the run by kind, from the start of the process; None counts from the start of the loop."""


def train(state: TrainState, task: Task, outputs: RunOutputs, *, config: LoopConfig, faults: FaultConfig) -> TrainState:
    """Train to the last step, or until a signal asks to stop; the last state is saved either way.

    Args:
        state: the state to start from, fresh or restored.
        task: what is trained, and its data.
        outputs: the log, checkpoints and samples of the run.
        config: run length and intervals.
        faults: what to do about bad steps and hung processes.

    Returns:
        The last state.

    Raises:
        TrainingError: the policy does not skip a bad step, or too many steps in a row are bad.
    """
    step, checkpoints = int(state.step), outputs.checkpoints
    pace = Pace(task.summary.unit, task.summary.flops_per_unit, jax.device_count() * peak_flops(jax.devices()[0]))
    progress = _Progress(step, config.steps)
    policy = BadStepPolicy(faults, outputs.directory, checkpoints)
    profiler = _Profiler(outputs.directory / "profile", config)
    # Waiting for a batch can only be given up if no other process has continued with its own batch.
    give_up = Interruption.poll if jax.process_count() == 1 else lambda _: False
    feed = Feed(task.batches)
    goodput = outputs.goodput or Goodput(outputs.directory, is_primary())
    goodput.begin_steps(step)
    first = step
    with Interruption() as stop, Watchdog(faults.hang_timeout) as watchdog, progress, contextlib.closing(feed):

        def evaluate_after(step: int, params: Params) -> None:
            """Log the values that the log does not hold yet. A resumed run lacks those that were given up."""
            if not _is_logged(outputs.log, step, f"{TOTAL}/loss"):
                records = evaluate(
                    task,
                    params,
                    max_batches=config.evaluate_batches,
                    progress=lambda doing: watchdog.alive(f"{doing}, after step {step}"),
                    stop=stop.poll,
                )
                for prefix, values in (records or {}).items():
                    outputs.log.write(step, values, prefix)
                if records and is_primary():
                    tqdm.write(f"step {step}: {_evaluation_line(task.summary, records)}")
            if outputs.measure and not stop.poll() and not _is_logged(outputs.log, step, f"{_MEASURED}/"):
                watchdog.alive(f"measuring {', '.join(config.evaluate_tasks) or 'held-out data'} after step {step}")
                outputs.log.write(step, outputs.measure(params, step), _MEASURED)

        if config.evaluate_every and (step == 0 or config.is_due(step, config.evaluate_every)):
            with goodput.during("evaluation"):
                evaluate_after(step, state.params)
        while step < config.steps and not stop.poll():
            profiler.before_step(step)
            watchdog.alive(f"waiting for the batch of step {step + 1}")
            streams = feed.state
            with goodput.during("data"):
                batch = feed.next(lambda: give_up(stop))
            if batch is None:
                break
            watchdog.alive(f"in step {step + 1}")
            with goodput.during("compilation" if step == first else "steps"):
                state, metrics = task.step.train_step(state, task.step.put_batch(batch))
                step += 1
                progress.started(metrics)
            stop.first_step_is_done()
            pace.add(metrics[task.summary.unit])
            policy.add(PendingStep(step, batch=batch, streams=streams, metrics=metrics))
            log_due, save_due, evaluate_due, sample_due = (
                config.is_due(step, interval)
                for interval in (config.log_every, checkpoints.every, config.evaluate_every, config.sample_every)
            )
            if not (log_due or save_due or evaluate_due or sample_due):
                continue  # Nothing is fetched, so that the devices always have the next step to work on.
            if policy.check_pending_steps():
                state, step = _roll_back(step, task, policy, outputs, progress)
                goodput.begin_steps(step)
                continue
            progress.all_done()
            outputs.check()
            goodput.save(step)
            if log_due:
                values = _step_values(metrics, task.summary) | pace.take(feed.take_waited())
                progress.describe(task.summary.progress_line(values))
                outputs.log.write(step, values)
            with pace.paused():
                if save_due:
                    watchdog.alive(f"saving step {step}")
                    with goodput.during("checkpoints"):
                        checkpoints.save(state, feed.state)
                with goodput.during("evaluation"):
                    if evaluate_due and not stop.poll():
                        evaluate_after(step, state.params)
                    if sample_due and not stop.poll():
                        watchdog.alive(f"sampling after step {step}")
                        outputs.sample(state.params, step)
        profiler.before_step(step)
        if policy.check_pending_steps():
            state, step = _roll_back(step, task, policy, outputs, progress)
            goodput.begin_steps(step)
        progress.all_done()
        outputs.check()
        watchdog.alive(f"saving step {step}")
        if stop.signal:
            report(f"{stop.signal}: saving step {step} and stopping; the same command continues from there")
        with goodput.during("checkpoints"):
            checkpoints.save(state, feed.state)
            checkpoints.close()
        goodput.save(step)
        report(str(goodput))
    return state


def _is_logged(log: MetricsLog, step: int, start: str) -> bool:
    """Whether the log of the primary process holds a value of this step whose name starts so."""
    return gather_json(log.has(step, start))[0]


def _roll_back(
    step: int, task: Task, policy: BadStepPolicy, outputs: RunOutputs, progress: "_Progress"
) -> tuple[TrainState, int]:
    """Return to the newest checkpoint, in the log too; returns its state and step."""
    state = policy.roll_back(step, task.step.abstract_state)
    step = int(state.step)
    outputs.log.cut_back(step)
    progress.return_to(step)
    return state, step


def _evaluation_line(summary: Summary, records: Mapping[str, Mapping[str, float]]) -> str:
    """One line about an evaluation: over all sources, and the loss on each."""
    sources = {name.removeprefix(f"{TOTAL}/"): values["loss"] for name, values in records.items() if name != TOTAL}
    losses = ", ".join(f"{name} {loss:.3f}" for name, loss in sources.items())
    return f"{summary.evaluation_line(records[TOTAL])}; loss by source: {losses}"


def _step_values(metrics: Metrics, summary: Summary) -> dict[str, float]:
    """A step's values for the log."""
    values = summary.train_values(metrics)
    values |= {name: float(metrics[name]) for name in ("gradient_norm", "learning_rate")}
    return values | {summary.unit: float(metrics[summary.unit].sum())}


class _Progress(contextlib.AbstractContextManager):
    """The progress bar, which moves when a step is done on the devices, not when it is started."""

    def __init__(self, step: int, steps: int):
        self._bar = tqdm(total=steps, initial=step, unit="step", disable=not is_primary(), dynamic_ncols=True)
        self._running: collections.deque[Metrics] = collections.deque()
        self._first = True

    def __exit__(self, *_) -> None:
        self._bar.close()

    def started(self, metrics: Metrics) -> None:
        """Note a step that was started, and wait until no more than a few are running; the first one is waited for."""
        self._running.append(metrics)
        while len(self._running) > (0 if self._first else _STEPS_AHEAD):
            jax.block_until_ready(self._running.popleft()["bad"])
            self._bar.update()
        self._first = False

    def all_done(self) -> None:
        """Note that all steps are done, because their metrics were read."""
        self._bar.update(len(self._running))
        self._running.clear()

    def describe(self, text: str) -> None:
        """Show a text behind the bar."""
        self._bar.set_postfix_str(text)

    def return_to(self, step: int) -> None:
        """Move the bar back to a step."""
        self._running.clear()
        self._bar.reset()
        self._bar.update(step)


class _Profiler:
    """Records the configured steps with `jax.profiler`; a run that ends earlier ends the profile too."""

    def __init__(self, directory: pathlib.Path, config: LoopConfig):
        self._directory, self._last = directory, config.steps
        self._start, self._count = config.profile_start, config.profile_steps
        self._running = False

    def before_step(self, step: int) -> None:
        """Start or stop recording after `step` updates, before the next one."""
        if self._start is None:
            return
        if self._running and (step >= self._start + self._count or step == self._last):
            jax.profiler.stop_trace()
            self._running = False
        elif step == self._start and step < self._last:
            jax.profiler.start_trace(str(self._directory))
            self._running = True
