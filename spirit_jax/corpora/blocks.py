"""Encoding of one block of consecutive utterances, for a local loop, one of several hosts, or a Beam worker.

A split is cut into blocks of a fixed size. Block i depends on the split and the speech tokenizer only, not on the order
in which blocks are encoded or on who encodes them. `encoding.py` schedules the blocks of a job.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from spirit_jax.core.arithmetic import ceil_div
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.errors import printable
from spirit_jax.core.threads import one_thread
from spirit_jax.corpora.inputs import Input
from spirit_jax.corpora.utterance import Utterance
from spirit_jax.data.unit_record import RecordError, UnitRecord
from spirit_jax.speech import SpeechTokenizer
from spirit_jax.units import NAMES, SIZES, SpeechUnits

SPEECH_BLOCK = 64
"""Utterances of speech in a block."""
TEXT_BLOCK = 4096
"""Documents of text in a block."""

_Loaded = tuple[Utterance, np.ndarray | None]
"""An utterance and its audio, float32 [R] at 16 kHz; None for text."""


@dataclasses.dataclass(frozen=True)
class EncodedBlock:
    """The records of a block, and the counts for the summary of the split."""

    records: list[bytes]
    """Serialized records, in the order of the corpus."""
    bad: list[str]
    """Why each unusable utterance was left out."""
    samples: int
    """Samples of speech in the records."""
    words: int
    """Aligned words in the records; words of the transcript where there is no alignment."""
    timed: int
    """Records with word times."""
    tokens: list[int]
    """Tokens of each stream after deduplication."""
    histograms: list[list[int]]
    """Occurrences of each unit of each stream, at the frame rate."""
    seconds: float
    """Seconds from the start of the block to its end; not reproducible."""


class BlockEncoder:
    """Encodes any block of one split. Use it as a context manager.

    Example::

        with BlockEncoder(corpus, tokenizer) as encoder:
            first = encoder.encode(0)

    Args:
        corpus: the split.
        tokenizer: encodes the audio; ignored for text.
        skip_bad: whether an unusable utterance is left out (`EncodedBlock.bad`) instead of raising its error.

    Attributes:
        size: utterances in a block; the last block may have fewer.
        count: number of blocks.
    """

    def __init__(self, corpus: Input, tokenizer: SpeechTokenizer | None, *, skip_bad: bool = True):
        self._corpus, self._skip_bad = corpus, skip_bad
        self._tokenizer = tokenizer if corpus.has_speech else None
        self.size = SPEECH_BLOCK if corpus.has_speech else TEXT_BLOCK
        self.count = ceil_div(len(corpus), self.size)
        self._loading: dict[int, list[Future[_Loaded | ValueError]]] = {}

    def __enter__(self) -> "BlockEncoder":
        self._resources = contextlib.ExitStack()
        self._resources.enter_context(one_thread())
        self._pool = self._resources.enter_context(ThreadPoolExecutor(os.cpu_count()))
        return self

    def __exit__(self, *_) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._resources.close()

    def indices(self, block: int) -> range:
        """The utterances of a block."""
        return range(block * self.size, min((block + 1) * self.size, len(self._corpus)))

    def load_ahead(self, block: int) -> None:
        """Start to read and decode the audio of a block in background threads."""
        if block not in self._loading:
            self._loading[block] = [self._pool.submit(self._load, index) for index in self.indices(block)]

    def encode(self, block: int) -> EncodedBlock:
        """Encode one block.

        Raises:
            CorpusError, RecordError: an utterance cannot be used, unless `skip_bad`; names it.
        """
        began = time.perf_counter()
        self.load_ahead(block)
        loaded = [future.result() for future in self._loading.pop(block)]
        errors = [item for item in loaded if isinstance(item, ValueError)]
        if errors and not self._skip_bad:
            raise errors[0]
        bad = [printable(str(error)) for error in errors]
        records, samples, words, timed = [], 0, 0, 0
        tokens = np.zeros(len(NAMES), int)
        histograms = [np.zeros(size, int) for size in SIZES]
        for record, length in self._records([item for item in loaded if not isinstance(item, ValueError)]):
            try:
                record.validate()
            except RecordError as error:
                if not self._skip_bad:
                    raise
                bad.append(printable(str(error)))
                continue
            records.append(record.to_bytes())
            samples += length
            timed += bool(record.words)
            words += len(record.words or record.text.split())
            if record.units is not None:
                tokens += np.bincount(record.units.merged()[0], minlength=len(NAMES))
                for counts, stream in zip(histograms, record.units.streams, strict=True):
                    if stream is not None:
                        counts += np.bincount(stream, minlength=len(counts))
        return EncodedBlock(
            records=records,
            bad=bad,
            samples=samples,
            words=words,
            timed=timed,
            tokens=tokens.tolist(),
            histograms=[counts.tolist() for counts in histograms],
            seconds=time.perf_counter() - began,
        )

    def _load(self, index: int) -> _Loaded | ValueError:
        """Read one utterance; an unusable one gives its error."""
        try:
            utterance = self._corpus[index]
            if self._tokenizer is not None:
                return utterance, utterance.load()
            utterance.check_transcript()
            return utterance, None
        except ValueError as error:  # CorpusError and AudioError name the utterance
            return error

    def _records(self, loaded: Sequence[_Loaded]) -> list[tuple[UnitRecord, int]]:
        """The records of utterances and the samples of each, 0 for text."""
        if self._tokenizer is None:
            return [(UnitRecord(utterance.id, utterance.text), 0) for utterance, _ in loaded]
        spoken = [(utterance, audio) for utterance, audio in loaded if audio is not None]
        units = self._tokenizer.encode_batch([audio for _, audio in spoken])
        return [
            (_speech_record(utterance, audio.size, one), audio.size)
            for (utterance, audio), one in zip(spoken, units, strict=True)
        ]


def _speech_record(utterance: Utterance, samples: int, units: SpeechUnits) -> UnitRecord:
    """The record of an utterance; word times that pass the end of the audio are cut to it."""
    duration_ms = round(samples * 1000 / SAMPLE_RATE)
    spans_ms = np.minimum(utterance.spans_ms, duration_ms)
    return UnitRecord(utterance.id, utterance.text, utterance.words, spans_ms, units, duration_ms, utterance.speaker)
