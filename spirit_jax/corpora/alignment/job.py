"""Alignment jobs: any input with speech becomes a manifest with word times, block by block.

A job stores each finished block in `DIR/.align-SPLIT/` until all are there, and then writes

    SPLIT.jsonl            the manifest that `encode` reads, with the times and scores of all words
    SPLIT.left_out.jsonl   clips without usable word times, each with the reason
    SPLIT.summary.json     counts and the histogram of word scores

Long recordings may be cut into utterances (`segmentation`); a piece has the name of its recording with a number. A job
that was killed resumes at its first missing block, and any number of processes share one job. `DIR` may be in a bucket.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import soundfile
import tqdm

from spirit_jax.audio import AudioError
from spirit_jax.core.arithmetic import ceil_div
from spirit_jax.core.bucket_cache import address_of
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.errors import JobError, SpiritError
from spirit_jax.core.files import read_json, read_text, write_file
from spirit_jax.core.paths import as_path
from spirit_jax.corpora.alignment.aligner import Aligner, AlignmentError, WordTime
from spirit_jax.corpora.alignment.segmentation import choose_pieces, ends_sentence, piece_bounds, voice_pieces
from spirit_jax.corpora.alignment.spelling import spell
from spirit_jax.corpora.alignment.voice_activity import ENERGY, VoiceActivity
from spirit_jax.corpora.alignment.writers import write_alignments
from spirit_jax.corpora.block_store import BlockStore
from spirit_jax.corpora.inputs import Input
from spirit_jax.corpora.shared_work import ALONE, SharedWork, Sharing
from spirit_jax.corpora.utterance import CorpusError, Utterance
from spirit_jax.speech.asr import Recognizer

BLOCK = 32
"""Utterances in a block."""

_GROUP_SAMPLES = 600 * SAMPLE_RATE
"""Samples of the clips that are in memory at once; a longer recording is alone."""

SCORE_BINS = 20
"""Bins of the histogram of word scores, from 0 to 1."""


@dataclasses.dataclass(frozen=True)
class AlignmentSettings:
    """Settings that determine the words and times of a job."""

    language: str = "en"
    """Language of the transcripts, for numbers and abbreviations: a code that num2words knows."""
    min_score: float = 0.0
    """Clips whose words have a lower mean score are left out and counted."""
    max_seconds: float | None = None
    """Longer recordings are cut at pauses and sentence ends into utterances of at most this length; None cuts
    nothing."""
    keep_times: bool = False
    """Whether clips that have word times keep them; otherwise all are aligned."""

    def __post_init__(self) -> None:
        if self.max_seconds is not None and not self.max_seconds >= 1:
            raise ValueError(f"max_seconds must be at least 1, found {self.max_seconds}")
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score must be between 0 and 1, found {self.min_score}")


@dataclasses.dataclass(frozen=True)
class AlignedBlock:
    """Result of a block: aligned utterances and those left out."""

    lines: list[dict[str, Any]]
    """Manifest lines of aligned utterances, in the order of the input; `seconds` is their length."""
    left_out: list[dict[str, Any]]
    """The other utterances: `id`, `audio`, `text` and `reason`."""


@dataclasses.dataclass(frozen=True)
class AlignmentSummary:
    """Result of a job; stored as `SPLIT.summary.json`."""

    job: dict[str, Any]
    """Everything that the result depends on: fingerprint of the input, aligner, settings."""
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
    activity: VoiceActivity = ENERGY,
    write: Sequence[str] = (),
    overwrite: bool = False,
    progress: bool = True,
    sharing: Sharing = ALONE,
) -> AlignmentSummary:
    """Align a split and write its manifest; calling it again after a kill resumes the job.

    Args:
        corpus: a split with speech.
        aligner: finds the times.
        directory: where the manifest goes, also in a bucket.
        settings: language and filter.
        recognizer: writes transcripts for utterances without one; None leaves those out.
        activity: finds where recordings without a transcript may be cut.
        write: other files to write, by the names in `writers.WRITERS`.
        overwrite: whether a finished manifest of another input, aligner or settings may be replaced.
        progress: whether to show a progress bar.
        sharing: how processes that align this split at the same time share the work.

    Raises:
        JobError: the input holds no speech, or no utterance could be aligned.
        LockError: the directory was removed while the job ran.
        FileExistsError: the directory holds a finished manifest that differs, and `overwrite` is false.
        BucketError, BucketJobError: the directory is in a bucket that cannot be used.
    """
    place = as_path(directory)
    if not corpus.has_speech:
        raise JobError(f"{corpus.location}: holds text; alignment needs audio")
    job = {
        "corpus": corpus.fingerprint,
        "aligner": aligner.name,
        "recognizer": recognizer.name if recognizer else "",
        "voice_activity": activity.name if recognizer else "",
        **dataclasses.asdict(settings),
    }
    summary = _finished(place, corpus.split, job, overwrite)
    if summary is None:
        work = _BlockWork(corpus, aligner, settings, recognizer, activity, place)
        summary = _align_blocks(work, job, sharing, progress)
    if write:
        manifest = read_text(place / f"{corpus.split}.jsonl").removesuffix("\n")
        timed = [_timed(json.loads(line)) for line in manifest.split("\n")]
        write_alignments(write, place / corpus.split, timed)
    return summary


def _finished(directory: Any, split: str, job: dict[str, Any], overwrite: bool) -> AlignmentSummary | None:
    """The summary of this job if it is finished; None if there is work to do.

    Raises:
        FileExistsError: there is the result of another job, and `overwrite` is false.
    """
    path = directory / f"{split}.summary.json"
    summary = None
    with contextlib.suppress(SpiritError, TypeError):  # missing or damaged: aligned again
        summary = AlignmentSummary(**read_json(path))
    if summary is None or not (directory / f"{split}.jsonl").exists():
        return None
    if summary.job == job:
        return summary
    if overwrite:
        return None
    raise FileExistsError(
        f"{path}: another alignment (aligner {summary.job['aligner']}) is here; choose another --output or replace it "
        "with --overwrite"
    )


def _align_blocks(work: "_BlockWork", job: dict[str, Any], sharing: Sharing, progress: bool) -> AlignmentSummary:
    """Align blocks until all are stored, and write the results, unless another process does so."""
    corpus, directory = work.corpus, work.directory
    store = BlockStore(directory / f".align-{corpus.split}", AlignedBlock, {**job, "block": BLOCK})
    count, kept = ceil_div(len(corpus), BLOCK), 0
    for block in store.stored():
        if store.read(block) is None:  # damaged, or of another job
            store.folder.remove(store.name(block))
        else:
            kept += len(work.indices(block))

    def result() -> AlignmentSummary | None:
        return _finished(directory, corpus.split, job, True)

    seconds, started = 0.0, time.perf_counter()
    bar = tqdm.tqdm(total=len(corpus), desc=f"{corpus.name} {corpus.split}", unit="clip", disable=not progress)
    with SharedWork(store, count, lambda: result() is not None, sharing) as shared:
        with bar:
            bar.update(kept)
            for block, _ in shared.blocks():
                aligned = work.align(block)
                shared.put(block, aligned)
                seconds += sum(line["seconds"] for line in aligned.lines)
                bar.update(len(work.indices(block)))
                bar.set_postfix_str(f"{seconds / (time.perf_counter() - started):.0f} x real time", refresh=False)
        with shared.result() as is_ours:
            if is_ours:
                blocks = [block for block in map(store.read, range(count)) if block is not None]
                if len(blocks) < count:
                    raise JobError(f"{directory}: blocks were removed while the job ran; start the same command again")
                _write_results(corpus, directory, blocks, job)
    summary = result()
    if summary is None:
        raise JobError(f"{directory}: was removed or replaced while the job ran; start the same command again")
    store.folder.clear()
    return summary


@dataclasses.dataclass(frozen=True)
class _BlockWork:
    """Aligns any block of a split, whatever runs it."""

    corpus: Input
    aligner: Aligner
    settings: AlignmentSettings
    recognizer: Recognizer | None
    activity: VoiceActivity
    directory: Any
    """Path of the output, as `as_path` gives it."""

    def indices(self, block: int) -> range:
        """The utterances of a block."""
        return range(block * BLOCK, min((block + 1) * BLOCK, len(self.corpus)))

    def align(self, block: int) -> AlignedBlock:
        """Load, cut, transcribe where needed, and align the utterances of a block."""
        result = AlignedBlock([], [])
        for clips in self._groups(self.indices(block), result.left_out):
            self._align_group(clips, result)
        return result

    def _groups(self, indices: Sequence[int], left_out: list[dict[str, Any]]) -> Iterator[list["_Clip"]]:
        """Clips with their audio, a bounded number of samples at a time; adds what cannot be used to `left_out`."""
        group: list[_Clip] = []
        for index in indices:
            where: dict[str, Any] = {"id": f"{index}"}
            try:
                utterance = self.corpus[index]
                where = self._source(_Clip(utterance, np.zeros(0)), utterance.text)
                pieces = self._pieces(_Clip(utterance, utterance.load()))
                if not pieces:
                    raise CorpusError(f"utterance {utterance.id!r}: nobody speaks in it")
                group += pieces
            except (CorpusError, AudioError) as error:
                left_out.append({**where, "reason": str(error)})
            if sum(clip.audio.size for clip in group) >= _GROUP_SAMPLES:
                yield group
                group = []
        if group:
            yield group

    def _pieces(self, clip: "_Clip") -> list["_Clip"]:
        """A clip that is to be transcribed is cut where nobody speaks; others are cut when their words have times."""
        longest = self.settings.max_seconds
        if longest is None or clip.utterance.text.strip() or self.recognizer is None or clip.seconds <= longest:
            return [clip]
        bounds = voice_pieces(clip.audio, round(longest * 1000), self.activity).tolist()
        return [
            _Clip(clip.utterance, clip.audio[_samples(start) : _samples(end)], start, number)
            for number, (start, end) in enumerate(bounds, 1)
        ]

    def _align_group(self, clips: Sequence["_Clip"], result: AlignedBlock) -> None:
        """Add the manifest lines of clips, and those that are left out, to the result."""
        texts = self._transcripts(clips)
        spelled = [spell(text, self.settings.language) for text in texts]
        kept = [self.settings.keep_times and bool(clip.utterance.words) for clip in clips]
        chosen = [index for index, keep in enumerate(kept) if not keep]
        aligned = self.aligner.align([clips[i].audio for i in chosen], [spelled[i] for i in chosen]) if chosen else []
        times = dict(zip(chosen, aligned, strict=True))
        for index, (clip, text) in enumerate(zip(clips, texts, strict=True)):
            found = times.get(index, ())
            if isinstance(found, AlignmentError):
                reason = "no transcript" if not spelled[index] else str(found)
                result.left_out.append({**self._source(clip, text), "reason": reason})
                continue
            if kept[index]:
                words = _kept_words(clip.utterance)
            else:
                words = [_word(word.text, time) for word, time in zip(spelled[index], found, strict=True)]
            for line in self._lines(clip, text, words):
                reason = self._fault(line)
                if reason is None:
                    result.lines.append(line)
                else:
                    fields = {name: line[name] for name in line if name not in ("words", "score", "seconds")}
                    result.left_out.append({**fields, "reason": reason})

    def _fault(self, line: dict[str, Any]) -> str | None:
        """Why an aligned utterance is left out; None for one that is kept."""
        score, longest = line.get("score", 1.0), self.settings.max_seconds
        if score < self.settings.min_score:
            return f"mean word score {score:.3f} is below {self.settings.min_score}"
        if longest is not None and line["seconds"] > longest:
            return f"{line['seconds']:.1f} s cannot be cut to {longest:g} s: the times of its words leave no place"
        return None

    def _lines(self, clip: "_Clip", text: str, words: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The manifest line of a clip, or those of its pieces if it is too long."""
        longest = self.settings.max_seconds
        if longest is None or clip.seconds <= longest or not words:
            yield self._line(clip, text, words)
            return
        spans_ms = np.array([(word["start_ms"], word["end_ms"]) for word in words])
        ends = np.array([ends_sentence(word["word"]) for word in words])
        pieces = choose_pieces(spans_ms, ends, round(longest * 1000))
        for number, (first, last) in enumerate(pieces, 1):
            start, end = piece_bounds(spans_ms, first, last, round(clip.seconds * 1000), round(longest * 1000))
            piece = _Clip(clip.utterance, clip.audio[_samples(start) : _samples(end)], clip.start_ms + start, number)
            moved = [
                {**word, "start_ms": word["start_ms"] - start, "end_ms": word["end_ms"] - start}
                for word in words[first:last]
            ]
            yield self._line(piece, " ".join(word["word"] for word in moved), moved)

    def _line(self, clip: "_Clip", text: str, words: list[dict[str, Any]]) -> dict[str, Any]:
        speaker = clip.utterance.speaker
        scores = [word["score"] for word in words if "score" in word and not word.get("interpolated")]
        is_transcribed = self.recognizer is not None and not clip.utterance.text.strip()
        return {
            **self._source(clip, text),
            **({"speaker": speaker} if speaker else {}),
            "words": words,
            **(
                {"score": round(sum(scores) / max(len(scores), 1), 4)} if any("score" in word for word in words) else {}
            ),
            "seconds": clip.seconds,
            **({"transcript_by": self.recognizer.name} if self.recognizer and is_transcribed else {}),
        }

    def _transcripts(self, clips: Sequence["_Clip"]) -> list[str]:
        """The transcript of each clip; a recognizer writes those that are missing."""
        texts = [clip.utterance.text for clip in clips]
        missing = [i for i, text in enumerate(texts) if not text.strip()]
        if self.recognizer is not None and missing:
            for i, text in zip(missing, self.recognizer.transcribe([clips[i].audio for i in missing]), strict=True):
                texts[i] = text
        return texts

    def _source(self, clip: "_Clip", text: str) -> dict[str, Any]:
        """The fields of a manifest line that say what was heard; a part of a longer file keeps its place in it."""
        utterance = clip.utterance
        name = utterance.id if clip.number is None else f"{utterance.id}-{clip.number:04d}"
        fields: dict[str, Any] = {"id": name, "audio": self._audio_path(utterance), "text": text}
        if clip.number is not None:
            return {**fields, "offset": utterance.offset_s + clip.start_ms / 1000, "duration": clip.seconds}
        if utterance.offset_s or utterance.duration_s is not None:
            fields |= {"offset": utterance.offset_s, "duration": utterance.duration_s}
        return fields

    def _audio_path(self, utterance: Utterance) -> str:
        """Path or address of an utterance's file; audio inside a corpus is written beside the manifest, and its path is
        relative.

        The name of such a file ends in a hash of its content, so that a file with this name can be kept.
        """
        if isinstance(utterance.audio, str):
            return utterance.audio
        if isinstance(utterance.audio, pathlib.Path):
            return address_of(utterance.audio) or str(utterance.audio.resolve())
        content = utterance.audio_bytes()
        name = f"{_file_name(utterance.id)}-{hashlib.sha256(content).hexdigest()[:12]}{_suffix(content)}"
        path = f"audio/{self.corpus.split}/{name}"
        if not (self.directory / path).exists():
            write_file(self.directory / path, content)
        return path


@dataclasses.dataclass(frozen=True, eq=False)
class _Clip:
    """An utterance or a piece of one, with its audio."""

    utterance: Utterance
    """As the corpus has it."""
    audio: np.ndarray
    """float32 [R] of the clip."""
    start_ms: int = 0
    """Where the clip begins in the utterance."""
    number: int | None = None
    """Number of the piece, from 1; None for a whole utterance."""

    @property
    def seconds(self) -> float:
        """Length of the clip."""
        return self.audio.size / SAMPLE_RATE


def _samples(milliseconds: int) -> int:
    return milliseconds * SAMPLE_RATE // 1000


def _kept_words(utterance: Utterance) -> list[dict[str, Any]]:
    """The words that an utterance came with; they have no score."""
    spans = utterance.spans_ms.tolist()
    return [
        {"word": word, "start_ms": start, "end_ms": end}
        for word, (start, end) in zip(utterance.words, spans, strict=True)
    ]


def _write_results(
    corpus: Input, directory: Any, blocks: Sequence[AlignedBlock], job: dict[str, Any]
) -> AlignmentSummary:
    lines = [line for block in blocks for line in block.lines]
    left_out = [line for block in blocks for line in block.left_out]
    if not lines:
        reasons = "; ".join(sorted({line["reason"] for line in left_out})[:3])
        raise JobError(
            f"{corpus.location}: none of {len(corpus)} clips of split {corpus.split!r} was aligned: {reasons}"
        )
    words = [word for line in lines for word in line["words"]]
    scores = np.array([word["score"] for word in words if "score" in word and not word.get("interpolated")])
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


def _word(text: str, time: WordTime) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "word": text,
        "start_ms": time.start_ms,
        "end_ms": time.end_ms,
        "score": round(time.score, 4),
    }
    return {**entry, "interpolated": True} if time.interpolated else entry


def _timed(line: dict[str, Any]) -> tuple[str, float, list[str], list[WordTime]]:
    times = [WordTime(word["start_ms"], word["end_ms"], word.get("score", 1.0)) for word in line["words"]]
    return line["id"], line["seconds"], [word["word"] for word in line["words"]], times


def _file_name(name: str) -> str:
    """The beginning of a file name for an id, which may hold slashes."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name).lstrip(".")[:50] or "clip"


def _suffix(content: bytes) -> str:
    try:
        return "." + soundfile.info(io.BytesIO(content)).format.lower()
    except (RuntimeError, OSError):
        return ".audio"
