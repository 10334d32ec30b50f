"""How good a vocoder in training is: held-out clips spoken again, compared, recognized, rated, and made visible."""

import functools
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from spirit_jax.audio import save_audio
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.corpora.resynthesis import mel_distance, pitch_errors, word_error_rate
from spirit_jax.models.hifigan_config import MelConfig
from spirit_jax.models.mel import vocoder_mel
from spirit_jax.parallel.processes import is_primary
from spirit_jax.speech.asr import Recognizer, RecognizerError, open_recognizer
from spirit_jax.speech.mos import OpinionPredictor, PredictorError, open_opinion_predictor
from spirit_jax.speech.released.vocoder import HifiGanVocoder
from spirit_jax.speech_training.crops import Clips
from spirit_jax.speech_training.vocoder_rows import VocoderRows

_LOG = logging.getLogger(__name__)
_SECONDS = (1.0, 30.0)  # of clips that are spoken again
_MEL_RANGE = (-8.0, 1.0)  # nats from black to white
_GAP = 2  # rows of an image between two spectra


def choose_clips(clips: Clips, rows: VocoderRows, count: int) -> list[int]:
    """The first `count` clips of medium length that have units and are used."""
    chosen: list[int] = []
    for index, audio in clips.usable() if count else ():
        if not _SECONDS[0] <= audio.size / SAMPLE_RATE <= _SECONDS[1] or rows.styles[index] < 0:
            continue
        chosen.append(index)
        if len(chosen) == count:
            break
    return chosen


def speak(vocoder: HifiGanVocoder, rows: VocoderRows, chosen: Sequence[int]) -> list[Float[np.ndarray, " R"]]:
    """The clips from their units, each unit for its own frames, in the speakers' voices."""
    styles = [rows.styles[index] for index in chosen]
    spoken: dict[int, np.ndarray] = {}
    for style in sorted({*styles}):
        group = [index for index, other in zip(chosen, styles, strict=True) if other == style]
        found = vocoder.decode_batch(
            [rows.units.of(index) for index in group],
            speaker=[rows.speakers[index] for index in group],
            style=style if vocoder.network.num_styles else None,
            predict_durations=False,
        )
        spoken |= zip(group, found, strict=True)
    return [spoken[index] for index in chosen]


class VocoderMeasures:
    """Compares held-out clips with the same clips spoken from their units.

    Args:
        clips: the held-out clips.
        rows: knows their units and voices.
        count: how many are compared.
    """

    def __init__(self, clips: Clips, rows: VocoderRows, count: int):
        self._clips, self._rows, self._count = clips, rows, count

    @functools.cached_property
    def _chosen(self) -> list[int]:
        return choose_clips(self._clips, self._rows, self._count)

    @functools.cached_property
    def _recognizer(self) -> Recognizer | None:
        try:
            return open_recognizer("moonshine")
        except RecognizerError as error:
            _LOG.warning("no word error rate is measured: %s", error)
            return None

    @functools.cached_property
    def _predictor(self) -> OpinionPredictor | None:
        try:
            return open_opinion_predictor()
        except PredictorError as error:
            _LOG.warning("no opinion score is predicted: %s", error)
            return None

    @functools.cached_property
    def _of_recordings(self) -> dict[str, float]:
        """Word error rate and opinion score of the recordings themselves, which bound those of the vocoder."""
        recordings = [self._clips.audio(index) for index in self._chosen]
        return {f"recording_{name}": value for name, value in self._heard(recordings).items()}

    def __call__(self, vocoder: HifiGanVocoder) -> Mapping[str, float]:
        """The figures: mel distance in dB, F0 error in cents, share of voicing errors, and what packages allow."""
        if not self._chosen:
            return {}
        recordings = [self._clips.audio(index) for index in self._chosen]
        spoken = speak(vocoder, self._rows, self._chosen)
        pairs = list(zip(recordings, spoken, strict=True))
        pitch = [pitch_errors(recording, other) for recording, other in pairs]
        cents = [error for error, _ in pitch if error is not None]
        values = {
            "mel_distance_db": float(np.mean([mel_distance(*pair) for pair in pairs])),
            "voicing_error": float(np.mean([error for _, error in pitch])),
        }
        if cents:
            values["f0_error_cents"] = float(np.mean(cents))
        return values | self._heard(spoken) | self._of_recordings

    def _heard(self, audio: Sequence[np.ndarray]) -> dict[str, float]:
        values = {}
        texts = [self._clips.utterance(index).text for index in self._chosen]
        with_text = [place for place, text in enumerate(texts) if text.strip()]
        if with_text and self._recognizer is not None:
            heard = self._recognizer.transcribe([audio[place] for place in with_text])
            values["word_error_rate"] = word_error_rate([texts[place] for place in with_text], heard)
        if self._predictor is not None:
            values["opinion_score"] = float(np.mean(self._predictor.rate(audio)))
        return values


class VocoderSamples:
    """Writes clips spoken again to `samples/STEP/` of the part, and with their spectra to TensorBoard.

    Args:
        clips: the held-out clips.
        rows: knows their units and voices.
        count: how many clips.
        directory: the part's folder.
        mel: the spectrum that is shown.
    """

    def __init__(self, clips: Clips, rows: VocoderRows, count: int, directory: pathlib.Path, mel: MelConfig):
        self._clips, self._rows, self._count, self._directory, self._mel = clips, rows, count, directory, mel

    def __call__(self, vocoder: HifiGanVocoder, step: int) -> None:
        """Write the samples of a step, in the primary process."""
        if not is_primary():
            return
        from tensorboardX import SummaryWriter

        chosen = choose_clips(self._clips, self._rows, self._count)
        if not chosen:
            return
        writer: Any = SummaryWriter(str(self._directory / "tensorboard"))
        for number, (index, audio) in enumerate(zip(chosen, speak(vocoder, self._rows, chosen), strict=True)):
            recording = self._clips.audio(index)
            folder = self._directory / "samples" / str(step)
            save_audio(folder / f"{number}.wav", audio)
            image = spectra_image(recording, audio, self._mel)
            save_audio(self._directory / "samples" / "recordings" / f"{number}.wav", recording)
            writer.add_audio(f"sample/{number}", audio[:, None], step, sample_rate=SAMPLE_RATE)
            writer.add_image(f"spectra/{number}", image, step, dataformats="HW")
        writer.close()


def spectra_image(
    recording: Float[np.ndarray, " R"], spoken: Float[np.ndarray, " Q"], mel: MelConfig
) -> UInt8[np.ndarray, "H W"]:
    """The log-mel spectra of a recording, above, and of its resynthesis, low frequencies at the bottom."""
    samples = min(recording.size, spoken.size) // mel.hop * mel.hop
    both = jnp.asarray(np.stack([recording[:samples], spoken[:samples]]))
    spectra, _ = vocoder_mel(both, mel)
    low, high = _MEL_RANGE
    shades = np.clip((np.asarray(spectra) - low) / (high - low), 0, 1)
    upper, lower = (np.round(255 * each.T[::-1]).astype(np.uint8) for each in shades)
    return np.concatenate([upper, np.full((_GAP, upper.shape[1]), 255, np.uint8), lower])
