"""Perplexity of unit records by kind of token: text pieces, and phonetic, pitch and style units.

The directions are recipes of training: T text, S speech, ST interleaved words. Documents are cut to the model's
context.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spirit_jax.data.records import RecordSource, read_metadata
from spirit_jax.data.sampling import record_rng
from spirit_jax.data.sequences import Recipe, Sequencer
from spirit_jax.data.unit_record import RecordError
from spirit_jax.evaluation.item_log import ItemLog
from spirit_jax.evaluation.items import BenchmarkError, limited
from spirit_jax.evaluation.rules import Estimate, ratio_estimate
from spirit_jax.evaluation.task import About, Figure, Job, TaskResult, data_directory
from spirit_jax.vocabulary import TOKEN_KINDS

RECIPES: Mapping[str, Recipe] = {"T": "text", "S": "speech", "ST": "interleaved"}
_CHUNK = 128  # records between two writes of the log


@dataclasses.dataclass(frozen=True)
class PerplexityTask:
    """Perplexity of the records of a directory that `encode` wrote; the split is `validation` if there is one."""

    name: str
    about: About

    def run(self, job: Job, directions: Sequence[str]) -> TaskResult:
        """As `Task.run`. Directions that the records do not have, speech in text records, are left out."""
        place = data_directory(self.name, self.about, job.settings)
        splits = sorted(read_metadata(place)["splits"])
        split = "validation" if "validation" in splits else splits[0]
        source = RecordSource(place, split)
        self._check_units(job, source)
        indices = limited(range(len(source)), job.settings.limit)
        figures: list[Figure] = []
        unusable: dict[str, str] = {}
        first = source[0]
        for direction in directions:
            if (direction != "T" and first.units is None) or (direction == "ST" and not first.words):
                continue
            asked = {
                "data": source.fingerprint,
                "recipe": RECIPES[direction],
                "seed": job.settings.seed,
                "split": split,
            }
            log = job.log(self.name, direction, {**asked, "items": len(indices)})
            todo = [index for index in indices if str(index) not in log.lines]
            scorer = _Scorer(job, source, RECIPES[direction])
            job.in_chunks(todo, _CHUNK, f"{self.name} {direction}", lambda chunk, s=scorer, to=log: to.add(s(chunk)))
            reasons = log.unusable()
            unusable |= {f"{direction} record {name}": reason for name, reason in reasons.items()}
            figures += self._figures(log, direction, job.settings.seed)
        data = {"place": str(place), "split": split, "fingerprint": source.fingerprint, "items": len(indices)}
        return TaskResult(figures, unusable, {"recipes": dict(RECIPES)}, data)

    def _check_units(self, job: Job, source: RecordSource) -> None:
        tokenizer = job.model.speech_tokenizer
        if source.units and tokenizer is not None and source.units != tokenizer.fingerprint:
            raise BenchmarkError(
                f"{source.directory}: its units come from another speech tokenizer than the checkpoint's; encode the "
                "corpus with this checkpoint"
            )

    def _figures(self, log: ItemLog, direction: str, seed: int) -> list[Figure]:
        lines = log.usable()
        kinds = [kind for kind in TOKEN_KINDS if any(kind in line["kinds"] for line in lines)]
        figures = []
        for kind in ("", *kinds):
            chosen = [kind] if kind else kinds
            sums = [sum(line["kinds"].get(k, [0, 0])[0] for k in chosen) for line in lines]
            counts = [sum(line["kinds"].get(k, [0, 0])[1] for k in chosen) for line in lines]
            value = ratio_estimate(sums, counts, seed)
            perplexity = Estimate(math.exp(value.value), math.exp(value.low), math.exp(value.high), value.count)
            figures.append(
                Figure(
                    self.name,
                    direction,
                    "perplexity",
                    perplexity,
                    group=kind,
                    is_main=not kind,
                    is_fraction=False,
                    unusable=0 if kind else len(log.lines) - len(lines),
                )
            )
        return figures


@dataclasses.dataclass(frozen=True)
class _Scorer:
    """Log-likelihoods of records, summed by kind of token."""

    job: Job
    source: RecordSource
    recipe: Recipe

    def __call__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        model = self.job.model
        sequencer = Sequencer(model.vocabulary, self.recipe, model.config.max_position_embeddings)
        lines: list[dict[str, Any]] = []
        documents: list[np.ndarray] = []
        owners: list[int] = []
        for index in indices:
            line: dict[str, Any] = {"id": str(index), "kinds": {}}
            lines.append(line)
            try:
                rng = record_rng(self.job.settings.seed, self.source.name, index, 0)
                for document in sequencer(self.source[index], rng):
                    documents.append(document)
                    owners.append(len(lines) - 1)
            except RecordError as error:
                line["unusable"] = str(error)
        scores = model.token_scores([[document] for document in documents], self.job.settings.batch_tokens)
        for owner, document, (score,) in zip(owners, documents, scores, strict=True):
            kinds = model.vocabulary.token_kinds[document[1:]]
            for kind in np.unique(kinds):
                entry = lines[owner]["kinds"].setdefault(TOKEN_KINDS[kind], [0.0, 0])
                entry[0] -= float(score.all[1:][kinds == kind].sum(dtype=np.float64))
                entry[1] += int((kinds == kind).sum())
        return lines


PERPLEXITY = PerplexityTask(
    "perplexity",
    About(
        "perplexity by kind of token",
        tuple(RECIPES),
        data="a directory of unit records (RUN/records/NAME, or what encode wrote)",
        source="your corpus",
        license="yours",
    ),
)
