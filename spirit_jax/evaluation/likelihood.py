"""Tasks that compare the likelihoods of hypotheses. A task gives its items; everything else is here."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from spirit_jax.core.files import write_file
from spirit_jax.evaluation import rules
from spirit_jax.evaluation.documents import NORMALIZATIONS, SOFTMAXES, Document, Score, encode
from spirit_jax.evaluation.item_log import ItemLog, read_log
from spirit_jax.evaluation.items import Choice, Clip, Text, Unusable, limited
from spirit_jax.evaluation.rules import Contrast, Estimate
from spirit_jax.evaluation.task import About, Figure, Job, TaskResult, TaskSettings, data_directory, digest
from spirit_jax.units import SpeechUnits

MAIN: Mapping[str, str] = {"normalization": "mean", "softmax": "all"}
"""The scoring variant of the main table: the paper's normalized log-likelihood."""

_CHUNK = 256  # items between two writes of the log

Reader = Callable[[pathlib.Path, str], Sequence[Choice | Unusable]]
"""Reads the items of a direction from the task's data. Raises BenchmarkError if there are none."""


@dataclasses.dataclass(frozen=True)
class LikelihoodTask:
    """A task whose answer is the most likely of several hypotheses."""

    name: str
    about: About
    read: Reader
    averaging: str = "flat"
    """The rule of `rules.AVERAGES` in the main table; the other one is in the table of variants."""
    chance: float = 0.5
    """Accuracy of guessing."""
    submission: str = ""
    """Folder of the ZeroSpeech submission file within the output; "" writes none. The file has the scores of direction
    S and the name of the set, `dev.txt` or `test.txt`."""

    def run(self, job: Job, directions: Sequence[str]) -> TaskResult:
        """As `Task.run`."""
        place = data_directory(self.name, self.about, job.settings)
        figures: list[Figure] = []
        unusable: dict[str, str] = {}
        data: dict[str, Any] = {"place": str(place)}
        files: dict[str, str] = {}
        for direction in directions:
            items, fingerprint = self.items(direction, job.settings)
            data[f"{direction} items"], data[f"{direction} fingerprint"] = len(items), fingerprint
            log = job.log(self.name, direction, {"data": fingerprint})
            _score(job, log, items, f"{self.name} {direction}".strip())
            reasons = log.unusable()
            unusable |= {f"{direction} {name}".strip(): reason for name, reason in reasons.items()}
            figures += self._figures(list(log.lines.values()), direction, len(reasons), job.settings.seed)
            if self.submission and direction == "S":
                path = job.output / self.submission / ("test.txt" if place.name == "test" else "dev.txt")
                write_submission(path, list(log.lines.values()))
                files["ZeroSpeech submission"] = str(path)
        return TaskResult(figures, unusable, {"scores": NORMALIZATIONS, "softmax": SOFTMAXES}, data, files)

    def items(self, direction: str, settings: TaskSettings) -> tuple[Sequence[Choice | Unusable], str]:
        """The items of a direction, and the fingerprint that logs and results have of them.

        Raises:
            BenchmarkError: the data are missing or cannot be used.
        """
        items = limited(self.read(data_directory(self.name, self.about, settings), direction), settings.limit)
        return items, digest([_describe(item) for item in items])

    def _figures(self, lines: Sequence[Mapping[str, Any]], direction: str, unusable: int, seed: int) -> list[Figure]:
        def figure(accuracy: Estimate, variant: Mapping[str, str], group: str = "", is_main: bool = False) -> Figure:
            return Figure(
                self.name,
                direction,
                "accuracy",
                accuracy,
                group,
                variant,
                is_main,
                self.chance,
                unusable=0 if group else unusable,
            )

        figures = []
        for softmax in SOFTMAXES:
            for normalization in NORMALIZATIONS:
                contrasts = contrasts_of(lines, normalization, softmax)
                scores = {"normalization": normalization, "softmax": softmax}
                for averaging, rule in rules.AVERAGES.items():
                    is_main = scores == MAIN and averaging == self.averaging
                    figures.append(figure(rule(contrasts, seed), {"averaging": averaging, **scores}, is_main=is_main))
        contrasts = contrasts_of(lines, **MAIN)
        groups = rules.by_group(contrasts, seed, self.averaging)
        if len(groups) > 1:
            variant = {"averaging": self.averaging, **MAIN}
            figures += [figure(accuracy, variant, group) for group, accuracy in groups.items()]
        variant = {"averaging": "zerospeech", **MAIN}
        for band, accuracy in rules.by_frequency(contrasts, seed).items():
            figures.append(figure(accuracy, variant, f"frequency {band}"))
        known = rules.in_vocabulary_accuracy(contrasts)
        if not math.isnan(known):
            inside = [c for c in contrasts if c.frequency is not None and c.frequency >= 1]
            interval = rules.zerospeech_accuracy(inside, seed)
            figures.append(figure(dataclasses.replace(interval, value=known), variant, "in vocabulary"))
        return figures


def _describe(item: Choice | Unusable) -> Any:
    """Everything that the scores of an item depend on: texts, and names and sizes of files."""
    if isinstance(item, Unusable):
        return [item.id, item.reason]
    pieces = [
        [_describe_piece(piece) for piece in (*hypothesis.context, None, *hypothesis.scored)]
        for hypothesis in item.hypotheses
    ]
    return [item.id, item.item, item.group, item.frequency, pieces]


def _describe_piece(piece: Text | Clip | None) -> Any:
    if isinstance(piece, Clip):
        return [[path.name, path.stat().st_size if path.exists() else None] for path in piece.files]
    return None if piece is None else piece.text


def _score(job: Job, log: ItemLog, items: Sequence[Choice | Unusable], name: str) -> None:
    """Score the items that the log does not have yet."""
    log.add({"id": i.id, "unusable": i.reason} for i in items if isinstance(i, Unusable) and i.id not in log.lines)
    todo = [item for item in items if isinstance(item, Choice) and item.id not in log.lines]
    job.in_chunks(todo, _CHUNK, name, lambda chunk: log.add(score_choices(job, chunk)))


def score_choices(job: Job, items: Sequence[Choice]) -> list[dict[str, Any]]:
    """The log's line of each item: the scores of its hypotheses, or why it cannot be used."""
    clips = [p for item in items for h in item.hypotheses for p in (*h.context, *h.scored) if isinstance(p, Clip)]
    encoded = job.units.encode(clips)
    units = {clip: found for clip, found in encoded.items() if isinstance(found, SpeechUnits)}
    lines: list[dict[str, Any]] = []
    groups: list[list[Document]] = []
    scored: list[tuple[dict[str, Any], Choice]] = []
    for item in items:
        line: dict[str, Any] = {"id": item.id, "item": item.item, "group": item.group, "frequency": item.frequency}
        lines.append(line)
        needed = [p for h in item.hypotheses for p in (*h.context, *h.scored) if isinstance(p, Clip)]
        reason = next((str(encoded[clip]) for clip in needed if clip not in units), None)
        documents = [] if reason else [encode(job.model.vocabulary, h, units) for h in item.hypotheses]
        reason = reason or _problem(documents, job.model.config.max_position_embeddings)
        if reason:
            line["unusable"] = reason
        else:
            groups.append(documents)
            scored.append((line, item))
    scores = job.model.token_scores([[d.ids for d in group] for group in groups], job.settings.batch_tokens)
    for (line, item), documents, results in zip(scored, groups, scores, strict=True):
        line["hypotheses"] = [
            {"name": hypothesis.name, **Score.of(document, result)._asdict()}
            for hypothesis, document, result in zip(item.hypotheses, documents, results, strict=True)
        ]
        values = [h[key] for h in line["hypotheses"] for key in ("all", "modality")]
        if not np.isfinite(values).all():
            del line["hypotheses"]
            line["unusable"] = "the model gives a score that is not a number"
    return lines


def _problem(documents: Sequence[Document], context: int) -> str | None:
    """Why hypotheses cannot be scored, None if they can."""
    for number, document in enumerate(documents, 1):
        if len(document.ids) > context:
            return f"hypothesis {number} has {len(document.ids)} tokens, the model's context is {context}"
        if document.start >= len(document.ids):
            return f"hypothesis {number} is empty: there is nothing to score"
    return None


def contrasts_of(lines: Sequence[Mapping[str, Any]], normalization: str, softmax: str) -> list[Contrast]:
    """The contrasts of usable items in a log, by one of `NORMALIZATIONS` and one of `SOFTMAXES`."""
    contrasts: list[Contrast] = []
    for line in lines:
        if "unusable" in line or len(line["hypotheses"]) < 2:  # a test set without its answers
            continue
        values = [
            Score(**{key: hypothesis[key] for key in Score._fields}).value(normalization, softmax)
            for hypothesis in line["hypotheses"]
        ]
        contrasts.append(Contrast(line["item"], values[0], tuple(values[1:]), line["group"], line["frequency"]))
    return contrasts


def read_outcomes(log: pathlib.Path, averaging: str) -> dict[Hashable, float]:
    """The outcome of each usable item in a log of this module, with the scores of the main table.

    By the rule `zerospeech` of `rules.AVERAGES`, the voices of an item are averaged first.
    """
    _, lines = read_log(log)
    if averaging == "zerospeech":
        return rules.item_outcomes(contrasts_of(list(lines.values()), **MAIN))
    return {name: found[0].outcome for name, line in lines.items() if (found := contrasts_of([line], **MAIN))}


def write_submission(path: pathlib.Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write a ZeroSpeech submission: a line `FILE SCORE` for every file, with the scores of the main table.

    The official validator wants every file of the set; files of unusable items are missing, and the report names them.
    """
    rows = {}
    for line in lines:
        for hypothesis in line.get("hypotheses", ()):
            score = Score(**{key: hypothesis[key] for key in Score._fields})
            rows[hypothesis["name"]] = score.value(**MAIN)
    write_file(path, "".join(f"{name} {score!r}\n" for name, score in rows.items()))
