"""The protocol of a task, and what tasks share: settings, the model with its caches, figures."""

import dataclasses
import hashlib
import importlib.util
import json
import math
import os
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from spirit_jax.evaluation.item_log import ItemLog
from spirit_jax.evaluation.items import BenchmarkError
from spirit_jax.evaluation.rules import Estimate
from spirit_jax.evaluation.units import UnitCache
from spirit_jax.inference.spiritlm import SpiritLM

Item = TypeVar("Item")

BUNDLED = pathlib.Path(__file__).parent / "bundled" / "mini"
"""The bundled benchmark, in the official layouts; `tools/make_mini_benchmark.py` made it."""


@dataclasses.dataclass(frozen=True)
class About:
    """Description of a task that a user reads before running it."""

    title: str
    """The measured ability, in a few words."""
    directions: tuple[str, ...] = ("",)
    """Variants by what is read and what is scored or generated: T text, S speech, S>T text after speech."""
    data: str = ""
    """The data, and the layout that is read."""
    source: str = ""
    """Origin of the data."""
    license: str = ""
    """License of the data."""
    default: pathlib.Path | str | None = None
    """Place of bundled data, used if the user names no other."""
    data_name: str = ""
    """Name of its data in `--data`, shared by tasks on the same data; "" is the task's name."""
    packages: tuple[str, ...] = ()
    """Packages beyond the core that it needs."""
    options: tuple[str, ...] = ()
    """Fields of `TaskSettings` that the user must name."""


@dataclasses.dataclass(frozen=True)
class TaskSettings:
    """Settings of an evaluation that tasks read, beside the model."""

    data: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Directory or file of a task's data, by the task's name."""
    limit: int | None = None
    """Items of each task and direction at most, spread over all; None takes all."""
    seed: int = 0
    """Seed of sampling, of the choice of few-shot examples, and of the bootstrap."""
    batch_tokens: int = 8192
    """Tokens of a batch of likelihood tasks."""
    slots: int = 16
    """Answers that are generated at once."""
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Prompt file of a task, by the task's name; None takes the one in configs/evaluation/."""
    recognizer: str = "moonshine"
    """Speech recognizer: moonshine or whisper:DIR."""
    speech_classifier: str = "tone"
    """Sentiment of speech: the built-in `tone`, or a Hugging Face directory."""
    text_classifier: str = "words"
    """Sentiment of text: the built-in `words`, or a Hugging Face directory."""
    style_classifier: str | None = None
    """Style of speech: a Hugging Face directory; None measures no style."""
    text_model: str | None = None
    """Gives transcripts a perplexity: a checkpoint or a Hugging Face directory; None measures none."""
    toxic_words: str | None = None
    """File of words and phrases to look for in continuations; None looks for none."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number of the results."""

    task: str
    direction: str
    measure: str
    """accuracy, WER, perplexity, ..."""
    estimate: Estimate
    group: str = ""
    """Part of the task; "" is all of it."""
    variant: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Settings of the measure that a reader could choose otherwise: normalization, softmax, averaging."""
    is_main: bool = False
    """Whether the main table shows it."""
    chance: float | None = None
    """The value of guessing."""
    is_fraction: bool = True
    """Whether the tables show it in percent."""
    unusable: int = 0
    """Items that could not be used and are not in the estimate."""
    note: str = ""
    """Conditions that a reader must know to compare the figure with others."""

    def to_json(self) -> dict[str, Any]:
        """The figure as JSON values; NaN becomes null."""
        values = dataclasses.asdict(self)
        numbers = values.pop("estimate")
        plain = {key: None if math.isnan(value) else value for key, value in numbers.items()}
        return {**values, **plain}


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """Results of a task."""

    figures: Sequence[Figure]
    unusable: Mapping[str, str]
    """The reason of each item that could not be used, by direction and id."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Everything beside model and data that the figures depend on: prompts, recognizer, normalization."""
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Place, fingerprint and number of items of the data."""
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Further files that were written, by what they are."""


def log_path(output: pathlib.Path, task: str, direction: str) -> pathlib.Path:
    """The log of a task and direction in the directory of an evaluation."""
    name = f"{task}.{direction.replace('>', '_to_')}" if direction else task
    return output / "items" / f"{name}.jsonl"


class Job:
    """A model under evaluation, with what tasks share.

    Attributes:
        model: the model.
        settings: of the tasks.
        output: directory of the results.
        units: encodes clips, each once.
    """

    def __init__(
        self,
        model: SpiritLM,
        settings: TaskSettings,
        output: pathlib.Path,
        model_fingerprint: str = "",
        overwrite: bool = False,
        units: UnitCache | None = None,
    ):
        """
        Args:
            model_fingerprint: identifies the model in logs.
            overwrite: replace the logs of other evaluations in the same directory.
            units: encodes clips; None makes a cache in the output directory.
        """
        self.model, self.settings, self.output = model, settings, output
        self._fingerprint, self._overwrite = model_fingerprint, overwrite
        path = output / "units.jsonl"
        self.units = UnitCache(model.speech_tokenizer, model.vocabulary, path) if units is None else units

    def log(self, task: str, direction: str, depends_on: Mapping[str, Any]) -> ItemLog:
        """Open the log of a task and direction.

        Args:
            depends_on: what its lines depend on beside the model, as JSON values.

        Raises:
            BenchmarkError: the log in the output directory is that of another evaluation.
        """
        job = {"model": self._fingerprint, **depends_on}
        return ItemLog(log_path(self.output, task, direction), job, self._overwrite)

    def report(self, message: str) -> None:
        """Print a line on standard error, above a progress bar if there is one."""
        tqdm.write(message, file=sys.stderr)

    def in_chunks(self, items: Sequence[Item], size: int, name: str, work: Callable[[Sequence[Item]], None]) -> None:
        """Call `work` on chunks of items, with a progress bar on terminals."""
        with tqdm(total=len(items), desc=name, unit="item", disable=None, delay=1) as bar:
            for first in range(0, len(items), size):
                chunk = items[first : first + size]
                work(chunk)
                bar.update(len(chunk))


class Task(Protocol):
    """Reads items, asks the model, and computes figures."""

    @property
    def name(self) -> str:
        """Name of the task in `--tasks`."""
        ...

    @property
    def about(self) -> About:
        """Description that a user reads before running the task."""
        ...

    def run(self, job: Job, directions: Sequence[str]) -> TaskResult:
        """Evaluate the model of a job in some of the task's directions.

        Raises:
            SpiritError: the data, or a part that the task needs, cannot be used; names it.
        """
        ...


def data_directory(task: str, about: About, settings: TaskSettings) -> pathlib.Path:
    """Return the directory of a task's data.

    Raises:
        BenchmarkError: the user named no place and none are bundled, or there is nothing.
    """
    name = about.data_name or task
    place = settings.data.get(name, about.default)
    if place is None:
        raise BenchmarkError(
            f"task {task} needs data that are not bundled: {about.data}; get them from {about.source} and say "
            f"--data.{name} DIR"
        )
    path = pathlib.Path(place).expanduser()
    if not path.exists():
        raise BenchmarkError(f"--data.{name} {path}: no such file or directory; expected {about.data}")
    return path


def corpus_source(task: str, about: About, settings: TaskSettings) -> str:
    """Return the source of a task's recordings: anything that `encode` takes, or the bundled corpus.

    Raises:
        BenchmarkError: the user named no place and none is bundled.
    """
    named = settings.data.get(task, about.default)
    return os.path.expanduser(named) if isinstance(named, str) else str(data_directory(task, about, settings))


def missing(task: Task, settings: TaskSettings) -> list[str]:
    """Requirements of a task that this machine lacks, in words; empty if the task can run."""
    lacking = []
    name = task.about.data_name or task.name
    named = settings.data.get(name, task.about.default)
    if named is None:
        lacking.append(f"data: --data.{name} DIR")
    elif isinstance(named, pathlib.Path) and not named.exists():
        lacking.append(f"data: {named} is not there")
    lacking += [f"--{name.replace('_', '-')}" for name in task.about.options if getattr(settings, name) is None]
    lacking += [f"package {name}" for name in task.about.packages if importlib.util.find_spec(name) is None]
    return lacking


def digest(content: Any) -> str:
    """sha256 (hex) of JSON values, paths as strings."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
