"""A corpus of audio and a speech tokenizer give unit records; a corpus of text gives text records."""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import time
from collections.abc import Sequence

import numpy as np
import tqdm

from spirit_jax.audio import SAMPLE_RATE
from spirit_jax.checkpoint import write_file
from spirit_jax.data.corpora import Corpus, Utterance, open_corpus
from spirit_jax.data.records import RecordError, RecordSource, RecordWriter, UnitRecord
from spirit_jax.speech import SpeechTokenizer
from spirit_jax.speech.kmeans import one_thread
from spirit_jax.units import NAMES


class EncodingError(ValueError):
    """A corpus that cannot be encoded; the message names it."""


@dataclasses.dataclass(frozen=True)
class EncodingSummary:
    """What became of one split; kept beside its records as `encoding-SPLIT.json`."""

    corpus: str
    """Fingerprint of the split's files."""
    units: str
    """Fingerprint of the encoders, "" for text."""
    split: str
    records: int
    """Utterances or documents written."""
    bad: int
    """Those left out, each logged with its reason."""
    hours: float
    """Of speech written."""
    words: int
    """Aligned words written, or blank-separated words of text."""
    tokens_per_second: dict[str, float]
    """Of speech, in each stream after deduplication ("Hu", "Pi", "St")."""
    seconds: float
    """That encoding took."""

    @property
    def real_time_factor(self) -> float:
        """Seconds of speech encoded in a second."""
        return self.hours * 3600 / max(self.seconds, 1e-9)

    def __str__(self) -> str:
        text = f"{self.split}: {self.records} records, {self.words} words"
        if self.hours:
            rates = ", ".join(f"{rate:.1f} {name}" for name, rate in self.tokens_per_second.items())
            text += f", {self.hours:.2f} h of speech at {rates} tokens/s, encoded {self.real_time_factor:.0f} x faster than real time"
        return text + (f"; {self.bad} bad ones left out" if self.bad else "")


def encode_corpus(
    corpus: str | os.PathLike,
    tokenizer: SpeechTokenizer | None,
    directory: str | os.PathLike,
    splits: Sequence[str] = ("train", "validation"),
    *,
    shards: int = 1,
    skip_bad: bool = True,
    progress: bool = True,
) -> dict[str, EncodingSummary]:
    """Encode splits of a bundled corpus or a prepared TFDS directory into a directory of unit records.

    A split that is there already, made from the same files by the same encoders, is not encoded again.

    Args:
        corpus: name or directory, as for `open_corpus`.
        tokenizer: may be None for a corpus of text.
        directory: of records, made if needed.
        splits: which; they must exist.
        shards: record files a split.
        skip_bad: leave out what cannot be used (logged and counted); otherwise the first such utterance is an error.
        progress: show a bar with the real-time factor.

    Raises:
        CorpusError: no such corpus or split.
        EncodingError: speech without a tokenizer, or nothing usable.
        RecordError: the directory holds other splits with units of another tokenizer.
    """
    return {
        split: encode_split(
            open_corpus(corpus, split), tokenizer, directory, shards=shards, skip_bad=skip_bad, progress=progress
        )
        for split in splits
    }


def encode_split(
    corpus: Corpus,
    tokenizer: SpeechTokenizer | None,
    directory: str | os.PathLike,
    *,
    shards: int = 1,
    skip_bad: bool = True,
    progress: bool = True,
) -> EncodingSummary:
    """Encode one opened split; see `encode_corpus`."""
    if corpus.has_speech and tokenizer is None:
        raise EncodingError(f"corpus {corpus.name!r} holds speech: a speech tokenizer is needed to encode it")
    directory, split = pathlib.Path(directory), corpus.split
    units = tokenizer.fingerprint if corpus.has_speech else ""
    fingerprint = corpus.fingerprint
    done = _finished(directory, split)
    if done and (done.corpus, done.units) == (fingerprint, units):
        return done
    started, bad, samples, words, tokens = time.perf_counter(), 0, 0, 0, np.zeros(len(NAMES), int)
    bar = tqdm.tqdm(range(len(corpus)), desc=f"{corpus.name} {split}", unit="utterance", disable=not progress)
    with one_thread(), RecordWriter(directory, split, shards, name=corpus.name, units=units) as writer:
        for index in bar:
            try:
                record, length = _encode(corpus[index], tokenizer if corpus.has_speech else None)
                writer.write(record)
            except ValueError as error:  # CorpusError, AudioError, UnitError, RecordError: they name the utterance
                if not skip_bad:
                    raise
                logging.warning("left out: %s", error)
                bad += 1
                continue
            samples += length
            words += len(record.words or record.text.split())
            if record.units is not None:
                tokens += np.bincount(record.units.merged()[0], minlength=len(NAMES))
                factor = samples / SAMPLE_RATE / (time.perf_counter() - started)
                bar.set_postfix_str(f"{factor:.0f} x real time, {bad} bad", refresh=False)
        if not writer.count:
            raise EncodingError(f"{corpus.directory}: none of {len(corpus)} utterances of split {split!r} can be used")
    summary = EncodingSummary(
        corpus=fingerprint,
        units=units,
        split=split,
        records=writer.count,
        bad=bad,
        hours=samples / SAMPLE_RATE / 3600,
        words=words,
        tokens_per_second={
            name: count * SAMPLE_RATE / samples for name, count in zip(NAMES, tokens.tolist(), strict=True) if count
        },
        seconds=time.perf_counter() - started,
    )
    write_file(_summary_path(directory, split), json.dumps(dataclasses.asdict(summary), indent=1) + "\n")
    return summary


def _encode(utterance: Utterance, tokenizer: SpeechTokenizer | None) -> tuple[UnitRecord, int]:
    """A record and the samples it was made from."""
    if tokenizer is None:
        utterance.check_text()
        return UnitRecord(utterance.id, utterance.text), 0
    audio = utterance.load()
    duration_ms = round(audio.size * 1000 / SAMPLE_RATE)
    return (
        UnitRecord(
            utterance.id,
            utterance.text,
            utterance.words,
            np.minimum(utterance.spans_ms, duration_ms),
            tokenizer.encode(audio),
            duration_ms,
            utterance.speaker,
        ),
        audio.size,
    )


def _summary_path(directory: pathlib.Path, split: str) -> pathlib.Path:
    return directory / f"encoding-{split}.json"


def _finished(directory: pathlib.Path, split: str) -> EncodingSummary | None:
    """The summary of a split whose records are all there."""
    with contextlib.suppress(OSError, ValueError, TypeError, RecordError):
        summary = EncodingSummary(**json.loads(_summary_path(directory, split).read_text()))
        if len(RecordSource(directory, split)) == summary.records:
            return summary
    return None
