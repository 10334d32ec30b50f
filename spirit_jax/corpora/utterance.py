"""One example of a corpus, and the checks that it passes before it is encoded."""

import dataclasses
import pathlib
import threading
import unicodedata

import numpy as np
from jaxtyping import Float, Int

from spirit_jax.audio import AudioError, encode_wav, load_audio
from spirit_jax.core.buckets import BucketError, BucketJobError
from spirit_jax.core.constants import MINIMUM_SAMPLES, SAMPLE_RATE
from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import read_bytes

_TOLERANCE_MS = 20
"""Word times may pass the end of the audio by this much, because audio encoders trim and pad."""


class CorpusError(SpiritError):
    """A corpus or an utterance that cannot be used; the message names the file or the utterance."""


class _LastFile:
    """The file that was decoded last: the parts of a long recording follow each other, and it is decoded once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: tuple[object, ...] | None = None
        self._audio = np.zeros(0, np.float32)

    def load(self, path: pathlib.Path | str) -> Float[np.ndarray, " R"]:
        """As `load_audio`, also of an address in a bucket; the array is shared and read-only."""
        with self._lock:
            key: tuple[object, ...] = (path,)
            if isinstance(path, pathlib.Path):
                try:
                    status = path.stat()
                except (OSError, ValueError):
                    return load_audio(path)  # its message names the file and the reason
                key = (path, status.st_size, status.st_mtime_ns)
            if key != self._key:
                self._audio = load_audio(path if isinstance(path, pathlib.Path) else _read_object(path))
                self._audio.flags.writeable = False
                self._key = key
            return self._audio


_LAST_FILE = _LastFile()


def _read_object(address: str) -> bytes:
    """The content of an audio file in a bucket.

    Raises:
        CorpusError: there is no such object.
        OSError: the bucket cannot be used. It ends the job, where an error of the clip would leave out one clip after
            the other.
    """
    try:
        return read_bytes(address)
    except (BucketError, BucketJobError) as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise CorpusError(str(error)) from error
        raise OSError(error.message) from error


@dataclasses.dataclass(frozen=True, eq=False)
class Utterance:
    """One utterance, or one document of text, as its corpus stores it.

    Example::

        utterance = Utterance("clip-1", pathlib.Path("clip-1.flac"), "Hello you.")
        audio = utterance.load()  # float32 [R] at 16 kHz
    """

    id: str
    """Name within the corpus."""
    audio: bytes | pathlib.Path | str | None
    """Content of an audio file (FLAC, OGG, WAV, ...), or the path of one or its address in a bucket (`gs://`), which is
    read when needed; None for text."""
    text: str
    """Transcript or document as published."""
    words: tuple[str, ...] = ()
    """Aligned words in order; empty without an alignment."""
    spans_ms: Int[np.ndarray, "W 2"] = dataclasses.field(default_factory=lambda: np.zeros((0, 2), np.int32))
    """Start and end of each word in milliseconds from the start of the audio."""
    speaker: str = ""
    """Name of the speaker, "" if unknown."""
    transcript_required: bool = True
    """Whether an empty transcript makes the utterance unusable; in many corpora it is normal."""
    offset_s: float = 0.0
    """Where the utterance begins in its audio file, in seconds. Word times count from here."""
    duration_s: float | None = None
    """Length of the utterance in seconds; None for all that follows."""

    def load(self) -> Float[np.ndarray, " R"]:
        """Check the utterance and decode its audio.

        Returns:
            float32 [R] at 16 kHz.

        Raises:
            CorpusError: names the utterance; its audio is missing, damaged or shorter than 80 ms, its transcript is
                empty although one is required, its words are out of order or outside the audio, or most of them are not
                in the transcript.
            OSError: its audio is in a bucket that cannot be used.
        """
        self.check_transcript()
        self._check_words()
        if self.audio is None:
            raise CorpusError(f"utterance {self.id!r} has no audio")
        try:
            is_part = bool(self.offset_s) or self.duration_s is not None
            if is_part and not isinstance(self.audio, bytes):
                audio = _LAST_FILE.load(self.audio)
            else:
                audio = load_audio(_read_object(self.audio) if isinstance(self.audio, str) else self.audio)
        except (AudioError, CorpusError) as error:
            raise CorpusError(f"utterance {self.id!r}: {error}") from error
        start = round(self.offset_s * SAMPLE_RATE)
        audio = (
            audio[start:] if self.duration_s is None else audio[start : start + round(self.duration_s * SAMPLE_RATE)]
        )
        if audio.size < MINIMUM_SAMPLES:
            raise CorpusError(
                f"utterance {self.id!r}: {audio.size} samples are shorter than a frame of each unit stream; "
                f"at least {MINIMUM_SAMPLES} (80 ms) are needed"
            )
        self._check_spans(audio.size * 1000 / SAMPLE_RATE)
        return audio

    def audio_bytes(self) -> bytes:
        """The content of the audio file; a 16-bit WAV file of the utterance if it is a part of its file.

        Raises:
            CorpusError: names the utterance; it has no audio, or its file cannot be read.
            OSError: its audio is in a bucket that cannot be used.
        """
        if self.audio is None:
            raise CorpusError(f"utterance {self.id!r} has no audio")
        if self.offset_s or self.duration_s is not None:
            return encode_wav(self.load())
        if isinstance(self.audio, bytes):
            return self.audio
        try:
            return _read_object(self.audio) if isinstance(self.audio, str) else read_bytes(self.audio, CorpusError)
        except CorpusError as error:
            raise CorpusError(f"utterance {self.id!r}: {error}") from error

    def check_transcript(self) -> None:
        """Check that there is a transcript where one is required.

        Raises:
            CorpusError: names the utterance.
        """
        if self.transcript_required and not self.text.strip():
            raise CorpusError(f"utterance {self.id!r}: its transcript is empty")

    def _check_spans(self, duration_ms: float) -> None:
        spans = self.spans_ms
        if spans.shape != (len(self.words), 2):
            raise CorpusError(f"utterance {self.id!r}: {len(self.words)} words, but word times of shape {spans.shape}")
        bad = (spans[:, 0] < 0) | (spans[:, 1] < spans[:, 0]) | (spans[:, 1] > duration_ms + _TOLERANCE_MS)
        bad[1:] |= spans[1:, 0] < spans[:-1, 0]
        if bad.any():
            word = int(np.argmax(bad))
            raise CorpusError(
                f"utterance {self.id!r}: word {word} ({self.words[word]!r}) at {spans[word, 0]}..{spans[word, 1]} ms "
                f"is out of order or outside the {duration_ms:.0f} ms of audio"
            )

    def _check_words(self) -> None:
        """Aligned words may be spelled otherwise than in the transcript, but not most of them."""
        text = _letters(self.text)
        if text and 2 * sum(_letters(word) in text for word in self.words) < len(self.words):
            raise CorpusError(
                f"utterance {self.id!r}: most of its words are not in its transcript: {' '.join(self.words)[:60]!r}, "
                f"transcript {self.text[:60]!r}"
            )


def _letters(text: str) -> str:
    """Letters and digits of text without case, for comparing spellings."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())
