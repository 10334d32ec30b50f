"""Trains and evaluates the models of a study one after the other, and writes the report."""

import dataclasses
import pathlib
from collections.abc import Sequence

from spirit_jax import checkpoint, config
from spirit_jax.ablations.config import AblateConfig
from spirit_jax.ablations.report import Results, write_report
from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import read_json
from spirit_jax.corpora import open_input
from spirit_jax.corpora.encoding import encode_split
from spirit_jax.corpora.prepare import Joined, open_splits, train_text_tokenizer
from spirit_jax.corpora.prepare_config import PrepareConfig
from spirit_jax.evaluation.likelihood import LikelihoodTask, read_outcomes
from spirit_jax.evaluation.run import RESULTS, evaluate
from spirit_jax.evaluation.task import TaskSettings, data_directory
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
_SEED_OF_INPUTS = 0


class StudyError(SpiritError):
    """A study that cannot be run as its config asks; the message names what."""


def run_study(settings: AblateConfig) -> str:
    """Train and evaluate everything that is not finished, write the report after each model, and return its text.

    Raises:
        SpiritError: a config, corpus, task or run cannot be used; names it.
    """
    output = pathlib.Path(settings.output).expanduser()
    check_tasks(settings)
    runs = {  # seed by seed, so that a study that is stopped early has all conditions
        (name, seed): training_config(settings, output, name, seed)
        for seed in range(max(settings.count(name) for name in settings.conditions))
        for name in settings.conditions
        if seed < settings.count(name)
    }
    wanted = with_starts(settings)
    make_inputs(settings.prepare, output / INPUTS, sorted({runs[name, 0].variant for name in wanted}))
    report = write_report(settings, read_results(settings, output), output)
    for name, seed in runs:
        if name not in wanted:
            continue
        directory = run_directory(output, name, seed)
        if not is_trained(runs[name, seed]):
            print(f"{name}, seed {seed}")
            job.run(runs[name, seed])
        if not is_evaluated(settings, directory):
            evaluate_run(settings, output, directory)
            report = write_report(settings, read_results(settings, output), output)
    return report


def check_tasks(settings: AblateConfig) -> None:
    """Check the tasks, their data and the figures of comparisons before anything is trained.

    Raises:
        SpiritError: a task is unknown or has no likelihoods, its data are missing, or a comparison names a figure that
            no task gives.
    """
    check_names(settings.data, {})
    figures = set()
    for task, directions in select(settings.tasks):
        if not isinstance(task, LikelihoodTask):
            raise StudyError(f"tasks: {task.name} compares no likelihoods; a study needs an outcome for every item")
        data_directory(task.name, task.about, TaskSettings(data=settings.data))
        figures |= {f"{task.name}:{direction}" for direction in directions}
    for comparison in settings.comparisons:
        for figure in comparison.figures:
            if figure not in figures:
                raise StudyError(f"comparisons: {figure!r} is none of the figures {', '.join(sorted(figures))}")


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
        SpiritError: a corpus is missing, cannot be used or is too small.
    """
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


def is_trained(run: TrainConfig) -> bool:
    """Whether the run has made its last step by this config; training itself says which option has changed."""
    directory = pathlib.Path(run.run_directory)
    last = checkpoint.latest_step(directory)
    if last is None or int(last.name) < run.loop.steps:
        return False
    return checkpoint.read_config(directory) == config.to_dict(run)


def is_evaluated(settings: AblateConfig, run: pathlib.Path) -> bool:
    """Whether a run has the results of all tasks; those of a task are written when it is finished."""
    results = run / EVALUATION / RESULTS
    if not results.exists():
        return False
    found = read_json(results, StudyError)["tasks"]
    figures = {f"{figure['task']}:{figure['direction']}" for task in found.values() for figure in task["figures"]}
    return figures >= set(_logs(settings, run))


def _logs(settings: AblateConfig, run: pathlib.Path) -> dict[str, pathlib.Path]:
    """The log of items of each figure."""
    items = run / EVALUATION / "items"
    return {
        f"{task.name}:{direction}": items / f"{task.name}.{direction.replace('>', '_to_')}.jsonl"
        for task, directions in select(settings.tasks)
        for direction in directions
    }


def evaluate_run(settings: AblateConfig, output: pathlib.Path, run: pathlib.Path) -> None:
    """Evaluate the last step of a run. All runs share the units of the recordings."""
    last = checkpoint.latest_step(run)
    assert last is not None  # it was trained to its end
    model = SpiritLM.from_pretrained(last)
    assert model.speech_tokenizer is not None
    units = UnitCache(model.speech_tokenizer, model.vocabulary, output / INPUTS / "units.jsonl")
    task_settings = TaskSettings(data=settings.data)
    evaluate(model, settings.tasks, run / EVALUATION, task_settings, last, overwrite=True, units=units)


def read_results(settings: AblateConfig, output: pathlib.Path) -> Results:
    """The outcomes of all finished models."""
    results: Results = {}
    for name in settings.conditions:
        for seed in range(settings.count(name)):
            directory = run_directory(output, name, seed)
            if not is_evaluated(settings, directory):
                continue
            for figure, path in _logs(settings, directory).items():
                results.setdefault(figure, {}).setdefault(name, []).append(read_outcomes(path))
    return results
