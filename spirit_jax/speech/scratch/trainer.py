"""A speech tokenizer trained in seconds on the corpus at hand, behind the interface of the released one."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import tqdm
from jaxtyping import Float

from spirit_jax.checkpoint import SPEECH_TOKENIZER
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.files import atomic_directory
from spirit_jax.speech.scratch.features import MEL_FRAMES, check_length, level, log_mel, style_frames
from spirit_jax.speech.scratch.griffin_lim import GriffinLim, Observed
from spirit_jax.speech.scratch.kmeans import KMeansEncoder, nearest, normalised, one_thread
from spirit_jax.speech.scratch.prosody import F0Quantiles, VoiceStatistics, log_f0, style_features
from spirit_jax.speech.tokenizer import save_part
from spirit_jax.units import SIZES, SpeechUnits


@dataclasses.dataclass(frozen=True)
class SpeechTokenizerConfig:
    """How many units a from-scratch speech tokenizer has, and how much speech it learns them from."""

    phonetic_units: int = 200
    """k-means clusters at 25 Hz, 2 to 500. Each wants a hundred frames (4 s) or more of training speech."""
    pitch_units: int = 32
    """F0 units at 12.5 Hz, the first of them unvoiced, 3 to 64."""
    style_units: int = 12
    """Clusters of F0 and energy statistics at 1 Hz, 1 to 100."""
    max_hours: float = 2.0
    """Learn from at most this much speech, utterances drawn at random; 2 h take about 40 s."""

    def __post_init__(self):
        for name, lowest, size in (("phonetic", 2, SIZES[0] - 1), ("pitch", 3, SIZES[1]), ("style", 1, SIZES[2])):
            units = getattr(self, f"{name}_units")
            if not lowest <= units <= size:
                raise ValueError(f"{name}_units must lie in {lowest}..{size}, found {units}")
        if not self.max_hours > 0:
            raise ValueError(f"max_hours must be positive, found {self.max_hours}")


class Spoken(Protocol):
    """What training needs of an utterance (`spirit_jax.corpora.Utterance` is one)."""

    id: str
    speaker: str

    def load(self) -> Float[np.ndarray, " R"]: ...


def train_speech_tokenizer(
    utterances: Sequence[Spoken],
    config: SpeechTokenizerConfig,
    directory: str | os.PathLike,
    seed: int = 0,
    *,
    progress: bool = True,
) -> None:
    """Learn all parts of both variants and write `directory/speech_tokenizer/`, whole or not at all.

    Equal utterances, config and seed give equal files, bit for bit, on CPU. Utterances that cannot be used are left out and logged.

    Args:
        utterances: random access to training speech.
        config: sizes.
        directory: a checkpoint directory, made if needed; a speech tokenizer in it is replaced.
        seed: of the choice of utterances and the starts of k-means.
        progress: show a bar.

    Raises:
        ValueError: too little usable speech for the numbers of units.
    """
    with one_thread():
        parts = _learn(utterances, config, seed, progress)
    with atomic_directory(pathlib.Path(directory) / SPEECH_TOKENIZER, overwrite=True) as scratch:
        for name, part in parts.items():
            save_part(scratch / name, part)


def _learn(utterances: Sequence[Spoken], config: SpeechTokenizerConfig, seed: int, progress: bool) -> dict[str, Any]:
    clips = _analyse(utterances, config, seed, progress)
    if not clips:
        raise ValueError(f"none of {len(utterances)} utterances can be used to train a speech tokenizer")
    features = [clip.spectrum.reshape(len(clip.spectrum) // MEL_FRAMES, -1) for clip in clips]
    phonetic = KMeansEncoder.fit(features, config.phonetic_units, seed)
    pitch = F0Quantiles.fit([clip.octaves for clip in clips], config.pitch_units)
    style = VoiceStatistics.fit([clip.style for clip in clips], config.style_units, seed)
    observed = [
        Observed(
            clip.speaker,
            SpeechUnits(nearest(points, phonetic.centroids), pitch.quantize(clip.octaves), style.quantize(clip.style)),
            clip.spectrum,
            clip.level,
            clip.octaves,
            clip.mean_log2_f0,
        )
        for clip, points in zip(clips, features, strict=True)
    ]
    vocoder = GriffinLim.fit(observed, pitch.octaves, config.phonetic_units, config.style_units)
    return {
        "phonetic": phonetic,
        "pitch": pitch,
        "style": style,
        "vocoder_base": vocoder,
        "vocoder_expressive": vocoder,
    }


@dataclasses.dataclass(frozen=True, eq=False)
class _Clip:
    """The features of one utterance; see `Observed`."""

    speaker: str
    spectrum: np.ndarray
    level: np.ndarray
    octaves: np.ndarray
    mean_log2_f0: float
    style: np.ndarray


def _analyse(utterances: Sequence[Spoken], config: SpeechTokenizerConfig, seed: int, progress: bool) -> list[_Clip]:
    clips, samples = [], 0
    order = np.random.default_rng(seed).permutation(len(utterances))
    for index in tqdm.tqdm(order, desc="speech tokenizer", unit="utterance", disable=not progress):
        try:
            utterance = utterances[int(index)]
            audio = utterance.load()
            check_length(audio)
        except ValueError as error:  # CorpusError and AudioError name the utterance or the reason
            logging.warning("left out of the speech tokenizer's training: %s", error)
            continue
        spectrum, (octaves, mean) = log_mel(audio), log_f0(audio)
        style = style_features(spectrum, octaves, mean, style_frames(audio.size))
        clips.append(_Clip(utterance.speaker, normalised(spectrum), level(spectrum), octaves, mean, style))
        samples += audio.size
        if samples >= config.max_hours * 3600 * SAMPLE_RATE:
            break
    return clips
