"""Resynthesis: recordings as units and back. It measures the speech tokenizer and its vocoder, no language model.

The measures are those of Expresso (Nguyen et al. 2023, arXiv 2308.05725): word error rate of a recognizer, style
accuracy of a classifier, F0 frame error, and the bitrate of the units. The figures of the originals stand beside them.
F0 frame error is the share of frames of 20 ms with a voicing error or an F0 off by more than a fifth; F0 is found by
autocorrelation, not by the paper's extractor. The paper's style classifier was not released: the user names one, whose
labels are styles. The style of a recording is the label that its id has.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from spirit_jax.audio import AudioError
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.errors import SpiritError
from spirit_jax.evaluation import metrics
from spirit_jax.evaluation.classifiers import LabelClassifier
from spirit_jax.evaluation.item_log import ItemLog
from spirit_jax.evaluation.items import BenchmarkError, limited
from spirit_jax.evaluation.rules import estimate, ratio_estimate
from spirit_jax.evaluation.speech_sets import Recording, load, open_speech_set
from spirit_jax.evaluation.task import About, Figure, Job, TaskResult, corpus_source, digest
from spirit_jax.speech.asr import Recognizer, open_recognizer
from spirit_jax.speech.f0 import F0_HOP, f0
from spirit_jax.units import SIZES, SpeechUnits

_CHUNK = 32  # recordings between two writes of the log
_OFF = 0.2  # relative error of F0 that makes a frame wrong


def f0_frame_error(original: Float[np.ndarray, " R"], copy: Float[np.ndarray, " R2"]) -> tuple[int, int]:
    """Frames with a voicing error or an F0 off by more than 20 %, and all frames that both clips have."""
    frames = min(original.size, copy.size) // F0_HOP
    (pitch, voiced), (other, also_voiced) = (f0(clip[: frames * F0_HOP], frames) for clip in (original, copy))
    both = voiced & also_voiced
    wrong = (voiced != also_voiced) | (both & (np.abs(other - pitch) > _OFF * pitch))
    return int(wrong.sum()), frames


def style_of(name: str, labels: Sequence[str]) -> str | None:
    """The one label that the id of a recording has between separators, as `ex01_happy_00012` has happy; else None."""
    parts = re.split(r"[^a-z0-9]+", name.lower())
    found = [label for label in labels if label.lower() in parts]
    return found[0] if len(found) == 1 else None


def unit_bits(units: SpeechUnits, deduplicated: bool) -> float:
    """Bits of units when each stream has a code of fixed length for its units (501, 64, 100)."""
    total = 0.0
    for number, stream in enumerate(units.streams):
        if stream is not None and len(stream):
            repeats = int((stream[1:] == stream[:-1]).sum()) if deduplicated and number < 2 else 0
            total += (len(stream) - repeats) * math.log2(SIZES[number])
    return total


@dataclasses.dataclass(frozen=True)
class ResynthesisTask:
    """Recordings against their resynthesis."""

    name: str
    about: About
    split: str = "test"

    def run(self, job: Job, directions: Sequence[str]) -> TaskResult:
        """As `Task.run`."""
        tokenizer = job.model.speech_tokenizer
        if tokenizer is None or not tokenizer.has_vocoder:
            raise BenchmarkError(f"task {self.name}: the checkpoint has no speech_tokenizer/ with a vocoder")
        place = corpus_source(self.name, self.about, job.settings)
        items = limited(open_speech_set(place, self.split), job.settings.limit)
        recognizer = open_recognizer(job.settings.recognizer)
        named = job.settings.style_classifier
        styles = None if named is None else LabelClassifier(named)
        if styles is not None and not any(style_of(item.id, styles.labels) for item in items):
            raise BenchmarkError(
                f"{place}: no recording has a style in its id, such as {items[0].id}; the labels of {named} are "
                f"{', '.join(styles.labels)}"
            )
        asked = {
            "data": digest([[item.id, item.text] for item in items]),
            "recognizer": recognizer.name,
            "style classifier": "" if styles is None else styles.name,
            "normalization": "english",
            "packages": metrics.versions(),
        }
        log = job.log(self.name, directions[0], asked)
        todo = [item for item in items if item.id not in log.lines]
        work = _Resynthesizer(job, recognizer, styles)
        job.in_chunks(todo, _CHUNK, self.name, lambda chunk: log.add([work(item) for item in chunk]))
        unusable = log.unusable()
        data = {"place": place, "fingerprint": asked["data"], "items": len(items)}
        return TaskResult(self._figures(log, directions[0], job.settings.seed), unusable, asked, data)

    def _figures(self, log: ItemLog, direction: str, seed: int) -> list[Figure]:
        lines = log.usable()
        note = "the paper's figures are those of Expresso with its own recognizer and F0 extractor"

        def figure(measure: str, above: str, below: str, is_main: bool = True, is_fraction: bool = True) -> Figure:
            value = ratio_estimate([line[above] for line in lines], [line[below] for line in lines], seed)
            unusable = len(log.lines) - len(lines)
            return Figure(
                self.name, direction, measure, value, is_main=is_main, is_fraction=is_fraction, unusable=unusable,
                note=note if is_main else "",
            )  # fmt: skip

        of_style = [line for line in lines if line.get("style") is not None]
        by_style = [
            Figure(
                self.name, direction, measure, estimate([float(line[key] == line["style"]) for line in of_style], seed),
                is_main=is_main, unusable=len(log.lines) - len(of_style),
                note="style by the classifier that was named, not the paper's" if is_main else "",
            )
            for measure, key, is_main in (
                ("style accuracy", "copy style", True),
                ("style accuracy of the originals", "original style", False),
            )
            if of_style
        ]  # fmt: skip
        return [
            figure("WER", "errors", "words"),
            figure("WER of the originals", "original errors", "words", is_main=False),
            *by_style,
            figure("F0 frame error", "wrong frames", "frames"),
            figure("bits per second, at the frame rate", "bits", "seconds", is_main=False, is_fraction=False),
            figure("bits per second, deduplicated", "deduplicated bits", "seconds", is_main=False, is_fraction=False),
        ]


@dataclasses.dataclass(frozen=True)
class _Resynthesizer:
    """Resynthesizes a recording and compares."""

    job: Job
    recognizer: Recognizer
    styles: LabelClassifier | None

    def __call__(self, item: Recording) -> dict[str, Any]:
        tokenizer = self.job.model.speech_tokenizer
        assert tokenizer is not None
        audio = load(item)
        normalize = metrics.normalizer("english")
        reference = normalize(item.text)
        try:
            if isinstance(audio, str):
                raise AudioError(audio)
            if not reference:
                raise AudioError("its transcript is empty")
            units = tokenizer.encode(audio)
            copy = tokenizer.decode(units, predict_durations=False)
        except SpiritError as error:
            return {"id": item.id, "unusable": str(error)}
        before, after = (normalize(text) for text in self.recognizer.transcribe([audio, copy]))
        wrong, frames = f0_frame_error(audio, copy)
        style = None if self.styles is None else style_of(item.id, self.styles.labels)
        heard = {}
        if self.styles is not None and style is not None:
            heard = {
                "style": style,
                "original style": self.styles.label(audio),
                "copy style": self.styles.label(copy),
            }
        return {
            "id": item.id,
            **heard,
            "reference": reference,
            "original": before,
            "copy": after,
            "errors": metrics.word_errors(reference, after).errors,
            "original errors": metrics.word_errors(reference, before).errors,
            "words": len(reference.split()),
            "wrong frames": wrong,
            "frames": frames,
            "bits": unit_bits(units, deduplicated=False),
            "deduplicated bits": unit_bits(units, deduplicated=True),
            "seconds": audio.size / SAMPLE_RATE,
        }


_PACKAGES = (*metrics.PACKAGES, "moonshine_voice")
RESYNTHESIS = ResynthesisTask(
    "resynthesis",
    About(
        "recordings as units and back",
        ("S>S",),
        data="recordings with transcripts: anything that encode takes",
        source="https://speechbot.github.io/expresso (the paper's)",
        license="CC-BY-NC-4.0 (Expresso)",
        packages=_PACKAGES,
    ),
)
MINI_RESYNTHESIS = ResynthesisTask(
    "mini_resynthesis",
    About(
        "recordings as units and back",
        ("S>S",),
        data="bundled corpus spirit_mini",
        source="spoken by eSpeak NG (tools/make_mini_benchmark.py)",
        license="Apache-2.0",
        default="spirit_mini",
        packages=_PACKAGES,
    ),
    split="validation",
)
