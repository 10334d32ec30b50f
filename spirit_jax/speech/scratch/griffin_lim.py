"""Units to sound without a neural vocoder: mean spectra of the units on a harmonic or noise source, phases by Griffin-Lim."""

import dataclasses
import functools
import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import scipy.fft
from jaxtyping import Float, Int

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.speech.scratch.features import BANDS, FFT, FRAME, HOP, MEL_FRAMES, hann, mel_centres
from spirit_jax.speech.scratch.prosody import UNVOICED
from spirit_jax.units import SpeechUnits, UnitError

_WINDOW = 3 * HOP
_ITERATIONS = 4  # few: the source brings good phases
_LOUDNESS = 0.95  # peak of the result
_CONTRAST = 1.15  # means are flatter than speech: this gives spectra about its spread over time
_QUIET = -3.2  # a unit whose mean band lies this far (nats) below the level is silence ...
_SILENCE = -3.0  # ... and gets this much quieter still: the level's clipping kept it audible
_DISPERSION = 0.016  # radians x harmonic squared: delays 4 kHz of a 100 Hz voice by 2 ms, so that pulses buzz less
_DEFAULT_SPEAKER = 2
_USUAL_F0 = np.log2(150.0)  # of a speaker without voiced speech


@dataclasses.dataclass(frozen=True, eq=False)
class Observed:
    """What the vocoder learns from one utterance: units at their rates beside what was measured there.

    `spectrum` float32 [4 x units, bands] normalised log-mel, `level` float32 [bands] what was subtracted, `octaves` float32
    [4 x pitch units] F0 against the mean (NaN unvoiced), `mean_log2_f0` that mean, NaN without a voice.
    """

    speaker: str
    units: SpeechUnits
    spectrum: Float[np.ndarray, "frames bands"]
    level: Float[np.ndarray, " bands"]
    octaves: Float[np.ndarray, " pitch_frames"]
    mean_log2_f0: float


@dataclasses.dataclass(frozen=True, eq=False)
class GriffinLim:
    """Part kind "griffin_lim": every unit sounds as it did on average in the training speech.

    Attributes:
        spectrum: float32 [K, 4, bands], mean normalised log-mel frames of each phonetic unit.
        voicing: float32 [K], how much of it is voiced, 0 to 1.
        duration: float32 [K], its mean run length in frames of 40 ms.
        octaves: float32 [P], pitch of each pitch unit against the mean of the voice.
        gain: float32 [S], loudness of each style unit in nats.
        contour: float32 [16], mean pitch in octaves along an utterance: the intonation of units without pitch.
        level: float32 [N, bands], log-mel level of each speaker.
        log2_f0: float32 [N], mean pitch of each speaker, log2 Hz.
        speakers: their N names.
    """

    kind: ClassVar[str] = "griffin_lim"

    spectrum: Float[np.ndarray, "K 4 bands"]
    voicing: Float[np.ndarray, " K"]
    duration: Float[np.ndarray, " K"]
    octaves: Float[np.ndarray, " P"]
    gain: Float[np.ndarray, " S"]
    contour: Float[np.ndarray, " 16"]
    level: Float[np.ndarray, "N bands"]
    log2_f0: Float[np.ndarray, " N"]
    speakers: tuple[str, ...]

    @classmethod
    def fit(
        cls, observed: Sequence[Observed], octaves: Float[np.ndarray, " P"], units: int, styles: int
    ) -> "GriffinLim":
        """Means over utterances; `octaves` are those of the pitch units, `units` and `styles` how many of those there are."""
        spectra, frames = np.zeros((units, MEL_FRAMES, BANDS)), np.zeros(units)
        voiced, runs = np.zeros(units), np.zeros(units)
        points = 16
        contour, contour_frames = np.zeros(points), np.zeros(points)
        for seen in observed:
            hubert = seen.units.hubert
            np.add.at(spectra, hubert, seen.spectrum.reshape(-1, MEL_FRAMES, BANDS))
            np.add.at(frames, hubert, 1)
            np.add.at(runs, hubert[np.diff(hubert, prepend=-1) != 0], 1)
            # Two F0 frames a unit; the clip may have a pitch unit more or less than half its HuBERT units.
            halves = np.isfinite(seen.octaves)[: 2 * len(hubert)]
            np.add.at(voiced, hubert[np.arange(len(halves)) // 2], halves / 2)
            at = np.flatnonzero(np.isfinite(seen.octaves))
            place = at * points // len(seen.octaves)
            np.add.at(contour, place, seen.octaves[at])
            np.add.at(contour_frames, place, 1)
        mean = spectra / np.maximum(frames, 1)[:, None, None]
        names = tuple(sorted({seen.speaker for seen in observed}))
        level, log2_f0 = np.zeros((len(names), BANDS)), np.zeros(len(names))
        for index, name in enumerate(names):
            own = [seen for seen in observed if seen.speaker == name]
            level[index] = np.mean([seen.level for seen in own], axis=0)
            pitches = [seen.mean_log2_f0 for seen in own if np.isfinite(seen.mean_log2_f0)]
            log2_f0[index] = np.mean(pitches) if pitches else _USUAL_F0
        return cls(
            *(
                array.astype(np.float32)
                for array in (
                    mean,
                    voiced / np.maximum(frames, 1),
                    np.maximum(frames / np.maximum(runs, 1), 1),
                    octaves,
                    _style_gain(observed, mean, styles),
                    contour / np.maximum(contour_frames, 1),
                    level,
                    log2_f0,
                )
            ),
            names,
        )

    def decode(
        self,
        units: SpeechUnits,
        *,
        speaker: int | str = _DEFAULT_SPEAKER,
        style: int | None = None,
        predict_durations: bool = True,
    ) -> Float[np.ndarray, " R"]:
        """The sound of units, float32 [R] at 16 kHz, 640 samples for each frame of 40 ms.

        Args:
            units: at the frame rate, or aligned (out of a string). Phonetic units never heard in training are left out, such pitch
                units count as unvoiced and such style units as plain, with a warning: a language model early in its training writes them.
            speaker: index into `speakers`, or a name; 2, which every command takes unless told otherwise, is the last voice
                where there are fewer.
            style: style unit of the whole utterance instead of its own.
            predict_durations: give each unit of an aligned stream its mean duration; runs of equal units without pitch and style
                collapse to one before. Frame-rate units with pitch keep their own durations.

        Raises:
            UnitError: no known phonetic unit.
            ValueError: no such speaker.
        """
        voice = self.speaker_index(speaker)
        hubert, pitch, gain = self._frames(units, style, predict_durations)
        log_amplitude = _CONTRAST * self.spectrum[hubert].reshape(-1, BANDS)
        quiet = np.clip((_QUIET + 0.4 - log_amplitude.mean(axis=1)) / 0.4, 0, 1)
        log_amplitude = log_amplitude + self.level[voice] + (np.repeat(gain, MEL_FRAMES) + _SILENCE * quiet)[:, None]
        padded = np.pad(log_amplitude, ((1, 1), (0, 0)), mode="edge")
        log_amplitude = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]  # units meet without steps
        source = _source(self.log2_f0[voice] + pitch, self.voicing[hubert])
        target = _stft(source) * np.exp(np.pad(log_amplitude, ((1, 1), (0, 0)), mode="edge") @ _bands_to_bins().T)
        audio = _griffin_lim(target, source.size)
        return (audio * (_LOUDNESS / max(_LOUDNESS, np.abs(audio).max()))).astype(np.float32)

    def speaker_index(self, speaker: int | str) -> int:
        """The place in `speakers` of a voice; arguments and errors as in `decode`."""
        if isinstance(speaker, str) and speaker in self.speakers:
            return self.speakers.index(speaker)
        if isinstance(speaker, int | np.integer) and (0 <= speaker < len(self.speakers) or speaker == _DEFAULT_SPEAKER):
            return min(int(speaker), len(self.speakers) - 1)
        raise ValueError(
            f"speaker {speaker!r}: this vocoder has 0..{len(self.speakers) - 1} ({', '.join(self.speakers)})"
        )

    def _frames(
        self, units: SpeechUnits, style: int | None, predict_durations: bool
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Unit int [n], pitch in octaves float [n] and loudness in nats float [n] of every frame of 40 ms."""
        hubert, pitch, styles = units.streams
        aligned = units.is_aligned
        if pitch is not None and not aligned:
            pitch = _stretch(pitch, 2, len(hubert))
        if styles is not None and not aligned:
            styles = _stretch(styles, 25, len(hubert))
        known = hubert < len(self.spectrum)
        if not known.all():
            logging.warning(
                "%d of %d phonetic units are unknown to the vocoder and left out", np.sum(~known), known.size
            )
        if aligned and pitch is None and styles is None and predict_durations:
            known &= np.diff(hubert, prepend=-1) != 0
        if not known.any():
            raise UnitError(
                f"none of {len(hubert)} phonetic units is known to this vocoder; it has 0..{len(self.spectrum) - 1}"
            )
        octaves = np.full(len(hubert), np.nan)
        if pitch is not None and len(pitch):
            sounds = (pitch != UNVOICED) & (pitch < len(self.octaves))
            octaves[sounds] = self.octaves[pitch[sounds]]
        gain = np.zeros(len(hubert))
        if style is not None:
            styles = np.full(len(hubert), style)
        if styles is not None and len(styles):
            plain = np.append(self.gain, 0.0)
            gain = plain[np.minimum(styles, len(self.gain))]
        hubert, octaves, gain = hubert[known], octaves[known], gain[known]
        if aligned and predict_durations:
            ends = np.round(np.cumsum(self.duration[hubert])).astype(int)  # rounding errors do not add up
            repeats = np.diff(ends, prepend=0)
            hubert, octaves, gain = (np.repeat(stream, repeats) for stream in (hubert, octaves, gain))
        return hubert, self._intonation(octaves, has_pitch=pitch is not None), gain

    def _intonation(self, octaves: np.ndarray, has_pitch: bool) -> np.ndarray:
        """Pitch of every frame: gaps bridged, steps smoothed; the mean contour where there are no pitch units."""
        frames = np.arange(len(octaves))
        heard = np.isfinite(octaves)
        if not has_pitch or not heard.any():
            return np.interp(
                (frames + 0.5) / len(frames) * len(self.contour) - 0.5, np.arange(len(self.contour)), self.contour
            )
        whole = np.pad(np.interp(frames, frames[heard], octaves[heard]), 1, mode="edge")
        return 0.25 * whole[:-2] + 0.5 * whole[1:-1] + 0.25 * whole[2:]

    def arrays(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "speakers"}

    def config(self) -> dict[str, Any]:
        return {"units": len(self.spectrum), "speakers": list(self.speakers)}

    @classmethod
    def load(cls, config: dict[str, Any], arrays: dict[str, Any]) -> "GriffinLim":
        return cls(**arrays, speakers=tuple(config["speakers"]))


def _style_gain(observed: Sequence[Observed], mean: np.ndarray, styles: int) -> np.ndarray:
    """By how much sound is louder under each style unit than its phonetic units are on average."""
    total, count = np.zeros(styles), np.zeros(styles)
    usual = mean.mean(axis=(1, 2))
    for seen in observed:
        hubert = seen.units.hubert
        excess = seen.spectrum.reshape(len(hubert), -1).mean(axis=1) - usual[hubert]
        style = _stretch(seen.units.style, 25, len(hubert))
        sound = usual[hubert] > _QUIET
        np.add.at(total, style[sound], excess[sound])
        np.add.at(count, style[sound], 1)
    return total / np.maximum(count, 1)


def _stretch(units: Int[np.ndarray, " N"], factor: int, length: int) -> Int[np.ndarray, " length"]:
    """Units of a slower stream at the HuBERT rate: repeated, cut, or the last one held."""
    return units[np.minimum(np.arange(length) // factor, len(units) - 1)] if len(units) else units


@functools.cache
def _bands_to_bins() -> Float[np.ndarray, "bins bands"]:
    """Interpolation from log amplitudes at the middles of the mel bands to those of the FFT bins."""
    bins = np.arange(FFT // 2 + 1) * SAMPLE_RATE / FFT
    return np.stack([np.interp(bins, mel_centres(), row) for row in np.eye(BANDS)], axis=1).astype(np.float32)


def _source(log2_f0: Float[np.ndarray, " frames"], voicing: Float[np.ndarray, " frames"]) -> Float[np.ndarray, " R"]:
    """Harmonics of F0 where voiced and noise elsewhere, 640 samples a frame, unit power and a flat spectrum either way."""
    samples = len(log2_f0) * FRAME
    place = (np.arange(samples) + 0.5) / FRAME - 0.5
    frames = np.arange(len(log2_f0))
    frequency = 2 ** np.interp(place, frames, log2_f0)
    phase = 2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE
    harmonics = np.zeros(samples)
    for number in range(1, int(SAMPLE_RATE / 2 / frequency.min()) + 1):
        harmonics += np.cos(number * phase + _DISPERSION * number**2) * (number * frequency < SAMPLE_RATE / 2)
    harmonics *= np.sqrt(2 * frequency / (SAMPLE_RATE / 2))
    noise = np.random.default_rng(0).standard_normal(samples)  # the same units always sound the same
    voiced = np.interp(place, frames, np.clip(2 * voicing - 0.5, 0, 1))
    return (np.sqrt(voiced) * harmonics + np.sqrt(1 - voiced) * noise).astype(np.float32)


def _stft(audio: Float[np.ndarray, " R"]) -> np.ndarray:
    """complex64 [R / 160 + 2, bins]: frames of 30 ms, 10 ms apart, the first one 20 ms early, so that all samples are under three."""
    padded = np.pad(audio, 2 * HOP)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::HOP]
    return scipy.fft.rfft(frames * hann(_WINDOW), FFT, axis=1)


def _istft(spectrum: np.ndarray, samples: int) -> Float[np.ndarray, " R"]:
    """The least-squares inverse of `_stft`."""
    frames = scipy.fft.irfft(spectrum, FFT, axis=1)[:, :_WINDOW] * hann(_WINDOW)
    parts = frames.reshape(len(frames), 3, HOP)
    weights = (hann(_WINDOW) ** 2).reshape(3, HOP)
    audio, total = np.zeros((len(frames) + 2, HOP), np.float32), np.zeros((len(frames) + 2, HOP), np.float32)
    for part in range(3):
        audio[part : part + len(frames)] += parts[:, part]
        total[part : part + len(frames)] += weights[part]
    return (audio / np.maximum(total, 1e-8)).reshape(-1)[2 * HOP : 2 * HOP + samples]


def _griffin_lim(target: np.ndarray, samples: int) -> Float[np.ndarray, " R"]:
    """A signal whose spectrum comes near the amplitudes of `target`, starting from its phases (Griffin and Lim 1984)."""
    amplitude, audio = np.abs(target), _istft(target, samples)
    for _ in range(_ITERATIONS):
        rebuilt = _stft(audio)
        audio = _istft(amplitude * rebuilt / np.maximum(np.abs(rebuilt), 1e-9), samples)
    return audio
