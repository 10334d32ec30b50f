"""The input of a HiFi-GAN vocoder: checked codes at one rate, and the voice that speaks them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Self

import numpy as np
from jaxtyping import Int
from numpy.typing import ArrayLike

from spirit_jax.models.hifigan_config import HifiGanConfig
from spirit_jax.units import SpeechUnits, UnitError

UnitsLike = SpeechUnits | str | Mapping[str, ArrayLike]
"""Units, their string form, or a mapping with integers under `hubert` and, for an expressive vocoder, `pitch` and
`style`. Negative phonetic units of a mapping are padding and are dropped."""


class VocoderError(UnitError):
    """Units that this vocoder cannot speak; the message says which ones and what it can speak."""


@dataclasses.dataclass(frozen=True)
class VoiceRows:
    """Voice and style of an utterance."""

    speaker: int
    """Row of the speaker table."""
    style: int
    """Row of the global style table (Base)."""
    style_unit: int | None = None
    """Style unit that replaces those of the utterance (Expressive); None keeps them."""


@dataclasses.dataclass(frozen=True, eq=False)
class VocoderInput:
    """Codes of N positions, int32 [N] each. A position is a unit, and after durations are known a frame of 40 ms."""

    units: Int[np.ndarray, " N"]
    """Phonetic units."""
    pitch: Int[np.ndarray, " N"]
    """Pitch units; zeros for a vocoder that reads none."""
    styles: Int[np.ndarray, " N"]
    """Style units; zeros for a vocoder that reads none."""
    voice: VoiceRows
    """Speaker and style."""

    def __len__(self) -> int:
        return len(self.units)

    @classmethod
    def empty(cls, voice: VoiceRows) -> Self:
        """No positions."""
        none = np.zeros(0, np.int32)
        return cls(units=none, pitch=none, styles=none, voice=voice)

    def repeat(self, counts: Int[np.ndarray, " N"]) -> Self:
        """Frames of units that last `counts` frames."""
        return self._each(lambda codes: np.repeat(codes, counts))

    def cut(self, start: int, stop: int | None = None) -> Self:
        """Positions `start` to `stop - 1`, or to the end."""
        return self._each(lambda codes: codes[start:stop])

    def take(self, positions: Int[np.ndarray, " M"]) -> Self:
        """The given positions; those outside the input repeat its first or last one."""
        inside = np.clip(positions, 0, len(self) - 1)
        return self._each(lambda codes: codes[inside])

    def join(self, later: "VocoderInput") -> Self:
        """This input and another one after it."""
        return dataclasses.replace(
            self,
            units=np.concatenate([self.units, later.units]),
            pitch=np.concatenate([self.pitch, later.pitch]),
            styles=np.concatenate([self.styles, later.styles]),
        )

    def _each(self, change: Callable[[np.ndarray], np.ndarray]) -> Self:
        return dataclasses.replace(self, units=change(self.units), pitch=change(self.pitch), styles=change(self.styles))


def prepare_input(
    network: HifiGanConfig,
    units: UnitsLike,
    voice: VoiceRows,
    *,
    predict_durations: bool,
    deduplicate: bool = False,
    aligned: bool = False,
) -> tuple[VocoderInput, bool]:
    """Check units and bring every stream to the rate of the phonetic units, by the reference's rules.

    Args:
        network: the vocoder.
        units: see `UnitsLike`.
        voice: who speaks.
        predict_durations: whether durations are asked for.
        deduplicate: collapse runs of equal phonetic units if durations are predicted.
        aligned: pitch and style have one entry for each phonetic unit; otherwise they may run at their frame rates.

    Returns:
        The codes, and whether their durations are to be predicted. Pitch of another length than the phonetic units runs
        at its frame rate, so the phonetic units are frames and keep their durations
        (docs/formats.md, "Speech tokenizer").

    Raises:
        VocoderError: no units, a unit out of range, a stream missing or of a length that does not fit, or durations
            asked of a vocoder that has no predictor.
    """
    hubert, pitch, style = _streams(units)
    if hubert is None:
        raise VocoderError("hubert units must be a 1-D array of integers, found none")
    predict = predict_durations and (pitch is None or len(pitch) == len(hubert))
    hubert = hubert[hubert >= 0]
    if deduplicate and predict:
        hubert = hubert[np.flatnonzero(np.diff(hubert, prepend=-1))]
    if not hubert.size:
        raise VocoderError("no phonetic units to speak")
    _check_range("phonetic", hubert, network.num_embeddings)
    if voice.style_unit is not None:
        style = np.full(len(hubert), voice.style_unit, np.int32)
    if predict and not network.duration_hidden_dim:
        raise VocoderError(
            "this vocoder has no duration predictor: give one unit for each frame and predict_durations=False"
        )

    def at_unit_rate(name: str, codes: np.ndarray | None, size: int, hop: int) -> np.ndarray:
        if not size:
            return np.zeros_like(hubert)
        if codes is None:
            raise VocoderError(f"this vocoder is expressive: it needs {name} units, and there are none")
        _check_range(name, codes, size)
        repeats = 1 if predict or aligned else round(hop / network.code_hop_size)
        return _to_unit_rate(name, codes, repeats, len(hubert))

    prepared = VocoderInput(
        units=hubert,
        pitch=at_unit_rate("pitch", pitch, network.num_f0_tokens, network.f0_hop_size),
        styles=at_unit_rate("style", style, network.num_style_tokens, network.style_hop_size),
        voice=voice,
    )
    return prepared, predict


def _streams(units: UnitsLike) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Phonetic, pitch and style codes, int32 [N] each."""
    if isinstance(units, str):
        units = SpeechUnits.from_string(units)
    if isinstance(units, SpeechUnits):
        return units.streams
    hubert, pitch, style = (_integers(name, units.get(name)) for name in ("hubert", "pitch", "style"))
    return hubert, pitch, style


def _integers(name: str, values: ArrayLike | None) -> np.ndarray | None:
    """A stream of a mapping as int32 [N]."""
    if values is None:
        return None
    codes = np.asarray(values)
    if codes.ndim != 1 or (codes.size and not np.issubdtype(codes.dtype, np.integer)):
        raise VocoderError(f"{name} units must be a 1-D array of integers, found {codes.dtype} {list(codes.shape)}")
    return codes.astype(np.int32)


def _check_range(name: str, codes: np.ndarray, size: int) -> None:
    (outside,) = np.nonzero((codes < 0) | (codes >= size))
    if outside.size:
        at = int(outside[0])
        raise VocoderError(
            f"{name} unit {int(codes[at])} at position {at} is out of range: this vocoder knows 0..{size - 1}"
        )


def _to_unit_rate(name: str, codes: np.ndarray, repeats: int, count: int) -> np.ndarray:
    """Repeat codes for `count` units, then cut, or pad with the last one. Codes that have this length already pass.

    The reference accepts a difference of at most `repeats` units.
    """
    reach = len(codes) * repeats
    if abs(reach - count) <= repeats and len(codes) and (repeats > 1 or reach == count):
        codes = np.repeat(codes, repeats)
        return np.concatenate([codes, np.full(max(count - reach, 0), codes[-1])])[:count].astype(np.int32)
    if len(codes) == count:
        return codes
    rate = f"{repeats} phonetic units each" if repeats > 1 else "one phonetic unit each"
    raise VocoderError(f"{len(codes)} {name} units at {rate} do not fit {count} phonetic units")
