"""STSP: does the continuation of a sentence keep its sentiment? Four directions, zero-shot or after examples.

The data are JSONL files `test.jsonl` and, for examples and the built-in classifier, `train.jsonl`, with `id`,
`wav_path`, `asr`, `sentiment` or `emotion`. A directory with one file `*_test.jsonl`, such as the released
`records_emov_test.jsonl`, is read too. Prompts, sampling and scoring are those of the released code
(docs/evaluation.md, "STSP"); its classifiers were never released, so the report names the substitutes.
"""

import collections
import dataclasses
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from spirit_jax.audio import AudioError, load_audio
from spirit_jax.evaluation.classifiers import (
    SpeechClassifier,
    TextClassifier,
    open_speech_classifier,
    open_text_classifier,
)
from spirit_jax.evaluation.item_log import ItemLog
from spirit_jax.evaluation.items import BenchmarkError, limited
from spirit_jax.evaluation.prompt_config import ContinuationConfig, load_prompts
from spirit_jax.evaluation.rules import estimate
from spirit_jax.evaluation.stsp import (
    EMOTIONS,
    SENTIMENTS,
    compare,
    few_shot_prompt,
    few_shot_rows,
    read_jsonl,
    read_references,
)
from spirit_jax.evaluation.task import BUNDLED, About, Figure, Job, TaskResult, data_directory, digest
from spirit_jax.inference.prompts import EncodedPrompt, PromptError, Segment, units_string
from spirit_jax.units import SpeechUnits

DIRECTIONS = ("T>T", "T>S", "S>S", "S>T")
_CHUNK = 32  # items between two writes of the log


@dataclasses.dataclass(frozen=True)
class StspTask:
    """Sentiment of the continuation beside that of the prompt."""

    name: str
    about: About
    shots: int = 0
    """Examples before each prompt."""
    prompts: str = "stsp.yaml"
    """The prompt file's name in configs/evaluation/: how answers are sampled."""

    def run(self, job: Job, directions: Sequence[str]) -> TaskResult:
        """As `Task.run`."""
        place = data_directory(self.name, self.about, job.settings)
        rows = limited(read_references(_split_file(place, "test")), job.settings.limit)
        examples = _split_file(place, "train")
        train = read_jsonl(examples) if examples.is_file() else []
        figures: list[Figure] = []
        unusable: dict[str, str] = {}
        file = job.settings.prompts.get(self.name, self.prompts)
        continuation = load_prompts(ContinuationConfig, file)
        for direction in directions:
            if direction not in continuation.new_tokens:
                raise BenchmarkError(f"{file}: new_tokens has no number for the direction {direction}")
        used: dict[str, Any] = {
            "temperature": continuation.temperature,
            "top_p": continuation.top_p,
            "top_k": continuation.top_k,
            "shots": self.shots,
            "seed": job.settings.seed,
        }
        classifiers: dict[str, str] = {}
        for direction in directions:
            runner = _Runner(job, place, train, direction, self.shots, continuation)
            asked = {
                "data": digest(rows),
                "new tokens": continuation.new_tokens[direction],
                "examples": digest(runner.examples),
                "classifier": runner.classifier.name,
                **used,
            }
            log = job.log(self.name, direction, asked)
            todo = [row for row in rows if str(row.get("id")) not in log.lines]
            job.in_chunks(todo, _CHUNK, f"{self.name} {direction}", lambda chunk, r=runner, to=log: r(chunk, to))
            classifiers[f"{direction} classifier"] = runner.classifier.name
            found, problems = self._figures(rows, log, direction, job.settings.seed, runner.classifier.name)
            figures += found
            unusable |= problems
        data = {"place": str(place), "fingerprint": digest(rows), "items": len(rows)}
        return TaskResult(figures, unusable, {"prompt file": file, **used, **classifiers}, data)

    def _figures(
        self, rows: Sequence[Mapping[str, Any]], log: ItemLog, direction: str, seed: int, classifier: str
    ) -> tuple[list[Figure], dict[str, str]]:
        predictions = {name: line["prediction"] for name, line in log.lines.items() if "prediction" in line}
        agreement = compare(rows, predictions)
        reasons = {name: log.unusable().get(name, reason) for name, reason in agreement.unmatched.items()}
        note = f"sentiment by {classifier}, not the paper's classifier: compare with other figures of the same one"
        chance = 1 / len(SENTIMENTS)
        outcomes = [float(right) for right in agreement.outcomes.values()]
        figures = [
            Figure(
                self.name,
                direction,
                "accuracy",
                estimate(outcomes, seed),
                is_main=True,
                chance=chance,
                unusable=len(reasons),
                note=note,
            )
        ]
        by_sentiment: dict[str, list[float]] = collections.defaultdict(list)
        for row in rows:
            if str(row["id"]) in agreement.outcomes:
                sentiment = row.get("sentiment") or EMOTIONS[row["emotion"]]
                by_sentiment[sentiment].append(float(agreement.outcomes[str(row["id"])]))
        figures += [
            Figure(self.name, direction, "accuracy", estimate(values, seed), group=sentiment, chance=chance)
            for sentiment, values in sorted(by_sentiment.items())
        ]
        return figures, {f"{direction} {name}": reason for name, reason in reasons.items()}


class _Runner:
    """Continues the prompts of one direction and classifies the continuations."""

    def __init__(
        self,
        job: Job,
        place: pathlib.Path,
        train: Sequence[Mapping[str, Any]],
        direction: str,
        shots: int,
        continuation: ContinuationConfig,
    ):
        self._job, self._place, self._direction, self._continuation = job, place, direction, continuation
        self._before, _, self._after = direction.partition(">")
        if "S" in direction and job.model.speech_tokenizer is None:
            raise BenchmarkError(f"direction {direction}: the checkpoint has no speech_tokenizer/")
        if self._after == "S" and (not job.model.speech_tokenizer or not job.model.speech_tokenizer.has_vocoder):
            raise BenchmarkError(f"direction {direction}: the checkpoint has no vocoder to speak answers with")
        self._speech: SpeechClassifier | None = None
        self._text: TextClassifier | None = None
        if self._after == "S":
            clips, labels = self._labelled(train) if job.settings.speech_classifier == "tone" else ([], [])
            self._speech = open_speech_classifier(job.settings.speech_classifier, clips, labels)
        else:
            self._text = open_text_classifier(job.settings.text_classifier)
        self.examples = self._few_shot(train, shots) if shots else ""
        """The part of every prompt that precedes its item."""

    @property
    def classifier(self) -> SpeechClassifier | TextClassifier:
        """Classifier that finds the sentiment of the answers."""
        found = self._speech or self._text
        assert found is not None
        return found

    def __call__(self, rows: Sequence[Mapping[str, Any]], log: ItemLog) -> None:
        prompts: list[tuple[str, EncodedPrompt]] = []
        for row in rows:
            name = str(row.get("id"))
            try:
                prompts.append((name, self._prompt(row)))
            except (AudioError, PromptError) as error:
                log.add([{"id": name, "unusable": str(error)}])
        modality = "text" if self._after == "T" else "speech"
        sampling = [
            self._continuation.sampling(self._direction, zlib.crc32(f"{self._job.settings.seed} {name}".encode()))
            for name, _ in prompts
        ]
        encoded = [prompt for _, prompt in prompts]
        answers = self._job.model.as_completed(encoded, modality, sampling, slots=self._job.settings.slots)
        for index, segments in answers:
            name = prompts[index][0]
            log.add([{"id": name, **self._classify(segments)}])

    def _prompt(self, row: Mapping[str, Any]) -> EncodedPrompt:
        if self._before == "T":
            text = str(row.get("asr") or "").strip()
            if not text:
                raise PromptError("no text in the field asr")
            own = f"[Text]{text}"
        else:
            own = f"[Speech]{self._units(load_audio(self._file(row.get('wav_path'))))}"
        switch = "" if self._before == self._after else "[Text]" if self._after == "T" else "[Speech]"
        return self._job.model.encode_prompt(self.examples + own + switch, "text" if self._after == "T" else "speech")

    def _classify(self, segments: Sequence[Segment]) -> dict[str, Any]:
        if self._text is not None:
            text = "".join(segment.content for segment in segments if isinstance(segment.content, str))
            return {"answer": text, "prediction": self._text.classify([text])[0]}
        assert self._speech is not None
        spoken = [segment.content for segment in segments if isinstance(segment.content, np.ndarray)]
        units = "".join(segment.tokens or "" for segment in segments)
        clip = np.concatenate(spoken) if spoken else np.zeros(0, np.float32)
        if clip.size < 1600:  # 100 ms: too short to hear a tone in
            return {"answer": units, "prediction": "neutral"}
        return {"answer": units, "prediction": self._speech.classify([clip])[0]}

    def _few_shot(self, train: Sequence[Mapping[str, Any]], shots: int) -> str:
        """The examples of a prompt, drawn with the seed. Rows without `prompt` and `generation` are cut in halves."""
        rng = np.random.default_rng(self._job.settings.seed)
        rows = few_shot_rows(
            [{**row, "sentiment": row.get("sentiment") or EMOTIONS.get(str(row.get("emotion")))} for row in train],
            shots,
            lambda size, count: rng.permutation(size)[:count].tolist(),
        )
        complete = []
        for row in rows:
            words = str(row.get("asr") or "").split()
            halves = " ".join(words[: len(words) // 2]), " " + " ".join(words[len(words) // 2 :])
            complete.append(
                {
                    "prompt": row.get("prompt") or (halves[0] if self._before == "T" else row["wav_path"]),
                    "generation": row.get("generation") or (halves[1] if self._after == "T" else row["wav_path"]),
                }
            )

        def speech(file: str, half: str) -> str:
            audio = load_audio(self._file(file))
            middle = audio.size // 2
            return self._units(audio[:middle] if half == "first" else audio[middle:])

        return few_shot_prompt(complete, self._direction, speech)

    def _labelled(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[Float[np.ndarray, " R"]], list[str]]:
        """Clips with their sentiments, to fit the built-in classifier."""
        labels = [row.get("sentiment") or EMOTIONS.get(str(row.get("emotion"))) for row in rows]
        found = [(row, label) for row, label in zip(rows, labels, strict=True) if label and row.get("wav_path")]
        if not found:
            raise BenchmarkError(
                f"{self._place / 'train.jsonl'}: no labelled recordings to fit the tone classifier on; "
                "name a classifier: --speech-classifier DIR"
            )
        return [load_audio(self._file(row["wav_path"])) for row, _ in found], [label for _, label in found]

    def _units(self, audio: Float[np.ndarray, " R"]) -> str:
        tokenizer = self._job.model.speech_tokenizer
        assert tokenizer is not None
        units: SpeechUnits = tokenizer.encode(audio)
        return units_string(units.without_expression() if self._job.model.vocabulary.variant == "base" else units)

    def _file(self, name: Any) -> pathlib.Path:
        """The recording that a row names, relative to the data or to `data` in them."""
        for folder in (self._place, self._place / "data", self._place.parent / "data"):
            if (folder / str(name)).is_file():
                return folder / str(name)
        raise AudioError(f"{self._place / str(name)}: no such file")


def _split_file(place: pathlib.Path, split: str) -> pathlib.Path:
    """The file of a split: `SPLIT.jsonl`, or the only one that ends in `_SPLIT.jsonl`, as the released ones do."""
    named, others = place / f"{split}.jsonl", sorted(place.glob(f"*_{split}.jsonl"))
    return others[0] if len(others) == 1 and not named.is_file() else named


def _about(shots: int) -> About:
    return About(
        "sentiment of the continuation, " + (f"{shots}-shot" if shots else "zero-shot"),
        DIRECTIONS,
        data="test.jsonl and train.jsonl, or NAME_test.jsonl and NAME_train.jsonl, with id, wav_path, asr, sentiment "
        "or emotion",
        source="https://github.com/facebookresearch/spiritlm (data/stsp_data), Expresso and EmoV",
        license="CC-BY-NC-4.0 (Expresso), EmoV: see its README",
        data_name="stsp",
    )


STSP = tuple(StspTask(f"stsp_{shots}shot" if shots else "stsp", _about(shots), shots) for shots in (0, 3, 6, 9))
MINI_STSP = StspTask(
    "mini_stsp",
    About(
        "sentiment of the continuation, zero-shot",
        DIRECTIONS,
        "spoken by eSpeak NG (tools/make_mini_benchmark.py)",
        "this package",
        "Apache-2.0",
        BUNDLED / "stsp",
    ),
)
