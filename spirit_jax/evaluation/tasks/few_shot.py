"""The paper's few-shot generation tasks: speech recognition, text to speech, intent classification.

The paper prints the form of its prompts and not the rest; the files in configs/evaluation/ state the choices: number of
examples, context, stop strings, normalization. The examples are drawn once with the seed and are the same for all
items. A model trained with the recipes `asr`, `tts` or `asr_tts` is asked without examples: `--prompts.asr
asr_recipe.yaml`.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from spirit_jax.audio import AudioError, load_audio
from spirit_jax.evaluation import metrics
from spirit_jax.evaluation.item_log import ItemLog
from spirit_jax.evaluation.items import BenchmarkError, limited
from spirit_jax.evaluation.prompt_config import PromptConfig, load_prompts
from spirit_jax.evaluation.rules import Estimate, estimate, ratio_estimate
from spirit_jax.evaluation.speech_sets import Recording, SpeechSet, load, open_intents, open_speech_set
from spirit_jax.evaluation.task import BUNDLED, About, Figure, Job, TaskResult, corpus_source, digest
from spirit_jax.inference.prompts import EncodedPrompt, PromptError, Segment, units_string
from spirit_jax.speech.asr import Recognizer, open_recognizer

Measure = Literal["WER", "CER", "exact match"]
_CHUNK = 64  # items between two writes of the log


@dataclasses.dataclass(frozen=True)
class FewShotTask:
    """A task whose answer is generated after examples."""

    name: str
    about: About
    prompts: str
    """The prompt file's name in configs/evaluation/."""
    measure: Measure
    output: Literal["text", "speech"]
    open: Callable[[str, str], SpeechSet] = open_speech_set
    """Opens a split of the data."""

    def run(self, job: Job, directions: Sequence[str]) -> TaskResult:
        """As `Task.run`."""
        model, settings = job.model, job.settings
        if model.speech_tokenizer is None:
            raise BenchmarkError(f"task {self.name}: the checkpoint has no speech_tokenizer/ to hear recordings with")
        if self.output == "speech" and not model.speech_tokenizer.has_vocoder:
            raise BenchmarkError(f"task {self.name}: the checkpoint has no vocoder to speak answers with")
        file = settings.prompts.get(self.name, self.prompts)
        prompts = load_prompts(PromptConfig, file)
        place = corpus_source(self.name, self.about, settings)
        tests = limited(self.open(place, prompts.test_split), settings.limit)
        examples_place = settings.data.get(f"{self.name}_examples", place)
        examples = self._examples(job, prompts, examples_place)
        recognizer = open_recognizer(settings.recognizer) if self.output == "speech" else None
        asked = {
            "prompts": dataclasses.asdict(prompts),
            "seed": settings.seed,
            "examples": [name for name, _ in examples],
            "data": digest([[test.id, test.text] for test in tests]),
            "recognizer": "" if recognizer is None else recognizer.name,
            "packages": metrics.versions(),
        }
        direction = directions[0]
        log = job.log(self.name, direction, asked)
        todo = [test for test in tests if test.id not in log.lines]
        answer = _Asker(job, self, prompts, examples, recognizer)
        job.in_chunks(todo, _CHUNK, self.name, lambda chunk: answer(chunk, log))
        figure = self._figure(log, direction, settings.seed)
        data = {"place": place, "fingerprint": asked["data"], "items": len(tests)}
        shown = {"prompt file": file, **asked}
        unusable = {f"{direction} {name}": reason for name, reason in log.unusable().items()}
        return TaskResult([figure], unusable, shown, data)

    def _examples(self, job: Job, prompts: PromptConfig, place: str) -> list[tuple[str, str]]:
        """Id and filled template of each example, drawn with the seed.

        Raises:
            BenchmarkError: there are fewer recordings than shots, or one of them cannot be used.
        """
        if not prompts.shots:
            return []
        candidates = self.open(place, prompts.examples_split)
        if len(candidates) < prompts.shots:
            raise BenchmarkError(f"{place}: {len(candidates)} recordings, {prompts.shots} are needed as examples")
        order = np.random.default_rng(job.settings.seed).permutation(len(candidates))
        stop = _stop_units(job) if "{stop}" in prompts.example else ""
        chosen: list[tuple[str, str]] = []
        for index in order:
            recording = candidates[int(index)]
            units = _unit_strings(job, [recording])[0]
            if units is not None and recording.text.strip():
                filled = prompts.fill(prompts.example, speech=units, text=recording.text, stop=stop)
                chosen.append((recording.id, filled))
            if len(chosen) == prompts.shots:
                return chosen
        raise BenchmarkError(f"{place}: only {len(chosen)} recordings can be used as examples of {prompts.shots}")

    def _figure(self, log: ItemLog, direction: str, seed: int) -> Figure:
        lines = log.usable()
        if self.measure == "exact match":
            value: Estimate = estimate([float(line["errors"] == 0) for line in lines], seed)
        else:
            value = ratio_estimate([line["errors"] for line in lines], [line["length"] for line in lines], seed)
        shots = sorted(line["shots"] for line in lines)
        note = f"{shots[0]} to {shots[-1]} examples fit the context" if shots and shots[0] != shots[-1] else ""
        return Figure(
            self.name,
            direction,
            self.measure,
            value,
            is_main=True,
            unusable=len(log.lines) - len(lines),
            note=note,
        )


@dataclasses.dataclass(frozen=True)
class _Asker:
    """Asks the model about recordings and logs its answers."""

    job: Job
    task: FewShotTask
    prompts: PromptConfig
    examples: Sequence[tuple[str, str]]
    recognizer: Recognizer | None

    def __call__(self, recordings: Sequence[Recording], log: ItemLog) -> None:
        asked: list[tuple[Recording, EncodedPrompt, int]] = []
        lines: list[dict[str, Any]] = []
        speech = [""] * len(recordings)
        if "{speech}" in self.prompts.question:
            speech = _unit_strings(self.job, recordings, lines)
        for recording, units in zip(recordings, speech, strict=True):
            if units is None:
                continue
            if not recording.text.strip():
                lines.append({"id": recording.id, "unusable": "its transcript is empty"})
                continue
            try:
                prompt, shots = self._encode(recording, units)
            except PromptError as error:
                lines.append({"id": recording.id, "unusable": str(error)})
                continue
            asked.append((recording, prompt, shots))
        log.add(lines)
        seeds = [zlib.crc32(f"{self.job.settings.seed} {recording.id}".encode()) for recording, _, _ in asked]
        answers = self.job.model.as_completed(
            [prompt for _, prompt, _ in asked],
            self.task.output,
            [self.prompts.sampling(seed) for seed in seeds],
            slots=self.job.settings.slots,
        )
        for index, segments in answers:
            recording, _, shots = asked[index]
            log.add([{"id": recording.id, "shots": shots, **self._compare(recording, segments)}])

    def _encode(self, recording: Recording, units: str) -> tuple[EncodedPrompt, int]:
        """The prompt with as many examples as fit, and their number.

        Raises:
            PromptError: not even the question fits.
        """
        model = self.job.model
        question = self.prompts.fill(self.prompts.question, speech=units, text=recording.text)
        room = min(self.prompts.context, model.config.max_position_embeddings) - self.prompts.max_new_tokens
        examples = [text for name, text in self.examples if name != recording.id]
        while True:
            ids = model.vocabulary.encode("".join(examples) + question)
            if len(ids) <= room or not examples:
                break
            examples = examples[1:]
        if len(ids) > room:
            raise PromptError(
                f"the question alone has {len(ids)} tokens, the context {room} beside the answer's "
                f"{self.prompts.max_new_tokens}"
            )
        return model.encode_prompt("".join(examples) + question, self.task.output), len(examples)

    def _compare(self, recording: Recording, segments: Sequence[Segment]) -> dict[str, Any]:
        """Values of an answer for the log."""
        normalize = metrics.normalizer(self.prompts.normalize)
        if self.recognizer is None:
            answer = "".join(s.content for s in segments if isinstance(s.content, str)).strip()
        else:
            spoken = [s.content for s in segments if isinstance(s.content, np.ndarray)]
            clip = np.concatenate(spoken) if spoken else np.zeros(0, np.float32)
            answer = metrics.before_word(self.recognizer.transcribe([clip])[0], self.prompts.stop_word)
        reference, hypothesis = normalize(recording.text), normalize(answer)
        if not reference:
            return {"unusable": "nothing is left of its transcript after normalization"}
        count = metrics.character_errors if self.task.measure == "CER" else metrics.word_errors
        errors, length = count(reference, hypothesis)
        return {
            "reference": recording.text,
            "answer": answer,
            "normalized": [reference, hypothesis],
            "errors": errors,
            "length": length,
        }


def _unit_strings(
    job: Job, recordings: Sequence[Recording], lines: list[dict[str, Any]] | None = None
) -> list[str | None]:
    """The unit tokens of recordings; None where there are none, with the reason in `lines`."""
    tokenizer = job.model.speech_tokenizer
    assert tokenizer is not None
    result: list[str | None] = []
    for recording in recordings:
        audio: Float[np.ndarray, " R"] | str = load(recording)
        try:
            if isinstance(audio, str):
                raise AudioError(audio)
            units = tokenizer.encode(audio)
            is_base = job.model.vocabulary.variant == "base"
            result.append(units_string(units.without_expression() if is_base else units))
        except AudioError as error:
            result.append(None)
            if lines is not None:
                lines.append({"id": recording.id, "unusable": str(error)})
    return result


def _stop_units(job: Job) -> str:
    """The unit tokens of the spoken word "stop", from the bundled recording."""
    clip = Recording("stop", "stop", lambda: load_audio(BUNDLED / "stop.ogg"))
    return _unit_strings(job, [clip])[0] or ""


_LIBRISPEECH: Mapping[str, Any] = {
    "data": "LibriSpeech (test-clean/... with .trans.txt, examples from dev-clean), or anything that encode takes",
    "source": "https://www.openslr.org/12",
    "license": "CC-BY-4.0",
}
ASR = FewShotTask(
    "asr",
    About("speech recognition, 10-shot", ("S>T",), packages=metrics.PACKAGES, **_LIBRISPEECH),
    "asr.yaml",
    "WER",
    "text",
)
TTS = FewShotTask(
    "tts",
    About("text to speech, 10-shot", ("T>S",), packages=(*metrics.PACKAGES, "moonshine_voice"), **_LIBRISPEECH),
    "tts.yaml",
    "CER",
    "speech",
)
INTENT = FewShotTask(
    "intent",
    About(
        "intent classification, 30-shot",
        ("S>T",),
        data="Fluent Speech Commands: data/train_data.csv, data/test_data.csv and the recordings",
        source="https://fluent.ai/fluent-speech-commands-a-dataset-for-spoken-language-understanding-research/",
        license="academic use; see its license file",
        packages=metrics.PACKAGES,
    ),
    "intent.yaml",
    "exact match",
    "text",
    open_intents,
)
_CORPUS: Mapping[str, Any] = {
    "data": "bundled corpus spirit_mini",
    "source": "this package",
    "license": "Apache-2.0",
    "default": "spirit_mini",
}
MINI_ASR = FewShotTask(
    "mini_asr",
    About("speech recognition, few-shot", ("S>T",), packages=metrics.PACKAGES, **_CORPUS),
    "mini_asr.yaml",
    "WER",
    "text",
)
MINI_TTS = FewShotTask(
    "mini_tts",
    About("text to speech, few-shot", ("T>S",), packages=(*metrics.PACKAGES, "moonshine_voice"), **_CORPUS),
    "mini_tts.yaml",
    "CER",
    "speech",
)
