"""Segments of text and speech, the string form of a prompt, and the way back from generated strings (FORMATS.md section 8).

A prompt's string form is what the released tokenizer reads: `[Text]the cat[Speech][Hu3][Hu7]`. The rules that take what was
generated apart work on that form too, because the released ones do.
"""

import dataclasses
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from spirit_jax import units as speech_units
from spirit_jax.audio import AudioError, load_audio
from spirit_jax.core.constants import MINIMUM_SAMPLES
from spirit_jax.core.errors import SpiritError
from spirit_jax.units import SpeechUnits
from spirit_jax.vocabulary import SPEECH_TOKEN, TEXT_TOKEN, Vocabulary

Kind = Literal["text", "speech"]
MODALITIES = ("text", "speech", "any")
"""What may be asked for; the order is that of the rows of `forbidden_ids`."""

PREFIXES = {"text": TEXT_TOKEN, "speech": SPEECH_TOKEN}
_LEAST_NEW_UNITS = 24  # the released code counts [Hu tokens plus one, and drops speech of fewer than 25 by that count

_PIECES = re.compile(r"\[Text\]|\[Speech\]|(\[(?:Hu|Pi|St)[^\]]*(?:\]|\Z))|(.)", re.DOTALL)
_UNIT = re.compile(r"\[(?:Hu|Pi|St)[0-9]+\]")
_RUN = re.compile(r"(?:\[(?:Hu|Pi|St)\d+\])+")
_LEADING_UNIT = re.compile(r"\[(?:Hu|Pi|St).{0,7}\]", re.DOTALL)


class PromptError(SpiritError):
    """A prompt that cannot be used; the message says what is wrong with it and what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """One stretch of text or of speech, in a prompt or generated. Make one with `Segment.text` or `Segment.speech`.

    Attributes:
        kind: "text" or "speech".
        content: the string; or audio float32 [R] at 16 kHz; or `SpeechUnits`, where there is no vocoder to hear them with.
        tokens: the unit tokens of generated speech (`[St71][Pi39][Hu99]...`), including those of the prompt that it
            continues; None for text and for audio that has not been encoded.
    """

    kind: Kind
    content: str | np.ndarray | SpeechUnits
    tokens: str | None = None

    @classmethod
    def text(cls, text: str) -> "Segment":
        """A stretch of text; tokens in brackets within it are read as tokens."""
        if not isinstance(text, str):
            raise PromptError(f"a text segment is a string, found {type(text).__name__}")
        return cls("text", text)

    @classmethod
    def speech(cls, source: str | os.PathLike | bytes | np.ndarray | SpeechUnits) -> "Segment":
        """A stretch of speech: audio float32 [R] at 16 kHz, an audio file (path or bytes), units, or a unit string.

        Raises:
            AudioError: the file cannot be read, or is shorter than 80 ms.
            UnitError: a string that starts with "[" and is no unit string.
            PromptError: an array that is not 1-D audio.
        """
        if isinstance(source, SpeechUnits):
            return cls("speech", source)
        if isinstance(source, str) and source.lstrip().startswith("["):
            return cls("speech", SpeechUnits.from_string(source), unit_tokens(source))
        if isinstance(source, (str, os.PathLike, bytes)):
            audio = load_audio(source)
            if audio.size < MINIMUM_SAMPLES:
                name = "audio" if isinstance(source, bytes) else os.fspath(source)
                raise AudioError(
                    f"{name}: {audio.size} samples (16 kHz) are too short for units: at least {MINIMUM_SAMPLES} (80 ms) are needed"
                )
            return cls("speech", audio)
        audio = np.asarray(source)
        if audio.ndim != 1 or not np.issubdtype(audio.dtype, np.floating):
            raise PromptError(
                f"audio is a 1-D array of floats at 16 kHz, found {audio.dtype} {audio.shape}; "
                "read files with load_audio, which mixes channels and resamples"
            )
        return cls("speech", audio.astype(np.float32, copy=False))


def unit_tokens(string: str) -> str:
    """The unit tokens of a string, without all else."""
    return "".join(_UNIT.findall(string))


def check_modality(modality: str) -> None:
    """Raise `PromptError` unless it is one of `MODALITIES`."""
    if modality not in MODALITIES:
        raise PromptError(f"output modality must be one of {', '.join(MODALITIES)}, found {modality!r}")


def units_string(units: SpeechUnits) -> str:
    """The string form of units at the frame rate or aligned (see `SpeechUnits`); aligned ones lose no repetition of Hu."""
    expressive = [stream for stream in units.streams[1:] if stream is not None]
    if not expressive or len(units.hubert) < 2 or not units.is_aligned:
        return units.to_string()
    tokens, in_force = [], [None, None, None]
    for index, hubert in enumerate(units.hubert.tolist()):
        for stream in (speech_units.STYLE, speech_units.PITCH):
            values = units.streams[stream]
            if values is not None and values[index] != in_force[stream]:
                in_force[stream] = values[index]
                tokens.append(f"[{speech_units.NAMES[stream]}{values[index]}]")
        tokens.append(f"[Hu{hubert}]")
    return "".join(tokens)


def build_prompt(
    segments: Sequence[Segment], output_modality: str, encode: Callable[[Segment], str], *, last: Kind | None = None
) -> str:
    """The string form of segments, as the released code builds it.

    A modality token stands only where the modality changes, so neighbours of one kind are glued together; where text or
    speech is asked for and the prompt ends in the other, its token follows. Contents are taken as they are.

    Args:
        encode: unit string of a speech segment.
        last: the modality that stands before the first segment, None at the start of a document.
    """
    check_modality(output_modality)
    parts: list[str] = []
    for segment in segments:
        if segment.kind != last:
            parts.append(PREFIXES[segment.kind])
        parts.append(segment.content if segment.kind == "text" else encode(segment))
        last = segment.kind
    if output_modality not in ("any", last):
        parts.append(PREFIXES[output_modality])
    return "".join(parts)


def check_tokens(string: str, vocabulary: Vocabulary) -> None:
    """Raise `PromptError` for a unit token that the vocabulary does not have, which would be read as text letter by letter."""
    for match in _UNIT.finditer(string):
        stream = speech_units.NAMES.index(match[0][1:3])
        if stream not in vocabulary.streams:
            raise PromptError(
                f"{match[0]} at position {match.start()}: Spirit LM {vocabulary.variant} has no "
                f"{('phonetic', 'pitch', 'style')[stream]} units; use an expressive checkpoint, or give the [Hu...] alone"
            )
        value = match[0][3:-1]
        if int(value) >= speech_units.SIZES[stream] or value != str(int(value)):
            raise PromptError(
                f"{match[0]} at position {match.start()} is no token: "
                f"[{speech_units.NAMES[stream]}...] go from 0 to {speech_units.SIZES[stream] - 1}"
            )


def forbidden_ids(vocabulary: Vocabulary, rows: int) -> np.ndarray:
    """Ids that may not be generated: bool [3, rows], a row for each of `MODALITIES`, `rows` the size of the embedding.

    Text: neither modality tokens nor units. Speech: neither modality tokens nor text, but `</s>` may end it. Any: all may
    come. Rows of the embedding that stand for no token are never generated (the released code allows them and then fails).
    """
    forbidden = np.zeros((3, rows), bool)
    forbidden[0, vocabulary.text_size : vocabulary.size] = True
    forbidden[1, : vocabulary.hubert_offset] = True
    forbidden[1, vocabulary.eos_id] = False
    forbidden[:, vocabulary.size :] = True
    return forbidden


def parse_runs(string: str) -> list[tuple[str, Kind]]:
    """Runs of text and speech in order, without modality tokens, which do not separate runs of one kind.

    Anything that starts like a unit token is speech up to the next "]", or the end.
    """
    runs: list[tuple[list[str], Kind]] = []
    for match in _PIECES.finditer(string):
        if match.lastindex is None:
            continue
        kind = "speech" if match.lastindex == 1 else "text"
        if not runs or runs[-1][1] != kind:
            runs.append(([], kind))
        runs[-1][0].append(match[0])
    return [("".join(pieces), kind) for pieces, kind in runs]


def starts_with_speech(string: str) -> bool:
    """Whether a unit token, of at most 11 characters, comes first."""
    return len(string) > 4 and _LEADING_UNIT.match(string) is not None


def ends_with_speech(string: str) -> bool:
    """Whether a unit token, of at most 11 characters, comes last."""
    start = string.rfind("[", max(0, len(string) - 11))
    return (
        len(string) > 4 and string.endswith("]") and start >= 0 and string[start + 1 : start + 3] in speech_units.NAMES
    )


def last_speech_start(string: str) -> int | None:
    """Where the last run of unit tokens starts, None if there is none."""
    start = None
    for match in _RUN.finditer(string):
        start = match.start()
    return start


def split_output(
    prompt: str, decoded: str, modality: str, voice: Callable[[str], np.ndarray | SpeechUnits]
) -> list[Segment]:
    """The segments of what was generated, by the released rules.

    Text or speech asked for: one segment. Any: a segment for every run of text and of speech. Speech that continues the
    prompt's is synthesised together with it, so that the voice runs on, and the prompt's share is cut off the waveform.
    Speech of fewer than 24 new units is dropped, except at the start of an answer to a prompt that ends in text.

    Args:
        prompt: the prompt's string form.
        decoded: the string form of prompt and new tokens; starts with `prompt`.
        voice: waveform float32 [R] of a unit string; or units, where there is no vocoder, which are not cut.
    """
    new = decoded[len(prompt) :].strip()
    if modality == "text":
        return [Segment("text", new)]
    if modality == "speech":
        return [Segment("speech", voice(new), unit_tokens(new))]
    start = last_speech_start(prompt) if ends_with_speech(prompt) and starts_with_speech(new) else None
    segments = []
    for index, (run, kind) in enumerate(parse_runs(new if start is None else decoded[start:])):
        if kind == "text":
            segments.append(Segment("text", run))
            continue
        sound = voice(run)
        units = run.count("[Hu") + 1
        prompted = prompt[start:].count("[Hu") if index == 0 and start is not None else 0
        if (index > 0 or start is not None) and units - prompted < _LEAST_NEW_UNITS + 1:
            continue
        if isinstance(sound, np.ndarray):
            sound = sound[math.ceil(sound.size * prompted / units) :]
        segments.append(Segment("speech", sound, unit_tokens(run)))
    return segments
