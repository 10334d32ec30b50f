"""Pitch and style units from scratch: quantiles of F0 at 12.5 Hz, clusters of F0 and energy statistics at 1 Hz."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.errors import SpiritError
from spirit_jax.speech.f0 import f0
from spirit_jax.speech.features import MEL_HOP, SOUND_RANGE, level, log_mel, pitch_frames, style_frames
from spirit_jax.speech.protocols import VoiceError
from spirit_jax.speech.scratch.kmeans import cluster, nearest

UNVOICED = 0
"""The pitch unit of stretches without a voice."""

_F0_FRAMES = 4  # of 20 ms in one pitch unit
_STYLE_FRAMES = SAMPLE_RATE // MEL_HOP  # mel frames in one style unit
_STYLE_F0_FRAMES = 50  # of 20 ms in one style unit
_NEUTRAL = 7.2  # log2 Hz (147 Hz), the register of a clip without a voice


def log_f0(audio: Float[np.ndarray, " R"]) -> tuple[Float[np.ndarray, " frames"], float]:
    """The F0 contour of a clip relative to its mean, and the mean.

    Returns:
        `(octaves, mean)`: octaves above the mean, float32, four frames of 20 ms for each pitch unit, NaN where
        unvoiced; and the mean in log2 Hz, NaN for a clip without a voice.
    """
    pitch, voiced = f0(audio, pitch_frames(audio.size) * _F0_FRAMES)
    if not voiced.any():
        return np.full(pitch.size, np.nan, np.float32), float("nan")
    octaves = np.where(voiced, np.log2(np.where(voiced, pitch, 1)), np.nan)
    mean = float(np.nanmean(octaves))
    return (octaves - mean).astype(np.float32), mean


def _pitch_of_units(
    octaves: Float[np.ndarray, " frames"],
) -> tuple[Float[np.ndarray, " units"], Bool[np.ndarray, " units"]]:
    """The median of each unit's voiced frames, and whether at least half of its frames are voiced."""
    frames = octaves.reshape(-1, _F0_FRAMES)
    voiced = np.isfinite(frames).sum(axis=1) * 2 >= _F0_FRAMES
    median = np.zeros(len(frames), np.float32)
    median[voiced] = np.nanmedian(frames[voiced], axis=1)
    return median, voiced


def octaves_of_units(
    units: Sequence[Int[np.ndarray, " _P"]], contours: Sequence[Float[np.ndarray, " _frames"]], count: int
) -> Float[np.ndarray, " P"]:
    """The mean pitch of each pitch unit in octaves, NaN for one that is unvoiced in most of its frames, or never seen.

    Args:
        units: the pitch units of each utterance, of any encoder.
        contours: F0 of the same utterances (`log_f0`), four frames for each unit.
        count: number of different units.
    """
    frames = np.concatenate(contours).reshape(-1, _F0_FRAMES)
    flat = np.concatenate(units)
    voiced = np.isfinite(frames)
    share = np.bincount(flat, voiced.mean(axis=1), count) / np.maximum(np.bincount(flat, minlength=count), 1)
    total = np.bincount(flat, np.where(voiced, frames, 0).sum(axis=1), count)
    frequent = share >= 0.5
    number = np.bincount(flat, voiced.sum(axis=1), count)
    return np.where(frequent, total / np.where(frequent, number, 1), np.nan).astype(np.float32)


@dataclass(frozen=True, eq=False)
class F0Quantiles:
    """Part kind "f0_quantiles": F0 relative to the clip's mean, in bins that are equally frequent in training.

    Unit 0 is unvoiced; the other units rise in pitch. The released pitch encoder also removes the mean, which leaves
    the intonation and takes away the voice.

    Attributes:
        edges: float32 [units - 2], edges between the bins in octaves.
        octaves: float32 [units], the mean of each bin, with which a unit is spoken; 0 for unvoiced.
    """

    kind: ClassVar[str] = "f0_quantiles"

    edges: Float[np.ndarray, " E"]
    octaves: Float[np.ndarray, " P"]

    @classmethod
    def fit(cls, contours: Sequence[Float[np.ndarray, " _frames"]], units: int) -> "F0Quantiles":
        """Choose the bins from the contours (`log_f0`) of many utterances.

        Raises:
            SpiritError: no contour has a voiced frame.
        """
        pitches = [_pitch_of_units(contour) for contour in contours]
        values = np.concatenate([median[voiced] for median, voiced in pitches])
        if not values.size:
            raise SpiritError("no voiced speech to learn pitch units from")
        edges = np.quantile(values, np.arange(1, units - 1) / (units - 1)).astype(np.float32)
        bins = np.searchsorted(edges, values, side="right")
        counts = np.bincount(bins, minlength=units - 1)
        means = np.bincount(bins, values, minlength=units - 1) / np.maximum(counts, 1)
        return cls(edges=edges, octaves=np.concatenate([[0], means]).astype(np.float32))

    @classmethod
    def load(cls, config: Mapping[str, Any], arrays: dict[str, Any]) -> "F0Quantiles":
        """The part from its config.json and arrays."""
        return cls(edges=arrays["edges"], octaves=arrays["octaves"])

    def config(self) -> dict[str, Any]:
        """The content of config.json, without the kind."""
        return {"units": len(self.octaves)}

    def arrays(self) -> dict[str, Any]:
        """The arrays, as stored."""
        return {"edges": self.edges, "octaves": self.octaves}

    @property
    def unit_count(self) -> int:
        """Number of different units."""
        return len(self.octaves)

    def encode(self, audio: Float[np.ndarray, " R"]) -> Int[np.ndarray, " units"]:
        """Pitch units of one clip at 12.5 Hz, int32 [(R // 80 + 1) // 16]. Silence and noise give unit 0."""
        return self.quantize(log_f0(audio)[0])

    def encode_batch(
        self, clips: Sequence[Float[np.ndarray, " _R"]], speaker: str | None = None
    ) -> list[Int[np.ndarray, " _units"]]:
        """`encode` of each clip.

        Raises:
            VoiceError: a speaker is given; this encoder stores no speaker's mean F0.
        """
        if speaker is not None:
            raise VoiceError(f"speaker {speaker!r}: this pitch encoder stores no speaker's mean F0")
        return [self.encode(clip) for clip in clips]

    def quantize(self, octaves: Float[np.ndarray, " frames"]) -> Int[np.ndarray, " units"]:
        """Units of a contour of `log_f0`, int32, one for every four frames."""
        median, voiced = _pitch_of_units(octaves)
        return np.where(voiced, 1 + np.searchsorted(self.edges, median, side="right"), UNVOICED).astype(np.int32)


def style_features(
    spectrum: Float[np.ndarray, "mel_frames bands"], octaves: Float[np.ndarray, " f0_frames"], mean: float, units: int
) -> Float[np.ndarray, "units 3"]:
    """Three statistics of each second together with the seconds before and after it: register, brightness and pace.

    Register is the mean of log2 F0 over voiced frames, or of the clip if there are none. Brightness is how much louder
    the upper half of the mel bands is than the lower half. Pace is how fast the spectrum changes. The neighboring
    seconds count because a style lasts longer than a second.

    Args:
        spectrum: log-mel, a frame every 10 ms.
        octaves: F0 in octaves above the mean, a frame every 20 ms (`log_f0`).
        mean: mean of log2 F0 (`log_f0`).
        units: number of seconds.
    """
    relative = spectrum - level(spectrum)
    loudness = relative.mean(axis=1)
    flux = np.abs(np.diff(relative, axis=0, prepend=relative[:1])).mean(axis=1)
    half = spectrum.shape[1] // 2
    brightness = relative[:, half:].mean(axis=1) - relative[:, :half].mean(axis=1)
    rows = []
    for unit in range(units):
        # The last unit may be shorter than one HuBERT frame, and then has no mel frame: use the last one.
        first = min(unit * _STYLE_FRAMES, len(spectrum) - 1)
        window = slice(max(first - _STYLE_FRAMES, 0), (unit + 2) * _STYLE_FRAMES)
        sound = loudness[window] > -SOUND_RANGE
        chosen = sound if sound.any() else np.ones_like(sound)
        pitch = octaves[max(unit - 1, 0) * _STYLE_F0_FRAMES : (unit + 2) * _STYLE_F0_FRAMES]
        pitch = pitch[np.isfinite(pitch)]
        register = (mean if np.isfinite(mean) else _NEUTRAL) + (pitch.mean() if pitch.size else 0)
        rows.append([register, brightness[window][chosen].mean(), flux[window][chosen].mean()])
    return np.array(rows, np.float32)


@dataclass(frozen=True, eq=False)
class VoiceStatistics:
    """Part kind "voice_statistics": each style unit is the nearest of K clusters of `style_features`.

    Attributes:
        scale: float32 [3], factors that give each statistic unit variance.
        centroids: float32 [K, 3], scaled.
    """

    kind: ClassVar[str] = "voice_statistics"

    scale: Float[np.ndarray, " 3"]
    centroids: Float[np.ndarray, "K 3"]

    @classmethod
    def fit(cls, features: Sequence[Float[np.ndarray, "_units 3"]], units: int, seed: int) -> "VoiceStatistics":
        """Cluster the `style_features` of many utterances into `units` units.

        Raises:
            SpiritError: fewer seconds than units.
        """
        points = np.concatenate(features)
        scale = (1 / np.maximum(points.std(axis=0), 1e-6)).astype(np.float32)
        return cls(scale=scale, centroids=cluster(points * scale, units, seed, restarts=10))

    @classmethod
    def load(cls, config: Mapping[str, Any], arrays: dict[str, Any]) -> "VoiceStatistics":
        """The part from its config.json and arrays."""
        return cls(scale=arrays["scale"], centroids=arrays["centroids"])

    def config(self) -> dict[str, Any]:
        """The content of config.json, without the kind."""
        return {"units": len(self.centroids)}

    def arrays(self) -> dict[str, Any]:
        """The arrays, as stored."""
        return {"scale": self.scale, "centroids": self.centroids}

    @property
    def unit_count(self) -> int:
        """Number of different units."""
        return len(self.centroids)

    def encode(self, audio: Float[np.ndarray, " R"]) -> Int[np.ndarray, " units"]:
        """Style units of one clip at 1 Hz, int32, one for every 50 frames of 20 ms or part of them."""
        octaves, mean = log_f0(audio)
        return self.quantize(style_features(log_mel(audio), octaves, mean, style_frames(audio.size)))

    def encode_batch(self, clips: Sequence[Float[np.ndarray, " _R"]]) -> list[Int[np.ndarray, " _units"]]:
        """`encode` of each clip."""
        return [self.encode(clip) for clip in clips]

    def quantize(self, features: Float[np.ndarray, "units 3"]) -> Int[np.ndarray, " units"]:
        """Units of `style_features`, int32."""
        return nearest(features * self.scale, self.centroids)
