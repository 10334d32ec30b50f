"""The job of `train_speech`: it trains the parts of a config one after the other, each with `training.loop`."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import yaml
from jax.sharding import NamedSharding, PartitionSpec

from spirit_jax import checkpoint, config
from spirit_jax.core import buckets
from spirit_jax.core.errors import JobError
from spirit_jax.core.files import read_json, write_file
from spirit_jax.core.paths import output_path
from spirit_jax.core.working_copy import FINISHED, output_directory
from spirit_jax.corpora.prepare import Joined, open_splits
from spirit_jax.corpora.utterance import CorpusError
from spirit_jax.parallel.mesh import make_mesh
from spirit_jax.parallel.processes import is_primary, report, wait_for_all
from spirit_jax.parallel.sharding import BatchLayout
from spirit_jax.speech_training.config import TrainSpeechConfig
from spirit_jax.speech_training.crops import Clips
from spirit_jax.speech_training.hubert import ENCODER
from spirit_jax.speech_training.part import Context, Part, Prepared
from spirit_jax.speech_training.parts import parts
from spirit_jax.speech_training.quantizers import PHONETIC
from spirit_jax.training.checkpoints import RunCheckpoints
from spirit_jax.training.checks import RunError, check_resumable, stored_config
from spirit_jax.training.config import LoopConfig
from spirit_jax.training.loop import RunOutputs, train
from spirit_jax.training.metrics import MetricsLog
from spirit_jax.training.run_lock import hold_run
from spirit_jax.training.state import TrainState
from spirit_jax.training.step import TrainStep
from spirit_jax.training.task import Task

_ATOMIC = (
    f"{checkpoint.SPEECH_TOKENIZER}/*",
    f"*/{checkpoint.STEPS}/*",
    *(f"*/{name}" for name in (ENCODER, PHONETIC, "contours", "labels", "targets", "units")),
)
"""Folders of a run that appear in one atomic step: finished parts, steps, and what a part keeps for later."""


class PartUnfinished(JobError):
    """A part was interrupted, so that the parts after it cannot be trained yet."""


def run(settings: TrainSpeechConfig) -> None:
    """Train every part that is not finished. No other process can train in the run directory meanwhile.

    Raises:
        SpiritError: the config does not fit the devices, the corpora or the run directory, or a part cannot continue.
    """
    chosen = parts(settings)
    if not chosen:
        raise RunError("nothing to train: give the config a section such as hubert_1")
    if buckets.is_bucket(settings.run_directory) and jax.process_count() > 1:
        raise RunError(
            f"run_directory {settings.run_directory}: the processes of a job write their parts of a step into one "
            "directory; name one that all hosts share, or train in one process"
        )
    run_directory = output_path(settings.run_directory, "run_directory")
    with (
        hold_run(run_directory) as check,
        output_directory(run_directory, "run_directory", atomic=_ATOMIC) as directory,
    ):
        train_clips, held_out = open_clips(settings)
        if is_primary():
            write_file(directory / "config.yaml", yaml.safe_dump(config.to_dict(settings), sort_keys=False))
        for part in chosen:
            context = Context(
                run=directory,
                directory=directory / part.name,
                train=train_clips,
                held_out=held_out,
                seed=settings.seed,
                data={
                    "corpora": settings.corpora,
                    "validation_fraction": settings.validation_fraction,
                    "seed": settings.seed,
                    "clips": [len(train_clips), len(held_out)],
                },
                spike_sigmas=settings.faults.spike_sigmas,
            )
            train_part(part, context, settings, _sections(settings, chosen, part), check)


def open_clips(settings: TrainSpeechConfig) -> tuple[Clips, Clips]:
    """The clips to learn from and those to measure on.

    Raises:
        CorpusError: a corpus cannot be used, or has no speech.
    """
    splits = [open_splits(source, settings.validation_fraction) for source in settings.corpora]
    mute = [corpus.name for corpus, *_ in splits if not corpus.has_speech]
    if mute:
        raise CorpusError(f"corpora: {', '.join(mute)} has no speech")
    memory = int(settings.cache_gb * 2**30)
    trained = Clips(Joined([corpus for corpus, *_ in splits]), memory=memory)
    validation = [corpus for _, *rest in splits for corpus in rest]
    return trained, Clips(Joined(validation) if validation else [], memory=memory)


def _sections(settings: TrainSpeechConfig, chosen: list[Part], part: Part) -> dict[str, Any]:
    """The sections of the parts up to one, whose own is the last, as plain values."""
    values = config.to_dict(settings)
    # The rounds of a section, such as quantizer_1, are parts of their own.
    names = [each.name if each.name in values else each.name.rpartition("_")[0] for each in chosen]
    return {name: values[name] for name in names[: chosen.index(part) + 1]}


def _mutable(sections: Mapping[str, Any]) -> set[str]:
    """Fields that may change when a part resumes. The run length of an earlier part may not: labels come from it."""
    *_, own = sections
    intervals = [field.name for field in dataclasses.fields(LoopConfig) if field.name != "steps"]
    found = {f"{name}/accumulate" for name in sections} | {f"{own}/loop"}
    return found | {f"{name}/loop/{field}" for name in sections for field in intervals}


def train_part(
    part: Part, context: Context, settings: TrainSpeechConfig, sections: Mapping[str, Any], check: Callable[[], None]
) -> None:
    """Train a part, or continue its training, unless it is finished.

    Args:
        part: what is trained.
        context: where, and on what.
        settings: the run.
        sections: the sections of the parts up to this one, as plain values.
        check: raises if the run directory is removed.

    Raises:
        PartUnfinished: a signal stopped it; the last state is saved.
    """
    directory, loop = context.directory, part.loop
    identity = {**context.data, **sections}
    finished = (directory / FINISHED).is_file()
    if finished or checkpoint.latest_step(directory) is not None:
        remedy = "choose another run_directory, or remove the folders of this part and of those after it"
        check_resumable(str(directory), stored_config(directory), identity, _mutable(sections), remedy)
    if _is_finished(directory, loop.steps):
        report(f"{part.name}: finished, {loop.steps} steps")
        return
    mesh = make_mesh(settings.mesh, rows=part.rows)
    layout = BatchLayout(mesh, part.rows, part.accumulate)
    if is_primary():
        directory.mkdir(parents=True, exist_ok=True)
        report(f"{part.name}: preparing in {directory}")
    prepared = part.prepare(context)
    if is_primary():
        checkpoint.write_config(directory, identity)
    if prepared is None:
        _finish(directory, loop.steps)
        return
    frozen = prepared.frozen
    if frozen is not None:
        whole = NamedSharding(mesh, PartitionSpec())
        frozen = dataclasses.replace(frozen, params=jax.device_put(frozen.params, whole))
    step = TrainStep(prepared.rule, layout, frozen)
    checkpoints = RunCheckpoints(directory, settings.checkpoint, {"config": identity}, params=checkpoint.PARAMS)
    state, streams = _first_state(step, checkpoints, settings.seed)
    share = layout.share()
    first = int(state.step)
    log = MetricsLog(directory, first, active=is_primary())
    outputs = RunOutputs(
        directory=directory,
        log=log,
        checkpoints=checkpoints,
        sample=prepared.sample or (lambda params, step: None),
        measure=prepared.measure,
        check=check,
    )
    _report_start(part, prepared, step, first)
    task = Task(
        step=step,
        summary=prepared.summary,
        batches=prepared.batches(share, streams),
        held_out=lambda: prepared.held_out(share),
    )
    state = train(state, task, outputs, config=loop, faults=settings.faults)
    log.close()
    for clips, split in ((context.train, "training"), (context.held_out, "validation")):
        if clips.skipped:
            report(f"{part.name}: {len(clips.skipped)} of {len(clips)} {split} clips could not be used")
    if int(state.step) < loop.steps:
        raise PartUnfinished(f"{part.name}: stopped at step {int(state.step)} of {loop.steps}")
    if is_primary():
        prepared.finish(jax.device_get(state.params))
    _finish(directory, loop.steps)


def _finish(directory: pathlib.Path, steps: int) -> None:
    """Note that a part is trained and written."""
    if is_primary():
        write_file(directory / FINISHED, json.dumps({"steps": steps}) + "\n")
    wait_for_all(f"{directory.name} finished")


def _is_finished(directory: pathlib.Path, steps: int) -> bool:
    """Whether a part was trained for that many steps and written."""
    path = directory / FINISHED
    return path.is_file() and read_json(path).get("steps") == steps


def _first_state(step: TrainStep, checkpoints: RunCheckpoints, seed: int) -> tuple[TrainState, Any]:
    """The state to start from and the state of the data stream: of the newest checkpoint, or fresh ones."""
    if checkpoints.steps:
        newest = checkpoints.steps[-1]
        return checkpoints.restore(newest, step.abstract_state), checkpoints.read_metadata(newest)["data"]
    return step.init(jax.random.key(seed)), None


def _report_start(part: Part, prepared: Prepared, step: TrainStep, first: int) -> None:
    count = sum(leaf.size for leaf in jax.tree.leaves(step.abstract_state.params))
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind} device(s)"
    report(
        f"{part.name}: {'resuming' if first else 'starting'} at step {first} of {part.loop.steps}, "
        f"{count / 1e6:,.1f} M parameters on {devices}, {part.rows} rows a step"
    )
