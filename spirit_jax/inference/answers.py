"""Answers: generated ids become segments of text and speech.

The rules work on the string form of prompt and answer, as the released code does (docs/formats.md, "Prompts and
generation").
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from spirit_jax import units as speech_units
from spirit_jax.inference import literals
from spirit_jax.inference.prompts import EncodedPrompt, Kind, Modality, Segment, unit_tokens
from spirit_jax.inference.voice import Voice
from spirit_jax.units import SpeechUnits
from spirit_jax.vocabulary import ASR, Vocabulary

_MIN_NEW_UNITS = 24  # the released code counts [Hu tokens plus one, and drops speech of fewer than 25 by that count

_PIECES = re.compile(r"\[Text\]|\[Speech\]|(\[(?:Hu|Pi|St)[^\]]*(?:\]|\Z))|(.)", re.DOTALL)
_RUN = re.compile(r"(?:\[(?:Hu|Pi|St)\d+\])+")
_LEADING_UNIT = re.compile(r"\[(?:Hu|Pi|St).{0,7}\]", re.DOTALL)


def answer_text(vocabulary: Vocabulary, prompt: EncodedPrompt, new_ids: Int[np.ndarray, " N"]) -> str:
    """Return the string form of what was generated after a prompt."""
    before, decoded = vocabulary.decode(prompt.ids), vocabulary.decode([*prompt.ids, *new_ids])
    return decoded[len(before) :] if decoded.startswith(before) else vocabulary.decode(new_ids)


def find_stop(text: str, stop: Sequence[str]) -> int | None:
    """Return where the first stop string begins in a text, or None if there is none."""
    return min((position for position in map(text.find, stop) if position >= 0), default=None)


def answer_segments(
    vocabulary: Vocabulary,
    prompt: EncodedPrompt,
    new_ids: Int[np.ndarray, " N"],
    stop: Sequence[str],
    voice: Voice,
) -> list[Segment]:
    """Return the segments of an answer, cut before the first stop string; `voice` speaks the speech in it.

    A unit token that is spelled out in text stays text. The separator that a model repeats at the start of a transcript
    is left out.
    """
    before = literals.decode(vocabulary, prompt.ids)
    decoded = literals.decode(vocabulary, [*prompt.ids, *new_ids])
    new = decoded[len(before) :] if decoded.startswith(before) else literals.decode(vocabulary, new_ids)
    new = literals.cut(new, find_stop(literals.unmark(new), stop))
    if prompt.task == "asr":
        new = new.lstrip().removeprefix(ASR)
    decoded = before + new
    segments = split_output(
        before, decoded, prompt.output_modality, lambda tokens: voice.speak(tokens, context=decoded)
    )
    return [
        dataclasses.replace(segment, content=literals.unmark(segment.content))
        if isinstance(segment.content, str)
        else segment
        for segment in segments
    ]


def split_output(
    prompt: str,
    decoded: str,
    modality: Modality,
    speak: Callable[[str], Float[np.ndarray, " R"] | SpeechUnits],
) -> list[Segment]:
    """Return the segments of what was generated, by the released rules.

    If text or speech was asked for, there is one segment; otherwise one for each run of text or speech. Speech that
    continues the prompt's speech is synthesized together with it, so that the voice carries over, and the prompt's
    share is cut off the waveform. Speech of fewer than 24 new units is dropped, except at the start of an answer to a
    prompt that ends in text.

    Args:
        prompt: string form of the prompt.
        decoded: string form of the prompt and the new tokens; starts with `prompt`.
        speak: returns the waveform, float32 [R], of unit tokens; or units, which are not cut.
    """
    new = decoded[len(prompt) :].strip()
    if modality == "text":
        return [Segment("text", new)]
    if modality == "speech":
        return [Segment("speech", speak(new), unit_tokens(new))]
    start = last_speech_start(prompt) if ends_with_speech(prompt) and starts_with_speech(new) else None
    segments = []
    for index, (run, kind) in enumerate(parse_runs(new if start is None else decoded[start:])):
        if kind == "text":
            segments.append(Segment("text", run))
            continue
        sound = speak(run)
        units = run.count("[Hu") + 1
        prompted = prompt[start:].count("[Hu") if index == 0 and start is not None else 0
        if (index > 0 or start is not None) and units - prompted < _MIN_NEW_UNITS + 1:
            continue
        if isinstance(sound, np.ndarray):
            sound = sound[math.ceil(sound.size * prompted / units) :]
        segments.append(Segment("speech", sound, unit_tokens(run)))
    return segments


def parse_runs(string: str) -> list[tuple[str, Kind]]:
    """Return the runs of text and speech in order. Modality tokens are dropped and do not separate runs of one kind.

    Anything that starts like a unit token is speech up to the next "]", or to the end.
    """
    runs: list[tuple[list[str], Kind]] = []
    for match in _PIECES.finditer(string):
        if match.lastindex is None:
            continue
        kind: Kind = "speech" if match.lastindex == 1 else "text"
        if not runs or runs[-1][1] != kind:
            runs.append(([], kind))
        runs[-1][0].append(match[0])
    return [("".join(pieces), kind) for pieces, kind in runs]


def starts_with_speech(string: str) -> bool:
    """Return whether a unit token of at most 11 characters comes first."""
    return len(string) > 4 and _LEADING_UNIT.match(string) is not None


def ends_with_speech(string: str) -> bool:
    """Return whether a unit token of at most 11 characters comes last."""
    start = string.rfind("[", max(0, len(string) - 11))
    return (
        len(string) > 4 and string.endswith("]") and start >= 0 and string[start + 1 : start + 3] in speech_units.NAMES
    )


def last_speech_start(string: str) -> int | None:
    """Return where the last run of unit tokens starts, or None if there is none."""
    start = None
    for match in _RUN.finditer(string):
        start = match.start()
    return start
