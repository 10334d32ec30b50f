"""Metrics during training: tasks of the evaluation after some steps, for the log of the run."""

import os
import pathlib
from collections.abc import Sequence

from jax.sharding import Mesh

from spirit_jax.checkpoint import CheckpointError
from spirit_jax.core.errors import SpiritError
from spirit_jax.evaluation.task import Job, TaskSettings
from spirit_jax.evaluation.tasks import select
from spirit_jax.evaluation.units import UnitCache
from spirit_jax.inference.spiritlm import SpiritLM
from spirit_jax.models.llama import LlamaConfig, Params
from spirit_jax.speech.tokenizer import SpeechTokenizer
from spirit_jax.vocabulary import Vocabulary


class TaskMetrics:
    """Runs tasks on the parameters of a step, and returns their main figures.

    The scores of items go to `RUN/evaluation/STEP/`. Recordings are encoded once in a run.
    """

    def __init__(
        self,
        names: Sequence[str],
        limit: int | None,
        model: LlamaConfig,
        vocabulary: Vocabulary,
        run_directory: str | os.PathLike,
        mesh: Mesh,
    ):
        """
        Args:
            names: tasks or groups, as `--tasks` takes them; their data must be bundled.
            limit: items of each task and direction.

        Raises:
            BenchmarkError: an unknown task or direction.
        """
        self._chosen, self._settings = select(names), TaskSettings(limit=limit)
        self._model, self._vocabulary, self._mesh = model, vocabulary, mesh
        self._directory = pathlib.Path(run_directory) / "evaluation"
        try:
            self._speech_tokenizer = SpeechTokenizer.from_pretrained(run_directory, vocabulary.variant)
        except CheckpointError:  # a run on text alone
            self._speech_tokenizer = None
        self._units = UnitCache(self._speech_tokenizer, vocabulary, self._directory / "units.jsonl")

    def __call__(self, params: Params, step: int) -> dict[str, float]:
        """The main figures as `TASK/DIRECTION` with `_to_` in the place of `>`; fractions are in percent.

        A task that cannot be run is left out, with a line on standard error.
        """
        model = SpiritLM(params, self._model, self._vocabulary, self._speech_tokenizer, self._mesh)
        job = Job(model, self._settings, self._directory / str(step), f"step {step}", overwrite=True, units=self._units)
        values: dict[str, float] = {}
        for task, directions in self._chosen:
            try:
                result = task.run(job, directions)
            except SpiritError as error:
                job.report(f"{task.name} after step {step}: {error}")
                continue
            for figure in result.figures:
                if figure.is_main and not figure.group:
                    name = f"{task.name}/{figure.direction.replace('>', '_to_')}".rstrip("/")
                    values[name] = figure.estimate.value * (100 if figure.is_fraction else 1)
        return values
