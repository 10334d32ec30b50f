"""The result of encoding a split: counts, rates and the frequency of each unit."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.files import read_json, write_file
from spirit_jax.core.paths import as_path
from spirit_jax.corpora.blocks import EncodedBlock
from spirit_jax.corpora.inputs import Input
from spirit_jax.data.records import check_files
from spirit_jax.data.unit_record import RecordError
from spirit_jax.units import NAMES, SIZES


@dataclasses.dataclass(frozen=True)
class EncodingSummary:
    """Result of encoding one split; stored beside its records as `encoding-SPLIT.json`."""

    corpus: str
    """Fingerprint of the input."""
    units: str
    """Fingerprint of the encoders, "" for text."""
    split: str
    """Name of the split."""
    records: int
    """Utterances or documents written."""
    bad: int
    """Utterances or documents left out because they cannot be used; each is logged with its reason."""
    hours: float
    """Hours of speech written."""
    words: int
    """Aligned words written; words of the transcript where there is no alignment."""
    tokens_per_second: dict[str, float]
    """Tokens per second of speech in each stream ("Hu", "Pi", "St"), after deduplication."""
    seconds: float
    """Seconds that encoding took, summed over hosts and interruptions."""
    timed: int = 0
    """Utterances with word times."""
    histograms: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    """Occurrences of each unit of each stream, at the frame rate."""
    unit_counts: dict[str, int] = dataclasses.field(default_factory=dict)
    """Number of different units of each stream's encoder."""

    @property
    def real_time_factor(self) -> float:
        """Seconds of speech encoded per second."""
        return self.hours * 3600 / max(self.seconds, 1e-9)

    def __str__(self) -> str:
        timed = f" ({self.timed} with word times)" if self.hours else ""
        text = f"{self.split}: {self.records} records{timed}, {self.words} words"
        if self.hours:
            rates = ", ".join(f"{rate:.1f} {name}" for name, rate in self.tokens_per_second.items())
            text += (
                f", {self.hours:.2f} h of speech at {rates} tokens/s, "
                f"encoded {self.real_time_factor:.0f} x faster than real time"
            )
        text += f"; {self.bad} bad ones left out" if self.bad else ""
        lines = (
            f"  {name} {_describe(counts, self.unit_counts.get(name, len(counts)))}"
            for name, counts in self.histograms.items()
        )
        return "\n".join([text, *lines])

    @staticmethod
    def path(directory: str | os.PathLike, split: str) -> Any:
        """Where the summary of a split is stored."""
        return as_path(directory) / f"encoding-{split}.json"

    def save(self, directory: str | os.PathLike) -> None:
        """Store the summary beside the records."""
        write_file(self.path(directory, self.split), json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, directory: str | os.PathLike, split: str) -> "EncodingSummary | None":
        """The stored summary of a split, None if there is none or it is damaged."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            summary = cls(**read_json(cls.path(directory, split)))
            if isinstance(summary.corpus, str) and isinstance(summary.units, str) and isinstance(summary.records, int):
                return summary
        return None

    def is_complete(self, directory: str | os.PathLike) -> bool:
        """Whether all records of the split are there."""
        try:
            return check_files(directory, self.split) == self.records
        except RecordError:
            return False


class Totals:
    """Sums over the blocks of a split."""

    def __init__(self):
        self.records = self.bad = self.samples = self.words = self.timed = 0
        self.seconds = 0.0
        self._tokens = np.zeros(len(NAMES), int)
        self._histograms = [np.zeros(size, int) for size in SIZES]

    def add(self, block: EncodedBlock) -> None:
        """Add a finished block."""
        self.records += len(block.records)
        self.bad += len(block.bad)
        self.samples += block.samples
        self.words += block.words
        self.timed += block.timed
        self.seconds += block.seconds
        self._tokens += block.tokens
        for sums, counts in zip(self._histograms, block.histograms, strict=True):
            sums += counts

    def summary(self, corpus: Input, units: str, unit_counts: Sequence[int] = ()) -> EncodingSummary:
        """The summary of the split that the blocks make up.

        Args:
            corpus: the encoded split.
            units: fingerprint of the encoders, "" for text.
            unit_counts: how many different units the encoder of each stream has.
        """
        return EncodingSummary(
            corpus=corpus.fingerprint,
            units=units,
            split=corpus.split,
            records=self.records,
            bad=self.bad,
            hours=self.samples / SAMPLE_RATE / 3600,
            words=self.words,
            tokens_per_second={
                name: count * SAMPLE_RATE / self.samples
                for name, count in zip(NAMES, self._tokens.tolist(), strict=True)
                if count
            },
            seconds=self.seconds,
            timed=self.timed,
            histograms={
                name: counts.tolist() for name, counts in zip(NAMES, self._histograms, strict=True) if counts.any()
            },
            unit_counts=dict(zip(NAMES, unit_counts, strict=False)),  # one for Base, none for text
        )


def _describe(counts: Sequence[int], size: int) -> str:
    """The histogram of an encoder with `size` units in one line: units in use, perplexity, the most frequent units."""
    share = np.array(counts) / max(sum(counts), 1)
    used = share[share > 0]
    most = ", ".join(f"{unit} {share[unit]:.1%}" for unit in np.argsort(-share, kind="stable")[:5] if share[unit])
    perplexity = np.exp(-np.sum(used * np.log(used)))
    return f"{len(used)} of {size} units in use, perplexity {perplexity:.0f}; most frequent: {most}"
