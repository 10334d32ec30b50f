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
from spirit_jax.speech.protocols import Part, PhoneticEncoder, PitchEncoder, StyleEncoder
from spirit_jax.speech.scratch.griffin_lim import GriffinLim, Observed
from spirit_jax.speech.scratch.kmeans import KMeansEncoder, nearest, normalize
from spirit_jax.speech.scratch.prosody import (
    F0Quantiles,
    VoiceStatistics,
    log_f0,
    octaves_of_units,
    style_features,
)
from spirit_jax.speech.storage import has_kind, save_part
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


@dataclasses.dataclass(frozen=True)
class TrainedEncoders:
    """The encoders that a speech tokenizer has already; the parts from scratch speak their units."""

    phonetic: PhoneticEncoder
    pitch: PitchEncoder | None = None
    style: StyleEncoder | None = None


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
        parts = _learn(utterances, config, seed, progress, None)
    with atomic_directory(pathlib.Path(directory) / SPEECH_TOKENIZER, overwrite=True) as scratch:
        for name, part in parts.items():
            save_part(scratch / name, part)


def complete_speech_tokenizer(
    utterances: Sequence[Spoken],
    config: SpeechTokenizerConfig,
    directory: str | os.PathLike,
    trained: TrainedEncoders,
    seed: int = 0,
    *,
    progress: bool = True,
) -> list[str]:
    """Learn the parts that `directory/speech_tokenizer/` lacks, or has from scratch. Trained parts are kept.

    Parts from scratch are replaced because they may belong to other units.

    Args:
        utterances, config, directory, seed, progress: as for `train_speech_tokenizer`; numbers of units are those of
            `trained` where it has an encoder.
        trained: the trained encoders of the tokenizer, whose units the new parts speak.

    Returns:
        The names of the new parts.

    Raises:
        SpiritError: too little usable speech for the numbers of units.
    """
    place = pathlib.Path(directory) / SPEECH_TOKENIZER
    with one_thread():
        parts = _learn(utterances, config, seed, progress, trained)
    names = [name for name, part in parts.items() if not (place / name).exists() or has_kind(place / name, part.kind)]
    for name in names:
        save_part(place / name, parts[name])
    return names


def _learn(
    utterances: Sequence[Spoken],
    config: SpeechTokenizerConfig,
    seed: int,
    progress: bool,
    trained: TrainedEncoders | None,
) -> dict[str, Part]:
    """The parts by the names of their directories; without encoders that are trained already."""
    clips = _analyze(utterances, config, seed, progress, trained)
    if not clips:
        raise SpiritError(f"none of {len(utterances)} utterances can be used to train a speech tokenizer")
    learned: dict[str, Part] = {}
    if trained is None:
        features = [clip.spectrum.reshape(len(clip.spectrum) // MEL_FRAMES_PER_UNIT, -1) for clip in clips]
        phonetic = KMeansEncoder.fit(features, config.phonetic_units, seed)
        hubert, learned["phonetic"] = [nearest(points, phonetic.centroids) for points in features], phonetic
        count = config.phonetic_units
    else:
        hubert, count = [clip.hubert for clip in clips], trained.phonetic.unit_count
    contours = [clip.octaves for clip in clips]
    if trained is None or trained.pitch is None:
        learned["pitch"] = quantiles = F0Quantiles.fit(contours, config.pitch_units)
        pitch, pitches = [quantiles.quantize(contour) for contour in contours], config.pitch_units
    else:
        pitch, pitches = [clip.pitch for clip in clips], trained.pitch.unit_count
    if trained is None or trained.style is None:
        learned["style"] = statistics = VoiceStatistics.fit([clip.style for clip in clips], config.style_units, seed)
        style, styles = [statistics.quantize(clip.style) for clip in clips], config.style_units
    else:
        style, styles = [clip.style_units for clip in clips], trained.style.unit_count
    observed = [
        Observed(
            speaker=clip.speaker,
            units=SpeechUnits(hubert=hubert_units, pitch=pitch_units, style=style_units),
            spectrum=clip.spectrum,
            level=clip.level,
            octaves=clip.octaves,
            mean_log2_f0=clip.mean_log2_f0,
        )
        for clip, hubert_units, pitch_units, style_units in zip(clips, hubert, pitch, style, strict=True)
    ]
    vocoder = GriffinLim.fit(observed, octaves_of_units(pitch, contours, pitches), count, styles)
    return {**learned, "vocoder_base": vocoder, "vocoder_expressive": vocoder}


@dataclasses.dataclass(frozen=True, eq=False)
class _Clip:
    """The features of one utterance: fields of `Observed`, `style_features`, and units of trained encoders."""

    speaker: str
    spectrum: np.ndarray
    level: np.ndarray
    octaves: np.ndarray
    mean_log2_f0: float
    style: np.ndarray
    hubert: np.ndarray
    pitch: np.ndarray
    style_units: np.ndarray


def _analyze(
    utterances: Sequence[Spoken],
    config: SpeechTokenizerConfig,
    seed: int,
    progress: bool,
    trained: TrainedEncoders | None,
) -> list[_Clip]:
    """The features of utterances in random order, until there is enough speech."""
    encoders = (None, None, None) if trained is None else (trained.phonetic, trained.pitch, trained.style)
    none = np.zeros(0, np.int32)
    clips, samples = [], 0
    order = np.random.default_rng(seed).permutation(len(utterances))
    for index in tqdm.tqdm(order, desc="speech tokenizer", unit="utterance", disable=not progress):
        try:
            utterance = utterances[int(index)]
            audio = utterance.load()
            check_length(audio)
            hubert, pitch, style = (none if each is None else each.encode_batch([audio])[0] for each in encoders)
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
            hubert=hubert,
            pitch=pitch,
            style_units=style,
        )
        clips.append(clip)
        samples += audio.size
        if samples >= config.max_hours * 3600 * SAMPLE_RATE:
            break
    return clips
