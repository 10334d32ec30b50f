"""Pitch and style units from scratch: quantiles of F0 at 12.5 Hz, clusters of F0 and energy statistics at 1 Hz."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from spirit_jax.speech.scratch.features import HOP, f0, level, log_mel, pitch_frames, style_frames
from spirit_jax.speech.scratch.kmeans import cluster, nearest

UNVOICED = 0
"""The pitch unit of stretches without a voice."""

_F0_FRAMES = 4  # of 20 ms in one pitch unit
_STYLE_FRAMES = 16_000 // HOP  # mel frames in one style unit
_STYLE_F0_FRAMES = 50  # of 20 ms in one style unit
_SOUND = 3.45  # nats (30 dB) below the level, where sound ends
_NEUTRAL = 7.2  # log2 Hz (147 Hz), the register of a clip without a voice


def log_f0(audio: Float[np.ndarray, " R"]) -> tuple[Float[np.ndarray, " frames"], float]:
    """log2 of F0 above the clip's mean, in octaves (NaN where unvoiced), four frames for each pitch unit; and that mean, log2 Hz.

    A clip without a voice has the mean NaN.
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


@dataclasses.dataclass(frozen=True, eq=False)
class F0Quantiles:
    """Part kind "f0_quantiles": F0 against the clip's mean, in bins that are equally frequent in the training speech.

    Unit 0 is unvoiced, units 1.. rise in pitch. Removing the mean (as the released quantizer does) leaves intonation, not the voice.

    Attributes:
        edges: float32 [units - 2], inner edges of the bins in octaves.
        octaves: float32 [units], the mean of each bin, 0 for unvoiced: what the unit sounds like.
    """

    kind: ClassVar[str] = "f0_quantiles"

    edges: Float[np.ndarray, " E"]
    octaves: Float[np.ndarray, " P"]

    @classmethod
    def fit(cls, contours: Sequence[Float[np.ndarray, " _frames"]], units: int) -> "F0Quantiles":
        """Bins from the contours (`log_f0`) of many utterances.

        Raises:
            ValueError: nothing in them is voiced.
        """
        pitches = [_pitch_of_units(contour) for contour in contours]
        values = np.concatenate([median[voiced] for median, voiced in pitches])
        if not values.size:
            raise ValueError("no voiced speech to learn pitch units from")
        edges = np.quantile(values, np.arange(1, units - 1) / (units - 1)).astype(np.float32)
        bins = np.searchsorted(edges, values, side="right")
        counts = np.bincount(bins, minlength=units - 1)
        means = np.bincount(bins, values, minlength=units - 1) / np.maximum(counts, 1)
        return cls(edges, np.concatenate([[0], means]).astype(np.float32))

    def encode(self, audio: Float[np.ndarray, " R"]) -> Int[np.ndarray, " units"]:
        """int32 units at 12.5 Hz, (R // 80 + 1) // 16 of them; silence and noise give unit 0."""
        return self.quantize(log_f0(audio)[0])

    def quantize(self, octaves: Float[np.ndarray, " frames"]) -> Int[np.ndarray, " units"]:
        """Units of a contour of `log_f0`."""
        median, voiced = _pitch_of_units(octaves)
        return np.where(voiced, 1 + np.searchsorted(self.edges, median, side="right"), UNVOICED).astype(np.int32)

    def arrays(self) -> dict[str, Any]:
        return {"edges": self.edges, "octaves": self.octaves}

    def config(self) -> dict[str, Any]:
        return {"units": len(self.octaves)}

    @classmethod
    def load(cls, config: dict[str, Any], arrays: dict[str, Any]) -> "F0Quantiles":
        return cls(arrays["edges"], arrays["octaves"])


def style_features(
    spectrum: Float[np.ndarray, "mel_frames bands"], octaves: Float[np.ndarray, " f0_frames"], mean: float, units: int
) -> Float[np.ndarray, "units 3"]:
    """Three statistics of each second and of the seconds beside it: register, brightness and pace.

    The mean of log2 F0 over voiced frames (of the clip where these seconds have none); how much louder the upper half of the
    mel bands is than the lower; how fast timbre changes. A style lasts longer than a second: with its neighbours, a second
    tells more of the unit that follows.

    Args:
        spectrum: log-mel, a frame every 10 ms.
        octaves, mean: what `log_f0` gives for the same clip, a frame every 20 ms.
    """
    relative = spectrum - level(spectrum)
    loudness = relative.mean(axis=1)
    flux = np.abs(np.diff(relative, axis=0, prepend=relative[:1])).mean(axis=1)
    half = spectrum.shape[1] // 2
    brightness = relative[:, half:].mean(axis=1) - relative[:, :half].mean(axis=1)
    rows = []
    for unit in range(units):
        # The last unit may hold less than one HuBERT frame; then the last mel frame stands for it.
        first = min(unit * _STYLE_FRAMES, len(spectrum) - 1)
        window = slice(max(first - _STYLE_FRAMES, 0), (unit + 2) * _STYLE_FRAMES)
        sound = loudness[window] > -_SOUND
        some = sound if sound.any() else np.ones_like(sound)
        pitch = octaves[max(unit - 1, 0) * _STYLE_F0_FRAMES : (unit + 2) * _STYLE_F0_FRAMES]
        pitch = pitch[np.isfinite(pitch)]
        register = (mean if np.isfinite(mean) else _NEUTRAL) + (pitch.mean() if pitch.size else 0)
        rows.append([register, brightness[window][some].mean(), flux[window][some].mean()])
    return np.array(rows, np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class VoiceStatistics:
    """Part kind "voice_statistics": the nearest of K clusters of `style_features`, each scaled to unit variance.

    Attributes:
        scale: float32 [3], what the statistics are multiplied by.
        centroids: float32 [K, 3].
    """

    kind: ClassVar[str] = "voice_statistics"

    scale: Float[np.ndarray, " 3"]
    centroids: Float[np.ndarray, "K 3"]

    @classmethod
    def fit(cls, features: Sequence[Float[np.ndarray, "_units 3"]], units: int, seed: int) -> "VoiceStatistics":
        """Cluster the statistics of many utterances."""
        points = np.concatenate(features)
        scale = (1 / np.maximum(points.std(axis=0), 1e-6)).astype(np.float32)
        return cls(scale, cluster(points * scale, units, seed, restarts=10))

    def encode(self, audio: Float[np.ndarray, " R"]) -> Int[np.ndarray, " units"]:
        """int32 units at 1 Hz, one for every 50 frames of 20 ms begun."""
        return self.quantize(style_features(log_mel(audio), *log_f0(audio), style_frames(audio.size)))

    def quantize(self, features: Float[np.ndarray, "units 3"]) -> Int[np.ndarray, " units"]:
        """Units of `style_features`."""
        return nearest(features * self.scale, self.centroids)

    def arrays(self) -> dict[str, Any]:
        return {"scale": self.scale, "centroids": self.centroids}

    def config(self) -> dict[str, Any]:
        return {"units": len(self.centroids)}

    @classmethod
    def load(cls, config: dict[str, Any], arrays: dict[str, Any]) -> "VoiceStatistics":
        return cls(arrays["scale"], arrays["centroids"])
