"""Speech units: the three streams of Spirit LM and their string form `[St71][Pi39][Hu99]...`.

Phonetic (HuBERT), pitch and style units run at 25, 12.5 and 1 Hz. What is written to a sequence is shorter: runs of equal
HuBERT and pitch units collapse to one token, and the streams are merged by start time (paper section 3.2; FORMATS.md section 5).
"""

import dataclasses
import functools
import re

import numpy as np
from jaxtyping import Int32, Integer, UInt8

from spirit_jax.core.errors import SpiritError

HUBERT, PITCH, STYLE = 0, 1, 2
"""Stream codes, in the order in which a vocabulary lays the tokens out."""

NAMES = ("Hu", "Pi", "St")
"""What a token of each stream is called in the string form."""

SIZES = (501, 64, 100)
"""How many different units each stream has (the 501st HuBERT unit is the quantizer's blank)."""

HUBERT_RATE, PITCH_RATE, STYLE_RATE = 25.0, 12.5, 1.0
"""Units per second of each stream."""

_MERGE_RATES = (24.99, PITCH_RATE, STYLE_RATE)  # the released 24.99 puts HuBERT unit 2i just after pitch unit i
_TOKEN = re.compile(r"\[(Hu|Pi|St)([0-9]+)\]|\[Speech\]")
_STREAM = {name: stream for stream, name in enumerate(NAMES)}


class UnitError(SpiritError):
    """Units or a unit string that no speech can have; the message says where and what was expected."""


@functools.lru_cache(maxsize=64)
def _start_times(length: int, rate: float) -> np.ndarray:
    times = np.arange(length, dtype=np.float64) / rate
    times.flags.writeable = False
    return times


def _as_units(values, stream: int) -> np.ndarray:
    units = np.asarray(values)
    if units.ndim != 1 or not (units.size == 0 or np.issubdtype(units.dtype, np.integer)):
        raise UnitError(f"{NAMES[stream]} units must be a 1-D array of integers, found {units.dtype} {units.shape}")
    if units.size and not (units.min() >= 0 and units.max() < SIZES[stream]):
        raise UnitError(
            f"{NAMES[stream]} units must lie in 0..{SIZES[stream] - 1}, found {int(units.min())}..{int(units.max())}"
        )
    return units.astype(np.int32, copy=False)


@dataclasses.dataclass(frozen=True, eq=False)
class SpeechUnits:
    """Units of one stretch of speech.

    At the frame rate: `hubert` int32 [H] at 25 Hz, `pitch` int32 [P] at 12.5 Hz and `style` int32 [S] at 1 Hz, the last two
    absent for Spirit LM Base. Read back from a string (`from_string`) the streams are *aligned* instead: `pitch` and `style`
    hold one entry for each HuBERT unit, the value in force there, and durations are unknown.

    Raises:
        UnitError: a stream is not 1-D or holds a value outside its range (0..500, 0..63, 0..99).
    """

    hubert: np.ndarray
    pitch: np.ndarray | None = None
    style: np.ndarray | None = None

    def __post_init__(self):
        object.__setattr__(self, "hubert", _as_units(self.hubert, HUBERT))
        for field, stream in (("pitch", PITCH), ("style", STYLE)):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, _as_units(getattr(self, field), stream))

    def __eq__(self, other):
        if not isinstance(other, SpeechUnits):
            return NotImplemented
        return all(
            (mine is None) == (theirs is None) and (mine is None or np.array_equal(mine, theirs))
            for mine, theirs in zip(self.streams, other.streams, strict=True)
        )

    @property
    def streams(
        self,
    ) -> tuple[Int32[np.ndarray, " H"], Int32[np.ndarray, " P"] | None, Int32[np.ndarray, " S"] | None]:
        """`(hubert, pitch, style)`, by stream code."""
        return self.hubert, self.pitch, self.style

    @property
    def is_aligned(self) -> bool:
        """Whether pitch and style, where present, have one entry for each HuBERT unit."""
        return all(stream is None or len(stream) == len(self.hubert) for stream in self.streams)

    def without_expression(self) -> "SpeechUnits":
        """The phonetic stream alone: what Spirit LM Base reads and writes."""
        return SpeechUnits(self.hubert)

    def cut(self, first: int, last: int) -> "SpeechUnits":
        """The units of HuBERT frames `first..last-1`, as if that stretch were an utterance of its own.

        Pitch and style are those in force at every second, respectively every 25th, frame of the stretch, so a cut has the
        rates of whole speech and starts with the pitch and the style that hold there. Frame-rate units only.

        Raises:
            UnitError: the frames do not lie within the utterance.
        """
        if not 0 <= first <= last <= len(self.hubert):
            raise UnitError(f"frames {first}..{last} are not within the {len(self.hubert)} frames of the utterance")
        pitch = style = None
        if self.pitch is not None:
            pitch = (
                self.pitch[np.minimum(np.arange(first, last, 2) // 2, len(self.pitch) - 1)]
                if len(self.pitch)
                else self.pitch
            )
        if self.style is not None:
            style = (
                self.style[np.minimum(np.arange(first, last, 25) // 25, len(self.style) - 1)]
                if len(self.style)
                else self.style
            )
        return SpeechUnits(self.hubert[first:last], pitch, style)

    def merged(self) -> tuple[UInt8[np.ndarray, " N"], Int32[np.ndarray, " N"]]:
        """Deduplicated tokens of all streams in the order of their start times.

        A HuBERT or pitch unit equal to its predecessor is dropped; style units all stay. Unit i of a stream starts at
        i / 24.99, i / 12.5 and i / 1 s; at equal times style comes before pitch before HuBERT.

        Returns:
            `(streams uint8 [N], values int32 [N])`, a stream code (HUBERT, PITCH, STYLE) and a unit for each token.
        """
        kinds, values, times = [], [], []
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
            kinds.append(np.full(len(units), stream, np.uint8))
            values.append(units)
            times.append(start)
        if not kinds:
            return np.zeros(0, np.uint8), np.zeros(0, np.int32)
        if len(kinds) == 1:
            return kinds[0], values[0]
        order = np.argsort(np.concatenate(times), kind="stable")
        return np.concatenate(kinds)[order], np.concatenate(values)[order]

    def to_string(self) -> str:
        """The released string form, deduplicated and merged: `[St71][Pi39][Hu99][Hu49]...`."""
        kinds, values = self.merged()
        return "".join(f"[{NAMES[kind]}{value}]" for kind, value in zip(kinds.tolist(), values.tolist(), strict=True))

    @classmethod
    def from_tokens(cls, kinds: Integer[np.ndarray, " N"], values: Integer[np.ndarray, " N"]) -> "SpeechUnits":
        """Aligned units out of merged tokens, the inverse of `merged` up to durations.

        Every HuBERT token takes the pitch and the style in force; HuBERT tokens before the first pitch or style take that
        first one. Pitch and style are present where such a token occurs.
        """
        kinds, values = np.asarray(kinds), np.asarray(values)
        at_hubert = kinds == HUBERT
        streams: list[np.ndarray | None] = [values[at_hubert], None, None]
        for stream in (PITCH, STYLE):
            (here,) = np.nonzero(kinds == stream)
            if len(here):
                last = np.searchsorted(here, np.nonzero(at_hubert)[0]) - 1
                streams[stream] = values[here[np.maximum(last, 0)]]
        return cls(*streams)

    @classmethod
    def from_string(cls, string: str) -> "SpeechUnits":
        """Aligned units (see the class) out of `[St71][Pi39][Hu99]...`; white space and `[Speech]` between tokens are allowed.

        Where the reference reads malformed strings wrongly without a word (FORMATS.md section 5), this refuses them.

        Raises:
            UnitError: something that is not a unit token, with its position, or a unit out of range.
        """
        kinds, values, end = [], [], 0
        for match in _TOKEN.finditer(string):
            _refuse_garbage(string, end, match.start())
            end = match.end()
            if match[1] is None:
                continue
            stream, value = _STREAM[match[1]], int(match[2])
            if value >= SIZES[stream]:
                raise UnitError(
                    f"{match[0]} at position {match.start()}: {match[1]} units go up to {SIZES[stream] - 1}"
                )
            kinds.append(stream)
            values.append(value)
        _refuse_garbage(string, end, len(string))
        return cls.from_tokens(np.array(kinds, np.uint8), np.array(values, np.int32))


def _refuse_garbage(string: str, start: int, end: int) -> None:
    garbage = string[start:end]
    if garbage.strip():
        position = start + len(garbage) - len(garbage.lstrip())
        raise UnitError(
            f"{garbage.strip()[:20]!r} at position {position} is not a speech unit; expected [Hu0..500], [Pi0..63] or [St0..99]"
        )
