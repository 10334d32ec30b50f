"""Whether a speech tokenizer suits a corpus: a few clips are encoded, spoken again from their units, and compared.

Units that were learned from other voices, or a vocoder that cannot speak them, show in three numbers: the distance of
the spectra, the error of the pitch, and the words that a recognizer no longer understands.
"""

import dataclasses
import hashlib
import json
import logging
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from spirit_jax.audio import AudioError, save_audio
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.files import write_file
from spirit_jax.corpora.alignment.spelling import spell
from spirit_jax.corpora.inputs import Input
from spirit_jax.corpora.utterance import CorpusError, Utterance
from spirit_jax.speech import SpeechTokenizer
from spirit_jax.speech.asr import Recognizer, RecognizerError, open_recognizer
from spirit_jax.speech.f0 import F0_HOP, f0
from spirit_jax.speech.features import SOUND_RANGE, log_mel
from spirit_jax.speech.protocols import DEFAULT_SPEAKER, VoiceError

POOR_MEL_DB, POOR_VOICING, POOR_ERROR_RATE = 6.0, 0.1, 0.65
"""Mel distance, voicing error and rise of the word error rate above which a warning is given. Tokenizers trained on a
bundled corpus have 4.5 to 5.4 dB, 0.06 to 0.08 and 0.33 to 0.50 on its validation clips; those trained on the other
bundled corpus 6.0 to 6.9 dB, 0.11 to 0.12 and 0.58 to 0.85."""

_SECONDS = (1.0, 30.0)
_CANDIDATES = 10  # clips that are looked at for each that is compared
_DB = 20 / np.log(10)  # of a natural logarithm of amplitudes

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ResynthesisReport:
    """Distances between speech from units and the recordings, as means over the clips."""

    clips: tuple[str, ...]
    """Ids of the clips."""
    mel_distance_db: float
    """Mean absolute difference of the log-mel spectra in dB, over frames with sound, after the mean spectra are made
    equal."""
    f0_error_cents: float
    """Mean absolute difference of F0 in cents, over frames that are voiced in both, after the mean F0s are made
    equal."""
    voicing_error: float
    """Share of frames that are voiced in only one of the two."""
    recognizer: str
    """Name of the recognizer, "" if none is installed or there are no transcripts."""
    recording_error_rate: float | None = None
    """Word error rate of the recognizer on the recordings."""
    resynthesis_error_rate: float | None = None
    """Word error rate of the recognizer on the speech from units."""

    @property
    def warnings(self) -> list[str]:
        """Warnings against training on these units."""
        found = []
        if self.mel_distance_db > POOR_MEL_DB:
            found.append(f"the mel distance of {self.mel_distance_db:.1f} dB is above {POOR_MEL_DB:.0f} dB")
        if self.voicing_error > POOR_VOICING:
            found.append(f"the voicing error of {self.voicing_error:.1%} is above {POOR_VOICING:.0%}")
        if self.recording_error_rate is not None and self.resynthesis_error_rate is not None:
            rise = self.resynthesis_error_rate - self.recording_error_rate
            if rise > POOR_ERROR_RATE:
                found.append(f"the word error rate rises by {rise:.2f}, more than {POOR_ERROR_RATE}")
        return found

    def __str__(self) -> str:
        text = (
            f"check: {len(self.clips)} clips spoken again from their units: "
            f"mel distance {self.mel_distance_db:.1f} dB, F0 error {self.f0_error_cents:.0f} cents, "
            f"voicing error {self.voicing_error:.1%}"
        )
        if self.resynthesis_error_rate is not None:
            text += (
                f", word error rate {self.resynthesis_error_rate:.2f} (recordings {self.recording_error_rate:.2f}, "
                f"{self.recognizer})"
            )
        return text


def check_resynthesis(
    corpus: Input,
    tokenizer: SpeechTokenizer,
    directory: pathlib.Path,
    recognizer: Recognizer | None = None,
    count: int = 8,
) -> ResynthesisReport:
    """Speak a few clips of a corpus again and compare; a poor fit is logged as a warning.

    Writes `N.recording.wav` and `N.resynthesis.wav` for clip N, counted from 0, and `report.json`, which has their ids.

    Args:
        corpus: a split with speech.
        tokenizer: encodes and speaks.
        directory: where the files go.
        recognizer: hears the words of clips with transcripts; None uses Moonshine if it is installed.
        count: clips that are compared, or all of them if there are fewer.

    Raises:
        CorpusError: no clip between 1 and 30 s can be used.
        CheckpointError: the tokenizer has no vocoder.
    """
    chosen = _choose(corpus, count)
    if not chosen:
        raise CorpusError(f"{corpus.location}: no clip between {_SECONDS[0]:.0f} and {_SECONDS[1]:.0f} s to check")
    recordings = [audio for _, audio in chosen]
    units = tokenizer.encode_batch(recordings)
    spoken = [
        tokenizer.decode(each, speaker=_voice(tokenizer, utterance.speaker), predict_durations=False)
        for (utterance, _), each in zip(chosen, units, strict=True)
    ]
    for number, ((_, recording), resynthesis) in enumerate(zip(chosen, spoken, strict=True)):
        save_audio(directory / f"{number}.recording.wav", recording)
        save_audio(directory / f"{number}.resynthesis.wav", resynthesis)
    pitch = [pitch_errors(recording, other) for recording, other in zip(recordings, spoken, strict=True)]
    cents = [error for error, _ in pitch if error is not None]
    heard = recognizer or _installed_recognizer()
    with_text = [index for index, (utterance, _) in enumerate(chosen) if utterance.text.strip()]
    report = ResynthesisReport(
        clips=tuple(utterance.id for utterance, _ in chosen),
        mel_distance_db=float(np.mean([mel_distance(a, b) for a, b in zip(recordings, spoken, strict=True)])),
        f0_error_cents=float(np.mean(cents)) if cents else 0.0,
        voicing_error=float(np.mean([error for _, error in pitch])),
        recognizer="",
    )
    if heard is not None and with_text:
        texts = [chosen[index][0].text for index in with_text]
        report = dataclasses.replace(
            report,
            recognizer=heard.name,
            recording_error_rate=word_error_rate(texts, heard.transcribe([recordings[index] for index in with_text])),
            resynthesis_error_rate=word_error_rate(texts, heard.transcribe([spoken[index] for index in with_text])),
        )
    write_file(directory / "report.json", json.dumps(dataclasses.asdict(report), indent=1, ensure_ascii=False) + "\n")
    if report.warnings:
        _LOG.warning(
            "check: this tokenizer does not fit the voices of %s: %s. Listen to %s, and train a tokenizer on this "
            "corpus, or one with more units (python -m spirit_jax.train_tokenizers)",
            corpus.name,
            ", ".join(report.warnings),
            directory,
        )
    return report


def mel_distance(recording: Float[np.ndarray, " R"], other: Float[np.ndarray, " Q"]) -> float:
    """Mean absolute difference of two log-mel spectra in dB, over frames where the recording holds sound.

    The mean of each spectrum is taken off, because loudness and the color of a microphone are no fault of units.
    """
    first, second = _equal_length(log_mel(recording), log_mel(other))
    loudness = first.mean(axis=1)
    sound = loudness >= loudness.max() - SOUND_RANGE
    first, second = first[sound], second[sound]
    return float(np.abs((first - first.mean(axis=0)) - (second - second.mean(axis=0))).mean() * _DB)


def pitch_errors(recording: Float[np.ndarray, " R"], other: Float[np.ndarray, " Q"]) -> tuple[float | None, float]:
    """Mean absolute F0 difference in cents of frames voiced in both (None without any), and the share of frames that
    are voiced in one of the two alone. The mean log F0 of each is taken off, because voices differ."""
    frames = min(recording.size, other.size) // F0_HOP
    (first, first_voiced), (second, second_voiced) = f0(recording, frames), f0(other, frames)
    both = first_voiced & second_voiced
    voicing = float(np.mean(first_voiced != second_voiced)) if frames else 0.0
    if not both.any():
        return None, voicing
    first, second = np.log2(first[both]), np.log2(second[both])
    return float(np.abs((first - first.mean()) - (second - second.mean())).mean() * 1200), voicing


def word_error_rate(references: Sequence[str], heard: Sequence[str]) -> float:
    """Edits of spoken words for each word of the references, summed over the texts; 0 without any words."""
    edits = words = 0
    for reference, text in zip(references, heard, strict=True):
        expected, found = _words(reference), _words(text)
        edits += _edits(expected, found)
        words += len(expected)
    return edits / max(words, 1)


def _words(text: str) -> list[str]:
    return [word for each in spell(text) for word in each.spoken]


def _edits(first: Sequence[str], second: Sequence[str]) -> int:
    """Levenshtein distance."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def _choose(corpus: Input, count: int) -> list[tuple[Utterance, Float[np.ndarray, " R"]]]:
    """A few clips and their audio: those of medium length with the lowest hashes of their positions."""
    order = sorted(range(len(corpus)), key=lambda index: hashlib.sha256(str(index).encode()).digest())
    chosen = []
    for index in order[: _CANDIDATES * count]:
        try:
            utterance = corpus[index]
            audio = utterance.load()
        except (CorpusError, AudioError):
            continue  # named when the corpus is encoded
        if _SECONDS[0] <= audio.size / SAMPLE_RATE <= _SECONDS[1]:
            chosen.append((utterance, audio))
        if len(chosen) == count:
            break
    return chosen


def _voice(tokenizer: SpeechTokenizer, speaker: str) -> int | str:
    """The speaker's own voice if the vocoder has it, otherwise the default one."""
    try:
        return DEFAULT_SPEAKER if tokenizer.vocoder is None else tokenizer.vocoder.speaker_index(speaker)
    except VoiceError:
        return DEFAULT_SPEAKER


def _installed_recognizer() -> Recognizer | None:
    try:
        return open_recognizer("moonshine")
    except RecognizerError:
        return None


def _equal_length(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    length = min(len(first), len(second))
    return first[:length], second[:length]
