"""Prompts as users write them: segments on a command line, and JSONL files of prompts.

A segment is `text:...`, `speech:FILE` or `units:[Hu1][Hu2]...`. A line of a file is an object with an optional `id` and
either `input`, a list of segments, or `prompt`, a token string.
"""

import collections
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import read_text
from spirit_jax.inference.prompts import EncodedPrompt, Modality, PromptEncoder, Segment

_MAX_ID_BYTES = 200  # file systems take names of 255 bytes


class InputError(SpiritError):
    """A prompt on the command line or in a file that cannot be used; the message names the file and the line."""


class NamedPrompt(NamedTuple):
    """A prompt with the id that its results have."""

    id: str
    prompt: str | list[Segment]
    """A token string, or segments."""


def parse_segment(text: str, directory: pathlib.Path = pathlib.Path()) -> Segment:
    """Return the segment that `text:...`, `speech:FILE` or `units:[Hu1]...` describes.

    Args:
        directory: relative files are looked for here.

    Raises:
        InputError: another form.
        AudioError: the file cannot be read, or is shorter than 80 ms.
        UnitError: malformed units.
    """
    kind, separator, content = text.partition(":")
    if separator and kind == "text":
        return Segment.text(content)
    if separator and kind == "speech":
        return Segment.speech(directory / content)
    if separator and kind == "units" and content.lstrip().startswith("["):
        return Segment.speech(content)
    raise InputError(f"{text[:40]!r}: expected text:..., speech:FILE or units:[Hu1][Hu2]...")


def read_prompts(path: str | os.PathLike) -> list[NamedPrompt]:
    """Read a JSONL file of prompts. A line without an id has its number as id; audio files are relative to the file.

    Raises:
        InputError: the file cannot be read, a line is not a prompt, or an id occurs twice; names the file and the line.
    """
    prompts: list[NamedPrompt] = []
    for number, line in enumerate(read_text(path, InputError).split("\n"), 1):
        if not line.strip():
            continue
        try:
            prompts.append(_parse_line(line, number, pathlib.Path(path).parent))
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
    if not prompts:
        raise InputError(f"{path}: no prompts in it")
    name, count = collections.Counter(prompt.id for prompt in prompts).most_common(1)[0]
    if count > 1:
        raise InputError(f"{path}: id {name!r} comes twice")
    return prompts


def _parse_line(line: str, number: int, directory: pathlib.Path) -> NamedPrompt:
    entry = json.loads(line)
    if not isinstance(entry, dict) or ("prompt" in entry) == ("input" in entry):
        raise InputError('expected {"id": ..., "input": [...]} or {"id": ..., "prompt": "..."}')
    name = str(entry.get("id", number))
    if not name or pathlib.PurePath(name).name != name or "\0" in name or len(name.encode()) > _MAX_ID_BYTES:
        raise InputError(f"id {name[:40]!r} cannot be part of a file name")
    return NamedPrompt(name, _parse_prompt(entry, directory))


def _parse_prompt(entry: dict[str, Any], directory: pathlib.Path) -> str | list[Segment]:
    if "prompt" in entry:
        if not isinstance(entry["prompt"], str) or not entry["prompt"]:
            raise InputError(f'"prompt" must be a string with something in it, found {entry["prompt"]!r}')
        return entry["prompt"]
    segments = entry["input"]
    if not isinstance(segments, list) or not segments or not all(isinstance(part, str) for part in segments):
        raise InputError(f'"input" must be a list of text:..., speech:FILE and units:..., found {str(segments)[:40]!r}')
    return [parse_segment(part, directory) for part in segments]


def encode_prompts(
    encoder: PromptEncoder,
    prompts: Sequence[NamedPrompt],
    few_shot: Sequence[NamedPrompt],
    output_modality: Modality,
) -> list[EncodedPrompt]:
    """Encode each prompt with the few-shot examples in front, in their order.

    Raises:
        InputError: a prompt cannot be used; names it if there are several.
    """
    try:
        examples = [_with_units(encoder, example.prompt) for example in few_shot]
    except SpiritError as error:
        raise InputError(f"few-shot examples: {error}") from error
    encoded = []
    for name, prompt in prompts:
        try:
            encoded.append(encoder.encode(_join(encoder, [*examples, prompt], output_modality), output_modality))
        except SpiritError as error:
            raise InputError(f"{name}: {error}" if len(prompts) > 1 else str(error)) from error
    return encoded


def _with_units(encoder: PromptEncoder, prompt: str | list[Segment]) -> str | list[Segment]:
    """Return the prompt with its audio encoded, so that it is not encoded again for each prompt that follows it."""
    return prompt if isinstance(prompt, str) else [encoder.encode_speech(segment) for segment in prompt]


def _join(encoder: PromptEncoder, parts: Sequence[str | list[Segment]], output_modality: Modality) -> str:
    """Return the string form of prompts that follow each other."""
    if any(isinstance(part, str) for part in parts):
        *before, last = parts
        return "".join(map(encoder.string, before)) + encoder.string(last, output_modality)
    return encoder.string([segment for part in parts if not isinstance(part, str) for segment in part], output_modality)
