"""Alignment jobs: any input with speech becomes a manifest with word times, block by block.

A job stores each finished block in `DIR/.align-SPLIT/` until all are there, and then writes

    SPLIT.jsonl            the manifest that `encode` reads, with the times and scores of all words
    SPLIT.left_out.jsonl   clips without usable word times, each with the reason
    SPLIT.summary.json     counts and the histogram of word scores

A job that was killed resumes at its first missing block.
"""

import dataclasses
import io
import json
import os
import pathlib
import shutil
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile
import tqdm

from spirit_jax.audio import AudioError
from spirit_jax.core.arithmetic import ceil_div
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.errors import JobError
from spirit_jax.core.files import read_json, write_file
from spirit_jax.corpora.alignment.aligner import Aligner, AlignmentError, WordTime
from spirit_jax.corpora.alignment.spelling import spell
from spirit_jax.corpora.alignment.writers import write_alignments
from spirit_jax.corpora.block_store import BlockStore
from spirit_jax.corpora.inputs import Input
from spirit_jax.corpora.utterance import CorpusError, Utterance
from spirit_jax.speech.asr import Recognizer

BLOCK = 32
"""Utterances in a block."""

SCORE_BINS = 20
"""Bins of the histogram of word scores, from 0 to 1."""


@dataclasses.dataclass(frozen=True)
class AlignmentSettings:
    """What decides the words and times of a job."""

    language: str = "en"
    """Language of the transcripts, for numbers and abbreviations: a code that num2words knows."""
    min_score: float = 0.0
    """Clips whose words have a lower mean score are left out and counted."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score must be between 0 and 1, found {self.min_score}")


@dataclasses.dataclass(frozen=True)
class AlignedBlock:
    """What became of the utterances of a block."""

    lines: list[dict[str, Any]]
    """Manifest lines of aligned utterances, in the order of the input; `seconds` is their length."""
    left_out: list[dict[str, Any]]
    """The other utterances: `id`, `audio`, `text` and `reason`."""


@dataclasses.dataclass(frozen=True)
class AlignmentSummary:
    """Result of a job; stored as `SPLIT.summary.json`."""

    job: dict[str, Any]
    """What the result depends on: fingerprint of the input, aligner, settings."""
    utterances: int
    """Utterances in the manifest."""
    left_out: int
    """Utterances without usable word times."""
    words: int
    """Words in the manifest."""
    interpolated: int
    """Words that the aligner could not pronounce, with times between their neighbors'."""
    transcribed: int
    """Utterances whose transcript a recognizer made."""
    mean_score: float
    """Mean over the words that the aligner pronounced."""
    hours: float
    """Hours of speech in the manifest."""
    score_histogram: list[int]
    """Words by score, in equal bins from 0 to 1."""

    def __str__(self) -> str:
        total = self.utterances + self.left_out
        return (
            f"{self.utterances} of {total} clips, {self.hours:.2f} h, {self.words} words with a mean score of "
            f"{self.mean_score:.2f}; {self.left_out / max(total, 1):.1%} of the clips left out, "
            f"{self.interpolated} words interpolated"
            + (f", {self.transcribed} clips transcribed by the recognizer" if self.transcribed else "")
        )


def align_corpus(
    corpus: Input,
    aligner: Aligner,
    directory: str | os.PathLike,
    settings: AlignmentSettings = AlignmentSettings(),
    *,
    recognizer: Recognizer | None = None,
    write: Sequence[str] = (),
    overwrite: bool = False,
    progress: bool = True,
) -> AlignmentSummary:
    """Align a split and write its manifest; calling it again after a kill resumes the job.

    Args:
        corpus: a split with speech.
        aligner: finds the times.
        directory: where the manifest goes.
        settings: language and filter.
        recognizer: writes transcripts for utterances without one; None leaves those out.
        write: other files to write, by the names in `writers.WRITERS`.
        overwrite: whether a finished manifest of another input, aligner or settings may be replaced.
        progress: whether to show a progress bar.

    Raises:
        JobError: the input holds no speech, or no utterance could be aligned.
        FileExistsError: the directory holds a finished manifest that differs, and `overwrite` is false.
    """
    directory = pathlib.Path(directory)
    if not corpus.has_speech:
        raise JobError(f"{corpus.location}: holds text; alignment needs audio")
    job = {
        "corpus": corpus.fingerprint,
        "aligner": aligner.name,
        "recognizer": recognizer.name if recognizer else "",
        **dataclasses.asdict(settings),
    }
    finished = directory / f"{corpus.split}.summary.json"
    if finished.exists() and not overwrite:
        summary = AlignmentSummary(**read_json(finished))
        if summary.job == job:
            return summary
        raise FileExistsError(
            f"{finished}: another alignment (aligner {summary.job['aligner']}) is here; choose another --output or "
            "replace it with --overwrite"
        )
    store = BlockStore(directory / f".align-{corpus.split}", AlignedBlock, {**job, "block": BLOCK})
    count = ceil_div(len(corpus), BLOCK)
    missing = [block for block in range(count) if store.read(block) is None]
    work = _BlockWork(corpus, aligner, settings, recognizer, directory)
    seconds, started = 0.0, time.perf_counter()
    with tqdm.tqdm(total=len(corpus), desc=f"{corpus.name} {corpus.split}", unit="clip", disable=not progress) as bar:
        bar.update(len(corpus) - sum(len(work.indices(block)) for block in missing))
        for block in missing:
            aligned = work.align(block)
            store.write(block, aligned)
            seconds += sum(line["seconds"] for line in aligned.lines)
            bar.update(len(work.indices(block)))
            bar.set_postfix_str(f"{seconds / (time.perf_counter() - started):.0f} x real time", refresh=False)
    blocks = [block for block in map(store.read, range(count)) if block is not None]
    summary = _write_results(corpus, directory, blocks, job, write)
    shutil.rmtree(store.directory)
    return summary


@dataclasses.dataclass(frozen=True)
class _BlockWork:
    """Aligns any block of a split, whatever runs it."""

    corpus: Input
    aligner: Aligner
    settings: AlignmentSettings
    recognizer: Recognizer | None
    directory: pathlib.Path

    def indices(self, block: int) -> range:
        """The utterances of a block."""
        return range(block * BLOCK, min((block + 1) * BLOCK, len(self.corpus)))

    def align(self, block: int) -> AlignedBlock:
        """Load, transcribe where needed, and align the utterances of a block."""
        loaded: list[tuple[Utterance, np.ndarray]] = []
        left_out = []
        for index in self.indices(block):
            where: dict[str, Any] = {"id": f"{index}"}
            try:
                utterance = self.corpus[index]
                where = self._source(utterance, utterance.text)
                loaded.append((utterance, utterance.load()))
            except (CorpusError, AudioError) as error:
                left_out.append({**where, "reason": str(error)})
        texts = self._transcripts(loaded)
        spelled = [spell(text, self.settings.language) for text in texts]
        times = self.aligner.align([audio for _, audio in loaded], spelled)
        lines = []
        for (utterance, audio), text, words, found in zip(loaded, texts, spelled, times, strict=True):
            where = self._source(utterance, text)
            if isinstance(found, AlignmentError):
                reason = "no transcript" if not words else str(found)
                left_out.append({**where, "reason": reason})
                continue
            mean = _mean_score(found)
            if mean < self.settings.min_score:
                reason = f"mean word score {mean:.3f} is below {self.settings.min_score}"
                left_out.append({**where, "reason": reason})
                continue
            lines.append(
                {
                    **where,
                    **({"speaker": utterance.speaker} if utterance.speaker else {}),
                    "words": [_word(word.text, time) for word, time in zip(words, found, strict=True)],
                    "score": round(mean, 4),
                    "seconds": audio.size / SAMPLE_RATE,
                    **(
                        {"transcript_by": self.recognizer.name}
                        if self.recognizer and not utterance.text.strip()
                        else {}
                    ),
                }
            )
        return AlignedBlock(lines, left_out)

    def _transcripts(self, loaded: Sequence[tuple[Utterance, np.ndarray]]) -> list[str]:
        """The transcript of each clip; a recognizer writes those that are missing."""
        texts = [utterance.text for utterance, _ in loaded]
        missing = [i for i, text in enumerate(texts) if not text.strip()]
        if self.recognizer is not None and missing:
            for i, text in zip(missing, self.recognizer.transcribe([loaded[i][1] for i in missing]), strict=True):
                texts[i] = text
        return texts

    def _source(self, utterance: Utterance, text: str) -> dict[str, Any]:
        """The fields of a manifest line that say what was heard; a segment of a longer file keeps its place in it."""
        fields: dict[str, Any] = {"id": utterance.id, "audio": self._audio_path(utterance), "text": text}
        if utterance.offset_s or utterance.duration_s is not None:
            fields |= {"offset": utterance.offset_s, "duration": utterance.duration_s}
        return fields

    def _audio_path(self, utterance: Utterance) -> str:
        """Path of an utterance's file; audio inside a corpus is written beside the manifest, with a relative path."""
        if isinstance(utterance.audio, pathlib.Path):
            return str(utterance.audio.resolve())
        content = utterance.audio_bytes()
        path = pathlib.PurePath("audio", self.corpus.split, _file_name(utterance.id) + _suffix(content))
        if not (self.directory / path).exists():
            write_file(self.directory / path, content)
        return path.as_posix()


def _write_results(
    corpus: Input, directory: pathlib.Path, blocks: Sequence[AlignedBlock], job: dict[str, Any], write: Sequence[str]
) -> AlignmentSummary:
    lines = [line for block in blocks for line in block.lines]
    left_out = [line for block in blocks for line in block.left_out]
    if not lines:
        reasons = "; ".join(sorted({line["reason"] for line in left_out})[:3])
        raise JobError(
            f"{corpus.location}: none of {len(corpus)} clips of split {corpus.split!r} was aligned: {reasons}"
        )
    words = [word for line in lines for word in line["words"]]
    scores = np.array([word["score"] for word in words if not word.get("interpolated")])
    summary = AlignmentSummary(
        job=job,
        utterances=len(lines),
        left_out=len(left_out),
        words=len(words),
        interpolated=sum(word.get("interpolated", False) for word in words),
        transcribed=sum("transcript_by" in line for line in lines),
        mean_score=float(scores.mean()) if scores.size else 0.0,
        hours=sum(line["seconds"] for line in lines) / 3600,
        score_histogram=np.histogram(scores, SCORE_BINS, (0, 1))[0].tolist(),
    )
    write_alignments(write, directory / corpus.split, [_timed(line) for line in lines])
    for name, content in (("left_out.jsonl", left_out), ("jsonl", lines)):
        write_file(
            directory / f"{corpus.split}.{name}",
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in content),
        )
    write_file(directory / f"{corpus.split}.summary.json", json.dumps(dataclasses.asdict(summary), indent=1) + "\n")
    return summary


def plot_scores(summary: AlignmentSummary, path: str | os.PathLike) -> None:
    """Draw the histogram of word scores, with the mean.

    Raises:
        ImportError: matplotlib is not installed (extra `plots`).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    edges = np.linspace(0, 1, SCORE_BINS + 1)
    axes.stairs(summary.score_histogram, edges, fill=True, alpha=0.7)
    axes.axvline(summary.mean_score, color="black", linestyle="--", label=f"mean {summary.mean_score:.2f}")
    axes.set(
        xlabel="word score", ylabel="words", title=f"{summary.words} words by {summary.job['aligner']}", xlim=(0, 1)
    )
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_file(path, buffer.getvalue())


def _mean_score(times: Sequence[WordTime]) -> float:
    """Mean over the words that the aligner pronounced; 0 without any."""
    scores = [time.score for time in times if not time.interpolated]
    return sum(scores) / len(scores) if scores else 0.0


def _word(text: str, time: WordTime) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "word": text,
        "start_ms": time.start_ms,
        "end_ms": time.end_ms,
        "score": round(time.score, 4),
    }
    return {**entry, "interpolated": True} if time.interpolated else entry


def _timed(line: dict[str, Any]) -> tuple[str, float, list[str], list[WordTime]]:
    times = [WordTime(word["start_ms"], word["end_ms"], word["score"]) for word in line["words"]]
    return line["id"], line["seconds"], [word["word"] for word in line["words"]], times


def _file_name(name: str) -> str:
    """A file name for an id, which may hold slashes."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name).lstrip(".")[:200] or "clip"


def _suffix(content: bytes) -> str:
    try:
        return "." + soundfile.info(io.BytesIO(content)).format.lower()
    except (RuntimeError, OSError):
        return ".audio"
