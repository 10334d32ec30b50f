"""Continuations of prompts: their quality, and what toxicity they add.

Quality is measured as in Lakhotia et al. 2021 (arXiv 2102.01192): the perplexity of the continuation's transcript under
a text model that the user names, and auto-BLEU, the share of its pairs of words that repeat. A model of low perplexity
may be dull, so both belong together. Diversity of units, two to the power of their entropy, tells of collapse to a few
units. Added toxicity is the share of continuations with an entry of a word list that the user names and that their
prompt does not have, as the paper counts it with ETOX's lists on HolisticBias.
"""

import dataclasses
import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from spirit_jax.audio import AudioError
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.evaluation import metrics
from spirit_jax.evaluation.item_log import ItemLog
from spirit_jax.evaluation.items import BenchmarkError, limited
from spirit_jax.evaluation.prompt_config import GenerationConfig, load_prompts
from spirit_jax.evaluation.rules import Estimate, estimate, ratio_estimate
from spirit_jax.evaluation.speech_sets import Recording, load, open_prompts
from spirit_jax.evaluation.task import About, Figure, Job, TaskResult, corpus_source, digest
from spirit_jax.evaluation.text_models import TextModel, open_text_model
from spirit_jax.inference.prompts import EncodedPrompt, PromptError, Segment, units_string
from spirit_jax.speech.asr import Recognizer, open_recognizer

_CHUNK = 32  # items between two writes of the log
_HUBERT = re.compile(r"\[Hu(\d+)\]")


@dataclasses.dataclass(frozen=True)
class GenerationTask:
    """Prompts are continued in their own modality."""

    name: str
    about: About
    prompts: str
    """The prompt file's name in configs/evaluation/."""

    def run(self, job: Job, directions: Sequence[str]) -> TaskResult:
        """As `Task.run`."""
        settings = job.settings
        if self._is_toxicity and settings.toxic_words is None:
            raise BenchmarkError(f"task {self.name} needs a list of words: --toxic-words FILE, a word or phrase a line")
        words = None if settings.toxic_words is None else metrics.WordList(settings.toxic_words)
        text_model = None if settings.text_model is None else open_text_model(settings.text_model)
        file = settings.prompts.get(self.name, self.prompts)
        prompts = load_prompts(GenerationConfig, file)
        place = corpus_source(self.name, self.about, settings)
        items = limited(open_prompts(place, prompts.test_split), settings.limit)
        used: dict[str, Any] = {
            "prompts": dataclasses.asdict(prompts),
            "seed": settings.seed,
            "data": digest([[item.id, item.text] for item in items]),
            "text model": "" if text_model is None else text_model.name,
            "toxic words": "" if words is None else f"{words.size} entries, {words.fingerprint[:12]}",
            "packages": metrics.versions(),
        }
        figures: list[Figure] = []
        unusable: dict[str, str] = {}
        recognizers: dict[str, str] = {}
        for direction in directions:
            if direction not in prompts.continuation.new_tokens:
                raise BenchmarkError(f"{file}: continuation.new_tokens has no number for the direction {direction}")
            recognizer = self._recognizer(job, direction)
            recognizers[f"{direction} recognizer"] = "" if recognizer is None else recognizer.name
            log = job.log(self.name, direction, {**used, "recognizer": recognizers[f"{direction} recognizer"]})
            work = _Continuer(job, prompts, direction, recognizer, text_model, words)
            todo = [item for item in items if item.id not in log.lines]
            job.in_chunks(todo, _CHUNK, f"{self.name} {direction}", lambda chunk, w=work, to=log: w(chunk, to))
            figures += self._figures(log, direction, settings.seed, has_words=words is not None)
            unusable |= {f"{direction} {name}": reason for name, reason in log.unusable().items()}
        data = {"place": place, "fingerprint": used["data"], "items": len(items)}
        return TaskResult(figures, unusable, {"prompt file": file, **used, **recognizers}, data)

    @property
    def _is_toxicity(self) -> bool:
        """Whether toxicity is what the task measures."""
        return "toxic_words" in self.about.options

    def _recognizer(self, job: Job, direction: str) -> Recognizer | None:
        """The recognizer that transcribes the answers of a direction; None for answers of text.

        Raises:
            BenchmarkError: the checkpoint cannot hear prompts or speak answers.
            RecognizerError: there is no such recognizer.
        """
        if direction == "T>T":
            return None
        tokenizer = job.model.speech_tokenizer
        if tokenizer is None or not tokenizer.has_vocoder:
            raise BenchmarkError(
                f"task {self.name} {direction}: the checkpoint has no speech_tokenizer/ with a vocoder"
            )
        return open_recognizer(job.settings.recognizer)

    def _figures(self, log: ItemLog, direction: str, seed: int, has_words: bool) -> list[Figure]:
        lines = log.usable()
        unusable = len(log.lines) - len(lines)

        def figure(measure: str, value: Estimate, is_fraction: bool, is_main: bool, note: str = "") -> Figure:
            return Figure(
                self.name, direction, measure, value, is_main=is_main, is_fraction=is_fraction, unusable=unusable,
                note=note,
            )  # fmt: skip

        bleu = [line["auto-BLEU"] for line in lines if line["auto-BLEU"] is not None]
        figures = [figure("auto-BLEU-2", estimate(bleu, seed), True, not self._is_toxicity)]
        scored = [line for line in lines if line["tokens"]]
        if scored:
            mean = ratio_estimate([line["nats"] for line in scored], [line["tokens"] for line in scored], seed)
            value, low, high = np.exp([mean.value, mean.low, mean.high]).tolist()
            perplexity = Estimate(value, low, high, mean.count)
            figures.append(figure("perplexity of the transcript", perplexity, False, not self._is_toxicity))
        if direction == "S>S":
            units = [line["units in use"] for line in lines]
            figures.append(figure("units in even use", estimate(units, seed), False, False))
        if has_words:
            note = "entries of a list that the user named; the paper's lists are ETOX's"
            added = estimate([float(bool(line["added"])) for line in lines], seed)
            figures.append(figure("added toxicity", added, True, self._is_toxicity, note))
            prompted = estimate([float(line["prompt has an entry"]) for line in lines], seed)
            figures.append(figure("prompts with an entry", prompted, True, False))
        return figures


@dataclasses.dataclass(frozen=True)
class _Continuer:
    """Continues prompts in one direction and measures the continuations."""

    job: Job
    prompts: GenerationConfig
    direction: str
    recognizer: Recognizer | None
    text_model: TextModel | None
    words: metrics.WordList | None

    def __call__(self, recordings: Sequence[Recording], log: ItemLog) -> None:
        asked: list[tuple[Recording, str, EncodedPrompt]] = []
        for recording in recordings:
            try:
                asked.append((recording, *self._prompt(recording)))
            except (AudioError, PromptError) as error:
                log.add([{"id": recording.id, "unusable": str(error)}])
        modality = "text" if self.recognizer is None else "speech"
        sampling = [
            self.prompts.continuation.sampling(
                self.direction, zlib.crc32(f"{self.job.settings.seed} {item.id}".encode())
            )
            for item, _, _ in asked
        ]
        encoded = [prompt for _, _, prompt in asked]
        answers = self.job.model.as_completed(encoded, modality, sampling, slots=self.job.settings.slots)
        for index, segments in answers:
            recording, text, _ = asked[index]
            log.add([{"id": recording.id, "prompt": text, **self._measure(text, segments)}])

    def _prompt(self, recording: Recording) -> tuple[str, EncodedPrompt]:
        """The words that a prompt is known to have, and the prompt."""
        if self.recognizer is None:
            words = recording.text.split()[: self.prompts.prompt_words]
            if not words:
                raise PromptError("its text is empty")
            return " ".join(words), self.job.model.encode_prompt(f"[Text]{' '.join(words)}", "text")
        audio = load(recording)
        if isinstance(audio, str):
            raise AudioError(audio)
        seconds = self.prompts.prompt_seconds
        audio = audio if seconds is None else audio[: round(seconds * SAMPLE_RATE)]
        tokenizer = self.job.model.speech_tokenizer
        assert tokenizer is not None  # checked with the recognizer
        units = tokenizer.encode(audio)
        is_base = self.job.model.vocabulary.variant == "base"
        string = units_string(units.without_expression() if is_base else units)
        return recording.text, self.job.model.encode_prompt(f"[Speech]{string}", "speech")

    def _measure(self, prompt: str, segments: Sequence[Segment]) -> dict[str, Any]:
        """The fields of an answer in the log."""
        hubert = [int(unit) for segment in segments for unit in _HUBERT.findall(segment.tokens or "")]
        if self.recognizer is None:
            answer = "".join(s.content for s in segments if isinstance(s.content, str)).strip()
        else:
            spoken = [s.content for s in segments if isinstance(s.content, np.ndarray)]
            clip = np.concatenate(spoken) if spoken else np.zeros(0, np.float32)
            answer = self.recognizer.transcribe([clip])[0].strip()
        words = re.findall(r"[\w']+", answer.lower())
        score = self.text_model.score([answer])[0] if self.text_model is not None and answer else None
        found = [] if self.words is None else self.words.found(answer)
        known = set() if self.words is None else set(self.words.found(prompt))
        return {
            "answer": answer,
            "auto-BLEU": metrics.auto_bleu(words) if len(words) > 1 else None,
            "nats": 0.0 if score is None else score.nats,
            "tokens": 0 if score is None else score.tokens,
            "units in use": 2 ** metrics.unit_entropy(hubert) if hubert else 0.0,
            "added": [entry for entry in found if entry not in known],
            "prompt has an entry": bool(known),
        }


_SPEECH_PACKAGES = ("moonshine_voice",)
GENERATION = GenerationTask(
    "generation",
    About(
        "continuations: perplexity under --text-model, repetition, diversity",
        ("T>T", "S>S"),
        data="recordings with transcripts, anything that encode takes; a .txt file with a prompt a line for T>T",
        source="LibriSpeech, for example: https://www.openslr.org/12",
        license="that of the data",
        packages=_SPEECH_PACKAGES,
    ),
    "generation.yaml",
)
TOXICITY = GenerationTask(
    "toxicity",
    About(
        "toxic words that a continuation adds, of a list named by --toxic-words",
        ("T>T", "S>S"),
        data="a .txt file with a prompt a line (T>T), or spoken prompts with transcripts, anything that encode takes",
        source="HolisticBias: https://github.com/facebookresearch/ResponsibleNLP; word lists: NLLB's ETOX lists",
        license="MIT (HolisticBias), CC-BY-SA-4.0 (ETOX)",
        packages=_SPEECH_PACKAGES,
        options=("toxic_words",),
    ),
    "toxicity.yaml",
)
MINI_CONTINUATION = GenerationTask(
    "mini_continuation",
    About(
        "continuations: perplexity under --text-model, repetition, diversity",
        ("T>T", "S>S"),
        data="bundled corpus spirit_mini",
        source="this package",
        license="Apache-2.0",
        default="spirit_mini",
        packages=_SPEECH_PACKAGES,
    ),
    "mini_continuation.yaml",
)
