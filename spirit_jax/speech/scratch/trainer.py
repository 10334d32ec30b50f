"""Trains a speech tokenizer of scratch parts, in seconds, on the corpus at hand."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import tqdm
from jaxtyping import Float

from spirit_jax.checkpoint import SPEECH_TOKENIZER
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import atomic_directory
from spirit_jax.core.threads import one_thread
from spirit_jax.speech.config import SpeechTokenizerConfig
from spirit_jax.speech.features import MEL_FRAMES_PER_UNIT, check_length, level, log_mel, style_frames
from spirit_jax.speech.protocols import Part
from spirit_jax.speech.scratch.griffin_lim import GriffinLim, Observed
from spirit_jax.speech.scratch.kmeans import KMeansEncoder, nearest, normalize
from spirit_jax.speech.scratch.prosody import F0Quantiles, VoiceStatistics, log_f0, style_features
from spirit_jax.speech.storage import save_part
from spirit_jax.units import SpeechUnits


class Spoken(Protocol):
    """A training utterance; `spirit_jax.corpora.Utterance` is one."""

    @property
    def id(self) -> str:
        """Its name in messages."""
        ...

    @property
    def speaker(self) -> str:
        """The name of the speaker."""
        ...

    def load(self) -> Float[np.ndarray, " R"]:
        """The audio, float32 [R] at 16 kHz.

        Raises:
            SpiritError: the utterance has no audio that can be read; the message names it.
        """
        ...


def train_speech_tokenizer(
    utterances: Sequence[Spoken],
    config: SpeechTokenizerConfig,
    directory: str | os.PathLike,
    seed: int = 0,
    *,
    progress: bool = True,
) -> None:
    """Learn the parts of both variants and write `directory/speech_tokenizer/` in one atomic step.

    Equal utterances, config and seed give equal files, bit for bit, on CPU. Utterances that cannot be used are left out
    and logged.

    Args:
        utterances: training speech, with random access.
        config: numbers of units, and how much speech to use.
        directory: a checkpoint directory, which is created if needed. A speech tokenizer in it is replaced.
        seed: of the choice of utterances and the starts of k-means.
        progress: whether to show a progress bar.

    Raises:
        SpiritError: too little usable speech for the numbers of units.
    """
    with one_thread():
        parts = _learn(utterances, config, seed, progress)
    with atomic_directory(pathlib.Path(directory) / SPEECH_TOKENIZER, overwrite=True) as scratch:
        for name, part in parts.items():
            save_part(scratch / name, part)


def _learn(utterances: Sequence[Spoken], config: SpeechTokenizerConfig, seed: int, progress: bool) -> dict[str, Part]:
    """The parts by the names of their directories."""
    clips = _analyze(utterances, config, seed, progress)
    if not clips:
        raise SpiritError(f"none of {len(utterances)} utterances can be used to train a speech tokenizer")
    features = [clip.spectrum.reshape(len(clip.spectrum) // MEL_FRAMES_PER_UNIT, -1) for clip in clips]
    phonetic = KMeansEncoder.fit(features, config.phonetic_units, seed)
    pitch = F0Quantiles.fit([clip.octaves for clip in clips], config.pitch_units)
    style = VoiceStatistics.fit([clip.style for clip in clips], config.style_units, seed)
    observed = [
        Observed(
            speaker=clip.speaker,
            units=SpeechUnits(
                hubert=nearest(points, phonetic.centroids),
                pitch=pitch.quantize(clip.octaves),
                style=style.quantize(clip.style),
            ),
            spectrum=clip.spectrum,
            level=clip.level,
            octaves=clip.octaves,
            mean_log2_f0=clip.mean_log2_f0,
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
    """The features of one utterance; the fields of `Observed`, and `style`, its `style_features`."""

    speaker: str
    spectrum: np.ndarray
    level: np.ndarray
    octaves: np.ndarray
    mean_log2_f0: float
    style: np.ndarray


def _analyze(utterances: Sequence[Spoken], config: SpeechTokenizerConfig, seed: int, progress: bool) -> list[_Clip]:
    """The features of utterances in random order, until there is enough speech."""
    clips, samples = [], 0
    order = np.random.default_rng(seed).permutation(len(utterances))
    for index in tqdm.tqdm(order, desc="speech tokenizer", unit="utterance", disable=not progress):
        try:
            utterance = utterances[int(index)]
            audio = utterance.load()
            check_length(audio)
        except SpiritError as error:
            logging.warning("left out of the speech tokenizer's training: %s", error)
            continue
        spectrum, (octaves, mean) = log_mel(audio), log_f0(audio)
        clip = _Clip(
            speaker=utterance.speaker,
            spectrum=normalize(spectrum),
            level=level(spectrum),
            octaves=octaves,
            mean_log2_f0=mean,
            style=style_features(spectrum, octaves, mean, style_frames(audio.size)),
        )
        clips.append(clip)
        samples += audio.size
        if samples >= config.max_hours * 3600 * SAMPLE_RATE:
            break
    return clips
