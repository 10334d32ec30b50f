"""Forced alignment with any CTC network: emissions of all clips, one batched Viterbi search, words out of frames."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import jax
import numpy as np
from jaxtyping import Float, Int

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.corpora.alignment.aligner import AlignmentError, WordTime, check_sound, fill_gaps
from spirit_jax.corpora.alignment.alphabet import Alphabet, LabelSequence
from spirit_jax.corpora.alignment.padding import padded_batches, padded_size
from spirit_jax.corpora.alignment.spelling import SpelledWord
from spirit_jax.models.ctc import IMPOSSIBLE, forced_alignment

STAR_COST = 0.1
"""Nats below the best symbol of a frame at which the wildcard stands: it takes what no label explains, and never a
frame whose best symbol the transcript has."""

LONGEST_STRETCH_MS = 60
"""Words next to each other share the blanks between them, up to this much on each side; the rest is a pause."""

_AUDIO_AT_ONCE = 600 * SAMPLE_RATE  # emissions of this much audio are held at once, or of one longer clip
_SEARCH_BUDGET = 1 << 15  # frames of a batch of the search


@dataclasses.dataclass(frozen=True)
class FrameGrid:
    """When the frames of a network are."""

    hop_ms: float
    """Milliseconds from one frame to the next; a frame covers as much."""
    offset_ms: float
    """Milliseconds from the start of the audio to the start of the first frame."""

    def edges_ms(self, first: Int[np.ndarray, " W"], last: Int[np.ndarray, " W"]) -> Float[np.ndarray, "W 2"]:
        """Start of the first and end of the last frame of each word."""
        return np.stack([first, last + 1], axis=1) * self.hop_ms + self.offset_ms


class CTCNetwork(Protocol):
    """A network that gives each frame of audio a distribution over symbols."""

    @property
    def name(self) -> str:
        """Names the network and its weights, for manifests and result files."""
        ...

    @property
    def alphabet(self) -> Alphabet:
        """Its symbols."""
        ...

    @property
    def grid(self) -> FrameGrid:
        """Its frames."""
        ...

    @property
    def bias_v(self) -> Float[np.ndarray, " V"]:
        """Added to the log-probabilities for the search, such as scaled label priors with a minus sign."""
        ...

    @property
    def blanks_in_words(self) -> bool:
        """Whether the network was trained to put blanks between the characters of a word, as CTC does."""
        ...

    def log_probs(self, clips: Sequence[Float[np.ndarray, " R"]]) -> list[Float[np.ndarray, "T V"]]:
        """Log-probabilities of the symbols at each frame of each clip.

        Args:
            clips: float32 [R] at 16 kHz, of any lengths; a clip that is too short for a frame gives none.
        """
        ...


class CTCAligner:
    """An `Aligner` made of a CTC network (Pratap et al. 2023, arXiv 2305.13516)."""

    def __init__(self, network: CTCNetwork) -> None:
        self._network = network
        self.name = network.name

    def align(
        self, clips: Sequence[Float[np.ndarray, " R"]], transcripts: Sequence[Sequence[SpelledWord]]
    ) -> list[list[WordTime] | AlignmentError]:
        """As `Aligner.align`."""
        labels = [self._network.alphabet.label(words) for words in transcripts]
        problems = [self._problem(clip, one) for clip, one in zip(clips, labels, strict=True)]
        results: list[list[WordTime] | AlignmentError] = [AlignmentError(problem) for problem in problems]
        usable = [i for i, problem in enumerate(problems) if not problem]
        for group in _groups(usable, [clip.size for clip in clips]):
            emissions = self._network.log_probs([clips[i] for i in group])
            found = self._search(emissions, [labels[i] for i in group])
            for i, log_probs, path in zip(group, emissions, found, strict=True):
                results[i] = (
                    path
                    if isinstance(path, AlignmentError)
                    else self._words(log_probs, labels[i], path, len(transcripts[i]), clips[i].size)
                )
        return results

    def _problem(self, clip: np.ndarray, labels: LabelSequence) -> str:
        """Why a clip cannot be aligned; "" if nothing is known against it."""
        if all(symbol == self._network.alphabet.star for symbol in labels.symbols):
            known = "".join(sorted(text for text in self._network.alphabet.symbols if len(text) == 1))
            shown = known if len(known) <= 60 else f"{known[:60]}..."
            return f"the transcript has no character that the aligner knows; it knows {shown}"
        try:
            check_sound(clip)
        except AlignmentError as error:
            return str(error)
        return ""

    def _search(
        self, emissions: Sequence[np.ndarray], labels: Sequence[LabelSequence]
    ) -> list[np.ndarray | AlignmentError]:
        """The label of each frame, -1 for blanks, for each clip."""
        network = self._network
        found: list[np.ndarray | AlignmentError] = [AlignmentError("not aligned")] * len(labels)
        for batch, frames, rows in padded_batches([max(1, len(e)) for e in emissions], _SEARCH_BUDGET):
            size = padded_size(max(len(labels[i].symbols) for i in batch), 16)
            scores = np.zeros((rows, frames, len(network.bias_v) + 1), np.float32)
            symbols, pauses = np.zeros((rows, size), np.int32), np.zeros((rows, size + 1), bool)
            counts, lengths = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
            for row, i in enumerate(batch):
                counts[row], lengths[row] = len(emissions[i]), len(labels[i].symbols)
                scores[row, : counts[row], :-1] = emissions[i] + network.bias_v
                scores[row, : counts[row], -1] = scores[row, : counts[row], :-1].max(axis=1) - STAR_COST
                symbols[row, : lengths[row]] = labels[i].symbols
                pauses[row, : lengths[row] + 1] = labels[i].pauses
            allowed = None if network.blanks_in_words else pauses
            alignment = _align(scores, counts, symbols, lengths, network.alphabet.blank, allowed)
            best, paths = np.asarray(alignment.score_b), np.asarray(alignment.labels_bt)
            for row, i in enumerate(batch):
                possible = counts[row] and best[row] > IMPOSSIBLE / 2
                found[i] = (
                    paths[row, : counts[row]]
                    if possible
                    else AlignmentError(
                        f"its {counts[row]} frames of {network.grid.hop_ms:g} ms are too few for the {lengths[row]} "
                        "characters of the transcript"
                    )
                )
        return found

    def _words(
        self, log_probs: np.ndarray, labels: LabelSequence, path: np.ndarray, count: int, samples: int
    ) -> list[WordTime]:
        """The words of a clip out of the label of each frame."""
        frames = np.flatnonzero(path >= 0)
        symbol_words, symbols = np.array(labels.words), np.array(labels.symbols)
        words = symbol_words[path[frames]]
        real = words >= 0
        frames, words = frames[real], words[real]
        fit = log_probs[frames, symbols[path[frames]]] - log_probs[frames].max(axis=1)
        indices, first = np.unique(words, return_index=True)
        last = np.append(first[1:], len(words)) - 1
        duration_ms = samples * 1000 / SAMPLE_RATE
        edges = self._network.grid.edges_ms(frames[first], frames[last])
        stars = set(np.flatnonzero(symbols == self._network.alphabet.star).tolist())
        for left in range(len(indices) - 1):
            right = left + 1
            if stars and stars & set(path[frames[last[left]] : frames[first[right]]].tolist()):
                continue  # the audio in between belongs to words that the network cannot spell
            stretch = min((edges[right, 0] - edges[left, 1]) / 2, LONGEST_STRETCH_MS)
            edges[left, 1] += stretch
            edges[right, 0] -= stretch
        edges = np.clip(edges, 0, duration_ms).round().astype(int)
        scores = np.exp(np.add.reduceat(fit, first) / (last - first + 1))
        times: list[WordTime | None] = [None] * count
        for index, (start, end), score in zip(indices.tolist(), edges.tolist(), scores.tolist(), strict=True):
            times[index] = WordTime(start, end, min(1.0, score))
        return fill_gaps(times, int(duration_ms))


def _groups(indices: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Clips whose emissions are held at once."""
    groups: list[list[int]] = []
    total = 0
    for index in indices:
        if not groups or total + sizes[index] > _AUDIO_AT_ONCE:
            groups.append([])
            total = 0
        groups[-1].append(index)
        total += sizes[index]
    return groups


_align = jax.jit(forced_alignment)
