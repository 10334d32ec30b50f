"""Speech units: the three streams of Spirit LM, and their string form `[St71][Pi39][Hu99]...`.

Phonetic (HuBERT), pitch and style units run at 25, 12.5 and 1 Hz. A token sequence is shorter: runs of equal HuBERT and
pitch units collapse to one token, and the streams are merged by start time (paper section 3.2; docs/formats.md,
"Speech tokenizer").
"""

import dataclasses
import functools
import re
from typing import Any

import numpy as np
from jaxtyping import Int32, Integer, UInt8

from spirit_jax.core.errors import SpiritError

HUBERT, PITCH, STYLE = 0, 1, 2
"""Stream codes, in the order in which a vocabulary numbers the tokens."""

NAMES = ("Hu", "Pi", "St")
"""Name of each stream in the string form."""

SIZES = (501, 64, 100)
"""Number of different units of each stream; HuBERT unit 500 is the quantizer's blank."""

HUBERT_RATE, PITCH_RATE, STYLE_RATE = 25.0, 12.5, 1.0
"""Units per second of each stream."""

_MERGE_RATES = (24.99, PITCH_RATE, STYLE_RATE)  # the reference's 24.99 places HuBERT unit 2i just after pitch unit i
_TOKEN = re.compile(r"\[(Hu|Pi|St)([0-9]+)\]|\[Speech\]")
_STREAM_CODES = {name: stream for stream, name in enumerate(NAMES)}


class UnitError(SpiritError):
    """Units or a unit string that no speech can have; the message gives the place and what was expected."""


@dataclasses.dataclass(frozen=True, eq=False)
class SpeechUnits:
    """Units of one stretch of speech.

    The units of an encoder are at the frame rate: `hubert` at 25 Hz, `pitch` at 12.5 Hz and `style` at 1 Hz. Units that
    are read from a string are *aligned* instead: `pitch` and `style` have one entry for each HuBERT unit, the value in
    force there, and durations are unknown.

    >>> import numpy as np
    >>> units = SpeechUnits(np.array([99, 99, 49, 38]), pitch=np.array([39, 39]), style=np.array([71]))
    >>> units.to_string()
    '[St71][Pi39][Hu99][Hu49][Hu38]'

    Raises:
        UnitError: a stream is not a 1-D array of integers, or holds a value outside its range (0..500, 0..63, 0..99).
    """

    hubert: np.ndarray
    """Phonetic units, int32 [H]."""
    pitch: np.ndarray | None = None
    """Pitch units, int32 [P]; None for Spirit LM Base."""
    style: np.ndarray | None = None
    """Style units, int32 [S]; None for Spirit LM Base."""

    def __post_init__(self):
        object.__setattr__(self, "hubert", _as_units(self.hubert, HUBERT))
        for field, stream in (("pitch", PITCH), ("style", STYLE)):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, _as_units(getattr(self, field), stream))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SpeechUnits):
            return NotImplemented
        return all(
            one is two if one is None or two is None else np.array_equal(one, two)
            for one, two in zip(self.streams, other.streams, strict=True)
        )

    @property
    def streams(
        self,
    ) -> tuple[Int32[np.ndarray, " H"], Int32[np.ndarray, " P"] | None, Int32[np.ndarray, " S"] | None]:
        """`(hubert, pitch, style)`, indexed by stream code."""
        return self.hubert, self.pitch, self.style

    @property
    def is_aligned(self) -> bool:
        """Whether pitch and style, where present, have one entry for each HuBERT unit."""
        return all(stream is None or len(stream) == len(self.hubert) for stream in self.streams)

    def without_expression(self) -> "SpeechUnits":
        """The phonetic stream alone, which is what Spirit LM Base reads and writes."""
        return SpeechUnits(self.hubert)

    def cut(self, first: int, last: int) -> "SpeechUnits":
        """The units of HuBERT frames `first..last - 1`, as if that stretch were an utterance of its own.

        Pitch and style are those in force at every second and every 25th frame of the stretch. So a cut has the rates
        of whole speech, and starts with the pitch and the style in force at its first frame. The units must be at the
        frame rate.

        Args:
            first: first frame.
            last: frame after the last one.

        Raises:
            UnitError: the frames are not within the utterance.
        """
        if not 0 <= first <= last <= len(self.hubert):
            raise UnitError(f"frames {first}..{last} are not within the {len(self.hubert)} frames of the utterance")
        return SpeechUnits(
            self.hubert[first:last],
            _in_force(self.pitch, first, last, frames_per_unit=2),
            _in_force(self.style, first, last, frames_per_unit=25),
        )

    def merged(self) -> tuple[UInt8[np.ndarray, " N"], Int32[np.ndarray, " N"]]:
        """Deduplicated tokens of all streams in the order of their start times.

        A HuBERT or pitch unit equal to its predecessor is dropped; all style units stay. Unit i of a stream starts at
        i / 24.99, i / 12.5 or i / 1 s. At equal times, style comes before pitch and pitch before HuBERT.

        Returns:
            `(streams, values)`: stream code (HUBERT, PITCH, STYLE) and unit of each token, uint8 [N] and int32 [N].
        """
        streams, values, times = [], [], []
        for stream in (STYLE, PITCH, HUBERT):
            units = self.streams[stream]
            if units is None or not len(units):
                continue
            start = _start_times(len(units), _MERGE_RATES[stream])
            if stream != STYLE:
                keep = np.empty(len(units), bool)
                keep[0] = True
                np.not_equal(units[1:], units[:-1], out=keep[1:])
                units, start = units[keep], start[keep]
            streams.append(np.full(len(units), stream, np.uint8))
            values.append(units)
            times.append(start)
        if not streams:
            return np.zeros(0, np.uint8), np.zeros(0, np.int32)
        if len(streams) == 1:
            return streams[0], values[0]
        order = np.argsort(np.concatenate(times), kind="stable")
        return np.concatenate(streams)[order], np.concatenate(values)[order]

    def to_string(self) -> str:
        """The string form of the reference, deduplicated and merged: `[St71][Pi39][Hu99][Hu49]...`."""
        streams, values = self.merged()
        return "".join(f"[{NAMES[s]}{value}]" for s, value in zip(streams.tolist(), values.tolist(), strict=True))

    @classmethod
    def from_tokens(cls, streams: Integer[np.ndarray, " N"], values: Integer[np.ndarray, " N"]) -> "SpeechUnits":
        """Aligned units from merged tokens, the inverse of `merged` up to durations.

        Every HuBERT token takes the pitch and the style in force; HuBERT tokens before the first pitch or style token
        take the first value. A stream without a token is None.

        Args:
            streams: stream code of each token.
            values: unit of each token.

        Raises:
            UnitError: a value is outside the range of its stream.
        """
        streams, values = np.asarray(streams), np.asarray(values)
        (at_hubert,) = np.nonzero(streams == HUBERT)
        aligned: dict[int, np.ndarray | None] = {PITCH: None, STYLE: None}
        for stream in aligned:
            (here,) = np.nonzero(streams == stream)
            if len(here):
                last = np.searchsorted(here, at_hubert) - 1
                aligned[stream] = values[here[np.maximum(last, 0)]]
        return cls(values[at_hubert], aligned[PITCH], aligned[STYLE])

    @classmethod
    def from_string(cls, string: str) -> "SpeechUnits":
        """Aligned units from `[St71][Pi39][Hu99]...`; white space and `[Speech]` are allowed between tokens.

        The reference reads malformed strings silently and wrongly (docs/formats.md, "Speech tokenizer"); this method
        refuses them.

        >>> SpeechUnits.from_string("[St71][Pi39][Hu99][Hu49][Pi7][Hu38]").pitch.tolist()
        [39, 39, 7]

        Raises:
            UnitError: something is not a unit token, or a unit is out of range; gives the position.
        """
        streams, values, end = [], [], 0
        for match in _TOKEN.finditer(string):
            _refuse_other_text(string, end, match.start())
            end = match.end()
            if match[1] is None:
                continue
            stream, digits = _STREAM_CODES[match[1]], match[2].lstrip("0")
            value = int(digits or "0") if len(digits) <= 3 else SIZES[stream]
            if value >= SIZES[stream]:
                raise UnitError(
                    f"{match[0][:20]} at position {match.start()}: {match[1]} units go up to {SIZES[stream] - 1}"
                )
            streams.append(stream)
            values.append(value)
        _refuse_other_text(string, end, len(string))
        return cls.from_tokens(np.array(streams, np.uint8), np.array(values, np.int32))


def _as_units(values: Any, stream: int) -> np.ndarray:
    """Check a stream and return it as int32."""
    units = np.asarray(values)
    if units.ndim != 1 or not (units.size == 0 or np.issubdtype(units.dtype, np.integer)):
        raise UnitError(f"{NAMES[stream]} units must be a 1-D array of integers, found {units.dtype} {units.shape}")
    if units.size and not (units.min() >= 0 and units.max() < SIZES[stream]):
        raise UnitError(
            f"{NAMES[stream]} units must lie in 0..{SIZES[stream] - 1}, found {int(units.min())}..{int(units.max())}"
        )
    return units.astype(np.int32, copy=False)


def _in_force(units: np.ndarray | None, first: int, last: int, *, frames_per_unit: int) -> np.ndarray | None:
    """The units of a slower stream in force at every `frames_per_unit`-th frame of `first..last - 1`."""
    if units is None or not len(units):
        return units
    return units[np.minimum(np.arange(first, last, frames_per_unit) // frames_per_unit, len(units) - 1)]


@functools.lru_cache(maxsize=64)
def _start_times(length: int, rate: float) -> np.ndarray:
    """Start times in seconds of the units of a stream, float64 [length]."""
    times = np.arange(length, dtype=np.float64) / rate
    times.flags.writeable = False
    return times


def _refuse_other_text(string: str, start: int, end: int) -> None:
    """Raise if there is more than white space between two tokens."""
    text = string[start:end]
    if text.strip():
        position = start + len(text) - len(text.lstrip())
        raise UnitError(
            f"{text.strip()[:20]!r} at position {position} is not a speech unit; "
            "expected [Hu0..500], [Pi0..63] or [St0..99]"
        )
