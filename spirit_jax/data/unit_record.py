"""A unit record: one utterance with its units and words, or one text document, as msgpack.

Units are stored at the frame rate, before deduplication: HuBERT as uint16, pitch and style as uint8. Word times are in
milliseconds.
"""

import dataclasses

import msgpack
import numpy as np
from jaxtyping import Int

from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import is_encodable
from spirit_jax.units import HUBERT_RATE, SpeechUnits, UnitError

FRAME_MS = round(1000 / HUBERT_RATE)
"""Milliseconds of one HuBERT unit: 40."""

_FORMAT = 1


class RecordError(SpiritError):
    """A record, record file or record directory that cannot be used; the message names it and the reason."""


@dataclasses.dataclass(frozen=True, eq=False)
class UnitRecord:
    """One utterance with its units and, if it is aligned, its words; or one text document without units and words."""

    id: str
    """Name within the corpus."""
    text: str
    """Transcript or document as published; "" for speech without a transcript."""
    words: tuple[str, ...] = ()
    """The aligned words in order; their spelling may be normalized."""
    spans_ms: Int[np.ndarray, "W 2"] = dataclasses.field(default_factory=lambda: np.zeros((0, 2), np.int32))
    """Start and end of each word in milliseconds."""
    units: SpeechUnits | None = None
    """Units at the frame rate; None for text."""
    duration_ms: int = 0
    """Length of the audio in milliseconds; 0 for text."""
    speaker: str = ""
    """Name of the speaker, "" if unknown."""

    def validate(self) -> None:
        """Check that sequences can be made from the record.

        Raises:
            RecordError: names the record and the problem: no text, no frame, words that are empty, out of order or
                outside the audio, and the like.
        """
        problem = self._problem()
        if problem:
            raise RecordError(f"record {self.id!r}: {problem}")

    def _problem(self) -> str | None:
        spans = self.spans_ms
        if not all(map(is_encodable, (self.id, self.text, self.speaker, *self.words))):
            return "holds half of a surrogate pair, which is no character"
        untranscribed = self.text == "" and self.units is not None and not self.words
        if not self.text.strip() and not untranscribed:
            return "empty transcript"
        if spans.shape != (len(self.words), 2):
            return f"{len(self.words)} words but spans of shape {spans.shape}, expected ({len(self.words)}, 2)"
        if self.units is None:
            return f"{len(self.words)} aligned words but no units" if self.words else None
        frames = len(self.units.hubert)
        if self.duration_ms < FRAME_MS or frames == 0:
            return f"clip of {self.duration_ms} ms with {frames} units is shorter than a frame ({FRAME_MS} ms)"
        # encoders lose up to a frame at each end, and one in each chunk of 100 s
        if abs(frames * FRAME_MS - self.duration_ms) > 3 * FRAME_MS + self.duration_ms / 100:
            return f"{frames} units last {frames * FRAME_MS} ms, the audio {self.duration_ms} ms"
        if any(stream is not None and not len(stream) for stream in self.units.streams):
            return "an empty pitch or style stream; leave it out or give it units"
        if not self.words:
            return None
        if any(word.split() != [word] for word in self.words):
            return f"a word that is empty or holds a space: {next(w for w in self.words if w.split() != [w])!r}"
        starts, ends = spans[:, 0], spans[:, 1]
        # alignments are rounded, so an end may be past the audio by less than a frame
        outside = (starts < 0) | (ends < starts) | (ends > self.duration_ms + FRAME_MS) | (starts > self.duration_ms)
        if outside.any():
            word = int(np.argmax(outside))
            return (
                f"word {word} ({self.words[word]!r}) at {starts[word]}..{ends[word]} ms is not within the "
                f"{self.duration_ms} ms of audio"
            )
        if (starts[1:] < starts[:-1]).any() or (ends[1:] < ends[:-1]).any():
            return "words are not in the order of their times"
        return None

    def to_bytes(self) -> bytes:
        """Serialize the record as msgpack."""
        hubert, pitch, style = self.units.streams if self.units is not None else (None, None, None)
        data = msgpack.packb(
            {
                "v": _FORMAT,
                "id": self.id,
                "text": self.text,
                "words": list(self.words),
                "spans": np.asarray(self.spans_ms, "<i4").tobytes(),
                "hubert": None if hubert is None else hubert.astype("<u2").tobytes(),
                "pitch": None if pitch is None else pitch.astype(np.uint8).tobytes(),
                "style": None if style is None else style.astype(np.uint8).tobytes(),
                "ms": int(self.duration_ms),
                "speaker": self.speaker,
            }
        )
        assert data is not None  # only a packer that collects several objects returns None
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> "UnitRecord":
        """Read the bytes of `to_bytes`. Only the types of the fields are checked; `validate` checks the values.

        Raises:
            RecordError: the bytes are not a record; names the id if it could be read.
        """
        try:
            fields = msgpack.unpackb(data)
            if fields["v"] != _FORMAT:
                raise RecordError(f"format {fields['v']}, this version reads {_FORMAT}")
        except RecordError:
            raise
        except Exception as error:  # msgpack raises many kinds
            raise RecordError(f"not a unit record ({type(error).__name__}: {error})") from error
        try:
            units = None
            if fields["hubert"] is not None:
                units = SpeechUnits(
                    np.frombuffer(fields["hubert"], "<u2"),
                    *(
                        None if fields[name] is None else np.frombuffer(fields[name], np.uint8)
                        for name in ("pitch", "style")
                    ),
                )
            spans = np.frombuffer(fields["spans"], "<i4").reshape(-1, 2)
            for name, expected in (("id", str), ("text", str), ("words", list), ("ms", int), ("speaker", str)):
                if not isinstance(fields[name], expected):
                    raise TypeError(f"{name} is {type(fields[name]).__name__}, expected {expected.__name__}")
            if not all(isinstance(word, str) for word in fields["words"]):
                raise TypeError("words that are not strings")
            return cls(
                fields["id"], fields["text"], tuple(fields["words"]), spans, units, fields["ms"], fields["speaker"]
            )
        except (KeyError, ValueError, TypeError, UnitError) as error:
            raise RecordError(f"record {fields.get('id')!r}: {error}") from error
