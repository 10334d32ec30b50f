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
from spirit_jax.speech.protocols import Part, PhoneticEncoder
from spirit_jax.speech.scratch.griffin_lim import GriffinLim, Observed
from spirit_jax.speech.scratch.kmeans import KMeansEncoder, nearest, normalize
from spirit_jax.speech.scratch.prosody import F0Quantiles, VoiceStatistics, log_f0, style_features
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
    phonetic: PhoneticEncoder,
    seed: int = 0,
    *,
    progress: bool = True,
) -> list[str]:
    """Learn the parts that `directory/speech_tokenizer/` lacks, or has from scratch. Trained parts are kept.

    Parts from scratch are replaced because they may belong to other phonetic units.

    Args:
        utterances, config, directory, seed, progress: as for `train_speech_tokenizer`; the number of phonetic units is
            that of `phonetic`.
        phonetic: the phonetic encoder of the tokenizer, whose units the new parts speak.

    Returns:
        The names of the new parts.

    Raises:
        SpiritError: too little usable speech for the numbers of units.
    """
    place = pathlib.Path(directory) / SPEECH_TOKENIZER
    with one_thread():
        parts = _learn(utterances, config, seed, progress, phonetic)
    names = [name for name, part in parts.items() if not (place / name).exists() or has_kind(place / name, part.kind)]
    for name in names:
        save_part(place / name, parts[name])
    return names


def _learn(
    utterances: Sequence[Spoken],
    config: SpeechTokenizerConfig,
    seed: int,
    progress: bool,
    known: PhoneticEncoder | None,
) -> dict[str, Part]:
    """The parts by the names of their directories; without a phonetic one if it is known."""
    clips = _analyze(utterances, config, seed, progress, known)
    if not clips:
        raise SpiritError(f"none of {len(utterances)} utterances can be used to train a speech tokenizer")
    features = [clip.spectrum.reshape(len(clip.spectrum) // MEL_FRAMES_PER_UNIT, -1) for clip in clips]
    learned: dict[str, Part] = {}
    if known is None:
        phonetic = KMeansEncoder.fit(features, config.phonetic_units, seed)
        units, learned["phonetic"] = [nearest(points, phonetic.centroids) for points in features], phonetic
    else:
        units = [clip.units for clip in clips]
    count = config.phonetic_units if known is None else known.unit_count
    pitch = F0Quantiles.fit([clip.octaves for clip in clips], config.pitch_units)
    style = VoiceStatistics.fit([clip.style for clip in clips], config.style_units, seed)
    observed = [
        Observed(
            speaker=clip.speaker,
            units=SpeechUnits(
                hubert=hubert,
                pitch=pitch.quantize(clip.octaves),
                style=style.quantize(clip.style),
            ),
            spectrum=clip.spectrum,
            level=clip.level,
            octaves=clip.octaves,
            mean_log2_f0=clip.mean_log2_f0,
        )
        for clip, hubert in zip(clips, units, strict=True)
    ]
    vocoder = GriffinLim.fit(observed, pitch.octaves, count, config.style_units)
    return {
        **learned,
        "pitch": pitch,
        "style": style,
        "vocoder_base": vocoder,
        "vocoder_expressive": vocoder,
    }


@dataclasses.dataclass(frozen=True, eq=False)
class _Clip:
    """The features of one utterance: fields of `Observed`, `style_features`, and units of a known phonetic encoder."""

    speaker: str
    spectrum: np.ndarray
    level: np.ndarray
    octaves: np.ndarray
    mean_log2_f0: float
    style: np.ndarray
    units: np.ndarray


def _analyze(
    utterances: Sequence[Spoken],
    config: SpeechTokenizerConfig,
    seed: int,
    progress: bool,
    phonetic: PhoneticEncoder | None,
) -> list[_Clip]:
    """The features of utterances in random order, until there is enough speech."""
    clips, samples = [], 0
    order = np.random.default_rng(seed).permutation(len(utterances))
    for index in tqdm.tqdm(order, desc="speech tokenizer", unit="utterance", disable=not progress):
        try:
            utterance = utterances[int(index)]
            audio = utterance.load()
            check_length(audio)
            units = np.zeros(0, np.int32) if phonetic is None else phonetic.encode_batch([audio])[0]
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
            units=units,
        )
        clips.append(clip)
        samples += audio.size
        if samples >= config.max_hours * 3600 * SAMPLE_RATE:
            break
    return clips
