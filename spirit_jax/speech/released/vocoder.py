"""The released vocoders: unit HiFi-GANs of Spirit LM Base and Expressive (docs/formats.md, "Vocoders").

Input is checked in `vocoder_input.py`, computed in windows in `synthesis.py`, and streamed in `streaming.py`.
"""

import dataclasses
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from jaxtyping import Float

from spirit_jax.models.hifigan_config import HifiGanConfig
from spirit_jax.speech.protocols import DEFAULT_SPEAKER, VoiceError
from spirit_jax.speech.released import synthesis
from spirit_jax.speech.released.streaming import AudioStream
from spirit_jax.speech.released.synthesis import DURATION_CONTEXT, PositionRange, Synthesizer
from spirit_jax.speech.released.vocoder_input import UnitsLike, VocoderError, VocoderInput, VoiceRows, prepare_input
from spirit_jax.units import UnitError

DEFAULT_STYLE = 8
"""The released default of the Base vocoder, `conv-default`; the last style of a vocoder that has fewer."""


class HifiGanVocoder:
    """Part kind "hifigan": a unit HiFi-GAN, Base or Expressive.

    config.json holds `hifigan` (the fields of `HifiGanConfig`), `speakers` and `styles` (names of the first rows of the
    speaker and global style tables). The arrays are the network's parameters, weight norm in two factors.

    Attributes:
        network: shape of the network.
        speakers: names of the first rows of the speaker table.
        styles: names of the first rows of the global style table.
        synthesizer: the network with its parameters.
    """

    kind: ClassVar[str] = "hifigan"

    def __init__(self, network: HifiGanConfig, params: dict, speakers: Sequence[str] = (), styles: Sequence[str] = ()):
        """Load the network.

        Raises:
            CheckpointError: a parameter is missing, unexpected or of another shape; names the first.
        """
        self.network, self.speakers, self.styles = network, tuple(speakers), tuple(styles)
        self.synthesizer = Synthesizer(network, params)
        self._stored = params

    @classmethod
    def load(cls, config: Mapping[str, Any], arrays: dict[str, Any]) -> Self:
        """The part from its config.json and arrays; errors as in `__init__`."""
        network = HifiGanConfig.from_dict(config["hifigan"])
        return cls(network, arrays, config.get("speakers", ()), config.get("styles", ()))

    def config(self) -> dict[str, Any]:
        """The content of config.json, without the kind."""
        fields = dataclasses.asdict(self.network)
        return {"hifigan": fields, "speakers": list(self.speakers), "styles": list(self.styles)}

    def arrays(self) -> dict[str, Any]:
        """The parameters as they were given."""
        return self._stored

    def speaker_index(self, speaker: int | str) -> int:
        """The row of the speaker table of a voice given by number or name; 0 if the vocoder has one voice.

        The default speaker is the last voice of a vocoder that has fewer.

        Raises:
            VoiceError: an unknown speaker; lists the known ones.
        """
        rows = self.network.num_speakers
        if isinstance(speaker, int | np.integer) and speaker == DEFAULT_SPEAKER:
            speaker = min(DEFAULT_SPEAKER, max(rows - 1, 0))
        return _row("speaker", speaker, self.speakers, rows)

    def latency(self, predict_durations: bool = True) -> tuple[int, int]:
        """`(units, frames)` that must arrive after a frame before `stream` yields it: the receptive field.

        A frame is `code_hop_size` samples (40 ms). The released vocoders look 20 frames (0.8 s) ahead, and two units
        more if durations are predicted.
        """
        return DURATION_CONTEXT if predict_durations else 0, self.network.context[1]

    def decode(
        self,
        units: UnitsLike,
        speaker: int | str = DEFAULT_SPEAKER,
        style: int | str | None = None,
        predict_durations: bool = True,
        deduplicate: bool = False,
    ) -> Float[np.ndarray, " R"]:
        """The audio of one utterance; arguments and errors as in `decode_batch`."""
        return self.decode_batch([units], speaker, style, predict_durations, deduplicate)[0]

    def decode_batch(
        self,
        batch: Sequence[UnitsLike],
        speaker: int | str | Sequence[int | str] = DEFAULT_SPEAKER,
        style: int | str | None = None,
        predict_durations: bool = True,
        deduplicate: bool = False,
    ) -> list[Float[np.ndarray, " R"]]:
        """The audio of each utterance, float32 in [-1, 1] at 16 kHz. An utterance does not depend on the others.

        Args:
            batch: units, their string form, or mappings (`UnitsLike`).
            speaker: row of the speaker table or name of a speaker; one for all utterances or one for each.
            style: for Base, row of the global style table or name of a style. For Expressive, a style unit that
                replaces those of the utterances.
            predict_durations: let the duration predictor choose how many frames each unit lasts, as deduplicated units
                need. Otherwise a unit is a frame. As in the reference, frame-rate units that carry pitch keep their
                frames, and Base units get durations whether deduplicated or not.
            deduplicate: collapse runs of equal phonetic units if durations are predicted.

        Raises:
            VocoderError: no units, a unit out of range, pitch or style missing or of a length that does not fit, or
                durations asked of a vocoder that has no predictor. In a batch of several, says which utterance.
            VoiceError: an unknown speaker or style.
        """
        speakers = [speaker] * len(batch) if isinstance(speaker, int | str | np.integer) else list(speaker)
        if len(speakers) != len(batch):
            raise VoiceError(f"{len(batch)} items to speak and {len(speakers)} speakers: expected one for all or each")
        style_row, style_unit = self._style(style)
        inputs: list[VocoderInput] = []
        to_predict: list[int] = []
        for i, (units, who) in enumerate(zip(batch, speakers, strict=True)):
            voice = VoiceRows(self.speaker_index(who), style_row, style_unit)
            try:
                prepared, predict = prepare_input(
                    self.network, units, voice, predict_durations=predict_durations, deduplicate=deduplicate
                )
            except UnitError as error:
                raise VocoderError(f"item {i}: {error}" if len(batch) > 1 else str(error)) from error
            inputs.append(prepared)
            if predict:
                to_predict.append(i)
        durations = self.synthesizer.durations([_all_of(inputs[i]) for i in to_predict])
        for i, counts in zip(to_predict, durations, strict=True):
            inputs[i] = inputs[i].repeat(counts)
        # An utterance that fits one window needs no context, because silence surrounds it.
        longest = synthesis.WINDOWS[-1]
        audio: dict[int, np.ndarray] = {}
        for context, chosen in (
            ((0, 0), [i for i, frames in enumerate(inputs) if len(frames) <= longest]),
            (self.network.context, [i for i, frames in enumerate(inputs) if len(frames) > longest]),
        ):
            spoken = self.synthesizer.audio([_all_of(inputs[i]) for i in chosen], context=context)
            audio |= zip(chosen, spoken, strict=True)
        return [audio[i] for i in range(len(inputs))]

    def stream(
        self,
        pieces: Iterable[UnitsLike],
        speaker: int | str = DEFAULT_SPEAKER,
        style: int | str | None = None,
        predict_durations: bool = True,
        chunk_frames: int = 16,
    ) -> Iterator[Float[np.ndarray, " R"]]:
        """Audio in chunks while units arrive. Joined, the chunks are the audio of `decode` on all units.

        A chunk comes as soon as `chunk_frames` frames and the units and frames of `latency` after them are there. The
        rest follows when the pieces end. Smaller chunks come sooner and cost more, because each window is computed with
        its context.

        Args:
            pieces: stretches of units (`UnitsLike`). For an expressive vocoder, pitch and style need one entry for each
                phonetic unit, as `SpeechUnits.from_string` gives them.
            speaker: as in `decode_batch`.
            style: as in `decode_batch`.
            predict_durations: as in `decode_batch`.
            chunk_frames: frames of a chunk, at least 1.

        Raises:
            VocoderError, VoiceError: as in `decode_batch`.
            ValueError: `chunk_frames` is less than 1.
        """
        voice = VoiceRows(self.speaker_index(speaker), *self._style(style))
        if chunk_frames < 1:
            raise ValueError(f"chunk_frames must be at least 1, found {chunk_frames}")
        stream = AudioStream(self.synthesizer, voice, predict_durations=predict_durations, chunk_frames=chunk_frames)
        empty = True
        for piece in pieces:
            units, predict = prepare_input(
                self.network, piece, voice, predict_durations=predict_durations, aligned=True
            )
            if predict != predict_durations:
                raise VocoderError("streaming needs one pitch and one style unit for each phonetic unit")
            empty = False
            yield from stream.push(units)
        if empty:
            raise VocoderError("no phonetic units to speak")
        yield from stream.finish()

    def _style(self, style: int | str | None) -> tuple[int, int | None]:
        """The row of the global style table, and the style unit that replaces those of the units, if any."""
        network = self.network
        if network.num_styles:
            default = min(DEFAULT_STYLE, network.num_styles - 1)
            return _row("style", default if style is None else style, self.styles, network.num_styles), None
        if style is None:
            return 0, None
        if not network.num_style_tokens:
            raise VoiceError(f"this vocoder has no styles; asked for {style!r}")
        return 0, _row("style", style, (), network.num_style_tokens)


def _all_of(source: VocoderInput) -> PositionRange:
    return PositionRange(source, 0, len(source))


def _row(what: str, wanted: int | str, names: Sequence[str], rows: int) -> int:
    """The row of a table given by number or name; 0 if there is no such table."""
    if not rows:
        return 0
    if isinstance(wanted, str):
        if wanted in names:
            return names.index(wanted)
    elif 0 <= operator.index(wanted) < rows:
        return operator.index(wanted)
    known = "".join(f"{i} {name}, " for i, name in enumerate(names))
    raise VoiceError(f"unknown {what} {wanted!r}; known are {known}ids 0..{rows - 1}")
