"""Units to sound without a neural vocoder: each unit gets the spectrum that it had between such neighbors in training.

A harmonic or noise source is shaped by these spectra, and the Griffin-Lim algorithm makes the phases consistent.
"""

import dataclasses
import functools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import scipy.fft
from jaxtyping import Complex, Float, Int

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.speech.features import MEL_BANDS, MEL_FFT, MEL_FRAMES_PER_UNIT, MEL_HOP, UNIT_HOP, hann, mel_centers
from spirit_jax.speech.protocols import DEFAULT_SPEAKER, VoiceError
from spirit_jax.speech.scratch.neighbors import fit_neighbors, predict_from_neighbors
from spirit_jax.units import SpeechUnits, UnitError

_WINDOW = 3 * MEL_HOP
_ITERATIONS = 4  # few are enough, because the source has good phases
_LOUDNESS = 0.95  # largest peak of the result
_SIDE = 2  # neighbors on each side that a unit's sound depends on
_PENALTY = 20.0  # of the regression on neighbors: a pair of units that was seen 20 times gets half of its effect
_QUIET = -2.8  # a unit whose mean band lies this far (nats) below the level is silence ...
_SILENCE = -3.0  # ... and is lowered by this much more, because normalized spectra are clipped at an audible level
_DISPERSION = 0.016  # radians x harmonic squared: delays 4 kHz of a 100 Hz voice by 2 ms, so that pulses buzz less
_CONTOUR_POINTS = 16
_PITCH_FRAMES, _STYLE_FRAMES = 2, 25  # frames of 40 ms in one pitch unit and in one style unit
_USUAL_F0 = np.log2(150.0)  # of a speaker without voiced speech


@dataclasses.dataclass(frozen=True, eq=False)
class Observed:
    """One training utterance: its units at their frame rates, and the features that were measured there.

    Attributes:
        speaker: name of the speaker.
        units: phonetic, pitch and style units.
        spectrum: float32 [4 * H, bands], normalized log-mel (`kmeans.normalize`).
        level: float32 [bands], the level that was subtracted.
        octaves: float32 [4 * P], F0 in octaves above the mean, NaN where unvoiced (`prosody.log_f0`).
        mean_log2_f0: the mean in log2 Hz, NaN without a voice.
    """

    speaker: str
    units: SpeechUnits
    spectrum: Float[np.ndarray, "frames bands"]
    level: Float[np.ndarray, " bands"]
    octaves: Float[np.ndarray, " pitch_frames"]
    mean_log2_f0: float


class _Frames(NamedTuple):
    """Sound of each frame of 40 ms."""

    hubert: Int[np.ndarray, " N"]
    octaves: Float[np.ndarray, " N"]
    """Pitch above the mean of the voice."""
    gain: Float[np.ndarray, " N"]
    """Loudness in nats."""


@dataclasses.dataclass(frozen=True, eq=False)
class GriffinLim:
    """Part kind "griffin_lim": each unit sounds as it did on average between its neighbors in the training speech.

    Attributes:
        spectrum: float32 [W, K, 4, bands], what a phonetic unit at each of the offsets -W // 2 to W // 2 adds to the
            four normalized log-mel frames of a unit (`neighbors.fit_neighbors`).
        voicing: float32 [W, K], what it adds to the fraction of the unit that is voiced.
        duration: float32 [K], mean run length of each phonetic unit in frames of 40 ms.
        octaves: float32 [P], pitch of each pitch unit above the mean of the voice, NaN for an unvoiced one.
        gain: float32 [S], loudness of each style unit in nats.
        contour: float32 [16], mean pitch in octaves along an utterance: the intonation of units without pitch.
        level: float32 [N, bands], log-mel level of each speaker.
        log2_f0: float32 [N], mean pitch of each speaker in log2 Hz.
        speakers: the names of the N speakers.
    """

    kind: ClassVar[str] = "griffin_lim"

    spectrum: Float[np.ndarray, "W K 4 bands"]
    voicing: Float[np.ndarray, "W K"]
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
        """Average over utterances, and learn from the neighbors of each unit.

        Args:
            observed: the training utterances.
            octaves: pitch of each pitch unit (`prosody.octaves_of_units`).
            units: number of phonetic units.
            styles: number of style units.
        """
        spectra, frames = np.zeros((units, MEL_FRAMES_PER_UNIT, MEL_BANDS)), np.zeros(units)
        runs = np.zeros(units)
        contour, contour_frames = np.zeros(_CONTOUR_POINTS), np.zeros(_CONTOUR_POINTS)
        features: list[np.ndarray] = []
        for seen in observed:
            hubert = seen.units.hubert
            np.add.at(spectra, hubert, seen.spectrum.reshape(-1, MEL_FRAMES_PER_UNIT, MEL_BANDS))
            np.add.at(frames, hubert, 1)
            np.add.at(runs, hubert[np.diff(hubert, prepend=-1) != 0], 1)
            # Two F0 frames a unit. A clip may have a pitch unit more or less than half its HuBERT units.
            halves = np.zeros(2 * len(hubert))
            voiced = np.isfinite(seen.octaves)[: halves.size]
            halves[: voiced.size] = voiced
            features.append(np.column_stack([seen.spectrum.reshape(len(hubert), -1), halves.reshape(-1, 2).mean(1)]))
            at = np.flatnonzero(np.isfinite(seen.octaves))
            place = at * _CONTOUR_POINTS // len(seen.octaves)
            np.add.at(contour, place, seen.octaves[at])
            np.add.at(contour_frames, place, 1)
        mean = spectra / np.maximum(frames, 1)[:, None, None]
        learned = fit_neighbors(
            [seen.units.hubert for seen in observed], features, count=units, side=_SIDE, penalty=_PENALTY
        ).astype(np.float32)
        speakers = tuple(sorted({seen.speaker for seen in observed}))
        level, log2_f0 = np.zeros((len(speakers), MEL_BANDS)), np.zeros(len(speakers))
        for index, speaker in enumerate(speakers):
            own = [seen for seen in observed if seen.speaker == speaker]
            level[index] = np.mean([seen.level for seen in own], axis=0)
            pitches = [seen.mean_log2_f0 for seen in own if np.isfinite(seen.mean_log2_f0)]
            log2_f0[index] = np.mean(pitches) if pitches else _USUAL_F0
        return cls(
            spectrum=np.ascontiguousarray(learned[..., :-1]).reshape(-1, *mean.shape),
            voicing=np.ascontiguousarray(learned[..., -1]),
            duration=np.maximum(frames / np.maximum(runs, 1), 1).astype(np.float32),
            octaves=octaves.astype(np.float32),
            gain=_style_gain(observed, mean, styles).astype(np.float32),
            contour=(contour / np.maximum(contour_frames, 1)).astype(np.float32),
            level=level.astype(np.float32),
            log2_f0=log2_f0.astype(np.float32),
            speakers=speakers,
        )

    @classmethod
    def load(cls, config: Mapping[str, Any], arrays: dict[str, Any]) -> "GriffinLim":
        """The part from its config.json and arrays."""
        return cls(**arrays, speakers=tuple(config["speakers"]))

    def config(self) -> dict[str, Any]:
        """The content of config.json, without the kind."""
        return {"units": self.spectrum.shape[1], "speakers": list(self.speakers)}

    def arrays(self) -> dict[str, Any]:
        """The arrays, as stored."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "speakers"]
        return {name: getattr(self, name) for name in names}

    def decode(
        self,
        units: SpeechUnits,
        speaker: int | str = DEFAULT_SPEAKER,
        style: int | str | None = None,
        predict_durations: bool = True,
    ) -> Float[np.ndarray, " R"]:
        """The audio of one utterance, float32 [R] at 16 kHz, 640 samples for each frame of 40 ms.

        Units that training never saw are tolerated, because a language model early in its training writes them.
        Phonetic ones are left out with a warning; unknown pitch units count as unvoiced; unknown style units change
        no loudness.

        Args:
            units: at the frame rate, or aligned (from a string).
            speaker: index into `speakers`, or a name. The default, which every command uses, is the last voice if there
                are fewer.
            style: style unit of the whole utterance instead of its own.
            predict_durations: give each unit of an aligned stream its mean duration. Without pitch and style, runs of
                equal units first collapse to one. Frame-rate units with pitch keep their own durations.

        Raises:
            UnitError: no known phonetic unit.
            VoiceError: an unknown speaker, or a style that is not a number.
        """
        voice = self.speaker_index(speaker)
        if isinstance(style, str):
            raise VoiceError(f"style {style!r}: this vocoder has no named styles, only units 0..{len(self.gain) - 1}")
        hubert, octaves, gain = self._frames(units, style, predict_durations)
        learned = predict_from_neighbors(self.spectrum.reshape(*self.spectrum.shape[:2], -1), hubert)
        log_amplitude = learned.reshape(-1, MEL_BANDS)
        quiet = np.clip((_QUIET + 0.4 - log_amplitude.mean(axis=1)) / 0.4, 0, 1)
        log_amplitude = (
            log_amplitude + self.level[voice] + (np.repeat(gain, MEL_FRAMES_PER_UNIT) + _SILENCE * quiet)[:, None]
        )
        padded = np.pad(log_amplitude, ((1, 1), (0, 0)), mode="edge")
        log_amplitude = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]  # no steps between units
        voicing = predict_from_neighbors(self.voicing[..., None], hubert)[:, 0]
        source = voice_source(self.log2_f0[voice] + octaves, voicing)
        target = stft(source) * np.exp(np.pad(log_amplitude, ((1, 1), (0, 0)), mode="edge") @ _bands_to_bins().T)
        audio = _griffin_lim(target, source.size)
        return (audio * (_LOUDNESS / max(_LOUDNESS, np.abs(audio).max()))).astype(np.float32)

    def decode_batch(
        self,
        batch: Sequence[SpeechUnits],
        speaker: int | str = DEFAULT_SPEAKER,
        style: int | str | None = None,
        predict_durations: bool = True,
    ) -> list[Float[np.ndarray, " _R"]]:
        """`decode` of each utterance."""
        return [self.decode(units, speaker, style, predict_durations) for units in batch]

    def stream(
        self,
        pieces: Iterable[SpeechUnits],
        speaker: int | str = DEFAULT_SPEAKER,
        style: int | str | None = None,
        predict_durations: bool = True,
    ) -> Iterator[Float[np.ndarray, " _R"]]:
        """`decode` of all units, in one chunk when the pieces end: the loudness depends on the whole utterance.

        Pitch and style are used only if every piece has them.
        """
        whole = list(pieces)
        if not whole:
            raise UnitError("no phonetic units to speak")
        units = SpeechUnits(
            np.concatenate([piece.hubert for piece in whole]),
            _concatenate([piece.pitch for piece in whole]),
            _concatenate([piece.style for piece in whole]),
        )
        yield self.decode(units, speaker, style, predict_durations)

    def latency(self, predict_durations: bool = True) -> tuple[int, int] | None:
        """None: sound comes when all units are known."""
        return None

    def speaker_index(self, speaker: int | str) -> int:
        """The index into `speakers` of a voice. The default speaker is the last voice if there are fewer.

        Raises:
            VoiceError: an unknown speaker.
        """
        if isinstance(speaker, str) and speaker in self.speakers:
            return self.speakers.index(speaker)
        if isinstance(speaker, int | np.integer) and (0 <= speaker < len(self.speakers) or speaker == DEFAULT_SPEAKER):
            return min(int(speaker), len(self.speakers) - 1)
        raise VoiceError(
            f"speaker {speaker!r}: this vocoder has 0..{len(self.speakers) - 1} ({', '.join(self.speakers)})"
        )

    def _frames(self, units: SpeechUnits, style: int | None, predict_durations: bool) -> _Frames:
        """Unit, pitch and loudness of every frame of 40 ms."""
        hubert, pitch, styles = units.streams
        aligned = units.is_aligned
        if pitch is not None and not aligned:
            pitch = _stretch(pitch, _PITCH_FRAMES, len(hubert))
        if styles is not None and not aligned:
            styles = _stretch(styles, _STYLE_FRAMES, len(hubert))
        count = self.spectrum.shape[1]
        known = hubert < count
        if not known.all():
            logging.warning(
                "%d of %d phonetic units are unknown to the vocoder and left out", np.sum(~known), known.size
            )
        if aligned and pitch is None and styles is None and predict_durations:
            known &= np.diff(hubert, prepend=-1) != 0
        if not known.any():
            raise UnitError(f"none of {len(hubert)} phonetic units is known to this vocoder; it has 0..{count - 1}")
        octaves = np.full(len(hubert), np.nan)
        if pitch is not None and len(pitch):
            with_unknown = np.append(self.octaves, np.nan)
            octaves = with_unknown[np.minimum(pitch, len(self.octaves))].astype(np.float64)
        gain = np.zeros(len(hubert))
        if style is not None:
            styles = np.full(len(hubert), style)
        if styles is not None and len(styles):
            with_unknown = np.append(self.gain, 0.0)
            gain = with_unknown[np.minimum(styles, len(self.gain))]
        frames = _Frames(hubert[known], octaves[known], gain[known])
        if aligned and predict_durations:
            ends = np.round(np.cumsum(self.duration[frames.hubert])).astype(int)  # rounding errors do not add up
            repeats = np.diff(ends, prepend=0)
            frames = _Frames(*(np.repeat(stream, repeats) for stream in frames))
        return frames._replace(octaves=self._intonation(frames.octaves, has_pitch=pitch is not None))

    def _intonation(self, octaves: Float[np.ndarray, " N"], has_pitch: bool) -> Float[np.ndarray, " N"]:
        """Smooth pitch of every frame, with unvoiced gaps bridged; the mean contour where there are no pitch units."""
        frames = np.arange(len(octaves))
        voiced = np.isfinite(octaves)
        if not has_pitch or not voiced.any():
            points = np.arange(len(self.contour))
            return np.interp((frames + 0.5) / len(frames) * len(points) - 0.5, points, self.contour)
        bridged = np.pad(np.interp(frames, frames[voiced], octaves[voiced]), 1, mode="edge")
        return 0.25 * bridged[:-2] + 0.5 * bridged[1:-1] + 0.25 * bridged[2:]


def _style_gain(
    observed: Sequence[Observed], mean: Float[np.ndarray, "K 4 bands"], styles: int
) -> Float[np.ndarray, " S"]:
    """Loudness (nats) of sound under each style unit, above the average of its phonetic units."""
    total, count = np.zeros(styles), np.zeros(styles)
    usual = mean.mean(axis=(1, 2))
    for seen in observed:
        hubert, style = seen.units.hubert, seen.units.style
        assert style is not None, "training utterances have units of every stream"
        excess = seen.spectrum.reshape(len(hubert), -1).mean(axis=1) - usual[hubert]
        style = _stretch(style, _STYLE_FRAMES, len(hubert))
        sound = usual[hubert] > _QUIET
        np.add.at(total, style[sound], excess[sound])
        np.add.at(count, style[sound], 1)
    return total / np.maximum(count, 1)


def _concatenate(streams: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """One stream from those of consecutive pieces; None if a piece has none."""
    present = [stream for stream in streams if stream is not None]
    return np.concatenate(present) if len(present) == len(streams) else None


def _stretch(units: Int[np.ndarray, " N"], factor: int, length: int) -> Int[np.ndarray, " M"]:
    """Repeat each unit of a slower stream `factor` times, then cut, or pad with the last one, to `length`."""
    return units[np.minimum(np.arange(length) // factor, len(units) - 1)] if len(units) else units


@functools.cache
def _bands_to_bins() -> Float[np.ndarray, "bins bands"]:
    """A matrix that interpolates log amplitudes from the centers of the mel bands to the Fourier bins."""
    bins = np.arange(MEL_FFT // 2 + 1) * SAMPLE_RATE / MEL_FFT
    return np.stack([np.interp(bins, mel_centers(), row) for row in np.eye(MEL_BANDS)], axis=1).astype(np.float32)


def voice_source(
    log2_f0: Float[np.ndarray, " frames"], voicing: Float[np.ndarray, " frames"]
) -> Float[np.ndarray, " R"]:
    """Harmonics of F0 where voiced and noise elsewhere, 640 samples a frame. Both have unit power and flat spectra."""
    samples = len(log2_f0) * UNIT_HOP
    place = (np.arange(samples) + 0.5) / UNIT_HOP - 0.5
    frames = np.arange(len(log2_f0))
    frequency = 2 ** np.interp(place, frames, log2_f0)
    phase = 2 * np.pi * np.cumsum(frequency) / SAMPLE_RATE
    harmonics = np.zeros(samples)
    for number in range(1, int(SAMPLE_RATE / 2 / frequency.min()) + 1):
        harmonics += np.cos(number * phase + _DISPERSION * number**2) * (number * frequency < SAMPLE_RATE / 2)
    harmonics *= np.sqrt(2 * frequency / (SAMPLE_RATE / 2))
    noise = np.random.default_rng(0).standard_normal(samples)  # seeded: equal units give equal audio
    voiced = np.interp(place, frames, np.clip(2 * voicing - 0.5, 0, 1))
    return (np.sqrt(voiced) * harmonics + np.sqrt(1 - voiced) * noise).astype(np.float32)


def stft(audio: Float[np.ndarray, " R"]) -> Complex[np.ndarray, "frames bins"]:
    """Spectra of frames of 30 ms every 10 ms, [R / 160 + 2, bins]. Each sample lies in three frames."""
    padded = np.pad(audio, 2 * MEL_HOP)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::MEL_HOP]
    return np.asarray(scipy.fft.rfft(frames * hann(_WINDOW), MEL_FFT, axis=1))


def istft(spectrum: Complex[np.ndarray, "frames bins"], samples: int) -> Float[np.ndarray, " R"]:
    """The least-squares inverse of `stft`."""
    frames = np.asarray(scipy.fft.irfft(spectrum, MEL_FFT, axis=1))[:, :_WINDOW] * hann(_WINDOW)
    parts = frames.reshape(len(frames), 3, MEL_HOP)
    weights = (hann(_WINDOW) ** 2).reshape(3, MEL_HOP)
    audio, total = np.zeros((len(frames) + 2, MEL_HOP), np.float32), np.zeros((len(frames) + 2, MEL_HOP), np.float32)
    for part in range(3):
        audio[part : part + len(frames)] += parts[:, part]
        total[part : part + len(frames)] += weights[part]
    return (audio / np.maximum(total, 1e-8)).reshape(-1)[2 * MEL_HOP : 2 * MEL_HOP + samples]


def _griffin_lim(target: Complex[np.ndarray, "frames bins"], samples: int) -> Float[np.ndarray, " R"]:
    """A signal with amplitudes close to those of `target`, starting from its phases (Griffin and Lim 1984)."""
    amplitude, audio = np.abs(target), istft(target, samples)
    for _ in range(_ITERATIONS):
        rebuilt = stft(audio)
        audio = istft(amplitude * rebuilt / np.maximum(np.abs(rebuilt), 1e-9), samples)
    return audio
