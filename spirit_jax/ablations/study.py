"""Trains and evaluates the models of a study one after the other, and writes the report."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from spirit_jax import checkpoint, config
from spirit_jax.ablations.config import AblateConfig
from spirit_jax.ablations.report import Results, write_report
from spirit_jax.core import buckets
from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import read_json, write_file
from spirit_jax.core.leases import hold_anywhere
from spirit_jax.core.working_copy import output_directory
from spirit_jax.corpora import open_input
from spirit_jax.corpora.encoding import encode_split
from spirit_jax.corpora.prepare import Joined, open_splits, train_text_tokenizer
from spirit_jax.corpora.prepare_config import PrepareConfig
from spirit_jax.evaluation.likelihood import LikelihoodTask, read_outcomes
from spirit_jax.evaluation.run import RESULTS, evaluate
from spirit_jax.evaluation.task import TaskSettings, log_path
from spirit_jax.evaluation.tasks import check_names, select
from spirit_jax.evaluation.units import UnitCache
from spirit_jax.inference.spiritlm import SpiritLM
from spirit_jax.run import job
from spirit_jax.run.config import TrainConfig
from spirit_jax.speech import SpeechTokenizer, train_speech_tokenizer
from spirit_jax.vocabulary import Variant

INPUTS, RUNS, EVALUATION = "inputs", "runs", "evaluation"
"""Folders of a study: what all runs share, the runs, and in each run its results."""

_INPUTS_IN_PATH = "{inputs}"
_TEXT_TOKENIZERS: dict[Variant, str] = {"base": "tokenizer_base", "expressive": "tokenizer_expressive"}
_ATOMIC = (
    *(f"{INPUTS}/{name}" for name in ("tokenizer_*", checkpoint.SPEECH_TOKENIZER, "records/*")),
    *(f"{RUNS}/*/{name}" for name in (EVALUATION, checkpoint.TOKENIZER, checkpoint.SPEECH_TOKENIZER)),
    f"{RUNS}/*/{checkpoint.STEPS}/*",
)
"""Folders that a study uses when they are complete, and makes again otherwise."""
_SEED_OF_INPUTS = 0
_MADE_WITH = "prepare.json"  # the options that the inputs were made with


class StudyError(SpiritError):
    """A study that cannot be run as its config asks; the message names what."""


def run_study(settings: AblateConfig) -> str:
    """Train and evaluate everything that is not finished, write the report after each model, and return its text.

    An output in a bucket is written on this machine and uploaded at intervals and at the end. One process at a time
    works on it.

    Raises:
        SpiritError: a config, corpus, task or run cannot be used; names it.
    """
    figures = read_figures(settings)
    with contextlib.ExitStack() as opened:
        if buckets.is_bucket(settings.output):  # on a disk, each run has a lock of its own
            opened.enter_context(hold_anywhere(settings.output, ".ablate.lock", "ablation"))
        output = opened.enter_context(output_directory(settings.output, "output", atomic=_ATOMIC))
        return finish_study(settings, figures, output)


def finish_study(settings: AblateConfig, figures: Mapping[str, "StudyFigure"], output: pathlib.Path) -> str:
    """Do what `run_study` does, with the figures of the tasks and a directory on this machine."""
    runs = {  # seed by seed, so that a study that is stopped early has all conditions
        (name, seed): training_config(settings, output, name, seed)
        for seed in range(max(settings.count(name) for name in settings.conditions))
        for name in settings.conditions
        if seed < settings.count(name)
    }
    wanted = with_starts(settings)
    make_inputs(settings.prepare, output / INPUTS, sorted({runs[name, 0].variant for name in wanted}))

    def report() -> str:
        chances = {name: figure.task.chance for name, figure in figures.items()}
        return write_report(settings, read_results(settings, figures, output), chances, output)

    text = report()
    for name, seed in runs:
        if name not in wanted:
            continue
        directory = run_directory(output, name, seed)
        if not is_trained(runs[name, seed]):
            print(f"{name}, seed {seed}")
            job.run(runs[name, seed])
        if not is_evaluated(figures, directory):
            evaluate_run(settings, output, directory)
            text = report()
    return text


@dataclasses.dataclass(frozen=True)
class StudyFigure:
    """A task in one direction."""

    task: LikelihoodTask
    direction: str
    fingerprint: str
    """Identifies the items; results on other items are not used."""

    def log(self, run: pathlib.Path) -> pathlib.Path:
        """The log of the items in a run."""
        return log_path(run / EVALUATION, self.task.name, self.direction)


def read_figures(settings: AblateConfig) -> dict[str, StudyFigure]:
    """The figures of the tasks by name, TASK:DIRECTION. Tasks, data and comparisons are checked before any training.

    Raises:
        SpiritError: a task is unknown or has no likelihoods, its data are missing, or a comparison names a figure that
            no task gives.
    """
    check_names(settings.data, {})
    figures: dict[str, StudyFigure] = {}
    for task, directions in select(settings.tasks):
        if not isinstance(task, LikelihoodTask):
            raise StudyError(f"tasks: {task.name} compares no likelihoods; a study needs an outcome for every item")
        for direction in directions:
            _, fingerprint = task.items(direction, TaskSettings(data=settings.data))
            figures[f"{task.name}:{direction}"] = StudyFigure(task, direction, fingerprint)
    for comparison in settings.comparisons:
        for figure in comparison.figures:
            if figure not in figures:
                raise StudyError(f"comparisons: {figure!r} is none of the figures {', '.join(sorted(figures))}")
    return figures


def with_starts(settings: AblateConfig) -> set[str]:
    """The conditions to train: those that are asked for, and those whose weights they need."""
    wanted = set(settings.only or settings.conditions)
    for name in reversed(settings.conditions):  # a start comes before those that need it
        start = settings.conditions[name].start
        if name in wanted and start is not None:
            wanted.add(start)
    return wanted


def run_directory(output: pathlib.Path, condition: str, seed: int) -> pathlib.Path:
    """The training run of a condition and seed."""
    return output / RUNS / f"{condition}-{seed}"


def training_config(settings: AblateConfig, output: pathlib.Path, condition: str, seed: int) -> TrainConfig:
    """The config of a run: that of its files, with the study's inputs, the seed and a directory.

    Raises:
        StudyError: a file or a value in it cannot be used; names the condition.
    """
    inputs = output / INPUTS
    first, *rest = settings.conditions[condition].configs
    overrides = [word for path in rest for word in ("--config", path)]
    overrides += ["--seed", str(seed), "--run_directory", str(run_directory(output, condition, seed))]
    start = settings.conditions[condition].start
    if start is not None:
        before = training_config(settings, output, start, seed)
        step = pathlib.Path(before.run_directory) / checkpoint.STEPS / str(before.loop.steps)
        overrides += ["--init_from", str(step)]
    try:
        found = config.load(TrainConfig, config.find_config(first), [*overrides, "--tokenizer", str(inputs)])
    except config.ConfigError as error:
        raise StudyError(f"conditions.{condition}: {error}") from error
    sources = {
        name: dataclasses.replace(source, path=source.path.replace(_INPUTS_IN_PATH, str(inputs)))
        for name, source in found.data.sources.items()
    }
    return dataclasses.replace(
        found,
        tokenizer=str(inputs / _TEXT_TOKENIZERS[found.variant]),
        speech_tokenizer=str(inputs),
        data=dataclasses.replace(found.data, sources=sources),
    )


def make_inputs(prepare: PrepareConfig, inputs: pathlib.Path, variants: Sequence[Variant]) -> None:
    """Make the tokenizers and records that all runs share. Those that are there are kept.

    Raises:
        SpiritError: a corpus is missing, cannot be used or is too small, or the inputs were made with other options.
    """
    _check_options(config.to_dict(prepare), inputs)
    corpora = [open_input(source, "train") for source in prepare.corpora]
    for variant in variants:
        if not (inputs / _TEXT_TOKENIZERS[variant]).exists():
            train_text_tokenizer(corpora, prepare.text_pieces, variant).save(inputs / _TEXT_TOKENIZERS[variant])
    spoken = [corpus for corpus in corpora if corpus.has_speech]
    if spoken and not (inputs / checkpoint.SPEECH_TOKENIZER).exists():
        train_speech_tokenizer(Joined(spoken), prepare.speech_tokenizer, inputs, _SEED_OF_INPUTS)
    tokenizer = SpeechTokenizer.from_pretrained(inputs, "expressive") if spoken else None
    for source in prepare.corpora:
        for part in open_splits(source, prepare.validation_fraction):
            encode_split(part, tokenizer if part.has_speech else None, inputs / "records" / part.name)


def _check_options(options: Mapping[str, Any], inputs: pathlib.Path) -> None:
    """Note the options that inputs are made with, or refuse those that differ from the noted ones."""
    noted = inputs / _MADE_WITH
    if not noted.exists():
        write_file(noted, json.dumps(options, indent=1))
        return
    before = read_json(noted, StudyError)
    if before != options:
        changed = [name for name in options if not isinstance(before, dict) or options[name] != before.get(name)]
        raise StudyError(
            f"{inputs} was made with other options ({', '.join(changed)}): choose another output for this study"
        )


def is_trained(run: TrainConfig) -> bool:
    """Whether the run has made its last step by this config; training itself says which option has changed.

    Raises:
        StudyError: the run was started with another number of steps. Training would continue it, and its model would
            not be like one that was trained for the new number from the start.
    """
    directory = pathlib.Path(run.run_directory)
    last = checkpoint.latest_step(directory)
    if last is None:
        return False
    before = checkpoint.read_config(directory)
    if before["loop"]["steps"] != run.loop.steps:
        raise StudyError(
            f"{directory} is a run of {before['loop']['steps']} steps, and the study asks for {run.loop.steps}: choose "
            "another output for this study"
        )
    return int(last.name) >= run.loop.steps and _moved(before, directory) == checkpoint.flatten(config.to_dict(run))


def _moved(before: Mapping[str, Any], directory: pathlib.Path) -> dict[str, Any]:
    """The flat config of a run as it would be if the study had been in this directory from the start.

    Args:
        before: the config that the run was trained by.
        directory: the run directory now.
    """
    old, new = (f"{pathlib.Path(place).parents[1]}/" for place in (before["run_directory"], directory))

    def moved(value: Any) -> Any:
        return new + value.removeprefix(old) if isinstance(value, str) and value.startswith(old) else value

    return {key: moved(value) for key, value in checkpoint.flatten(dict(before)).items()}


def is_evaluated(figures: Mapping[str, StudyFigure], run: pathlib.Path) -> bool:
    """Whether a run has the results of its last step on the items of all figures.

    The results of a task are written when it is finished.
    """
    results, last = run / EVALUATION / RESULTS, checkpoint.latest_step(run)
    if last is None or not results.exists():
        return False
    found = read_json(results, StudyError)
    if pathlib.Path(found["model"]["checkpoint"]).name != last.name:
        return False
    data = {name: task["data"] for name, task in found["tasks"].items()}
    return all(
        data.get(figure.task.name, {}).get(f"{figure.direction} fingerprint") == figure.fingerprint
        for figure in figures.values()
    )


def evaluate_run(settings: AblateConfig, output: pathlib.Path, run: pathlib.Path) -> None:
    """Evaluate the last step of a run. All runs share the units of the recordings."""
    last = checkpoint.latest_step(run)
    assert last is not None  # it was trained to its end
    model = SpiritLM.from_pretrained(last)
    assert model.speech_tokenizer is not None
    units = UnitCache(model.speech_tokenizer, model.vocabulary, output / INPUTS / "units.jsonl")
    task_settings = TaskSettings(data=settings.data)
    evaluate(model, settings.tasks, run / EVALUATION, task_settings, last, overwrite=True, units=units)


def read_results(settings: AblateConfig, figures: Mapping[str, StudyFigure], output: pathlib.Path) -> Results:
    """The outcomes of all finished models, on the same items."""
    results: Results = {}
    for name in settings.conditions:
        for seed in range(settings.count(name)):
            directory = run_directory(output, name, seed)
            if not is_evaluated(figures, directory):
                continue
            for key, figure in figures.items():
                outcomes = read_outcomes(figure.log(directory), figure.task.averaging)
                results.setdefault(key, {}).setdefault(name, []).append(outcomes)
    return results
