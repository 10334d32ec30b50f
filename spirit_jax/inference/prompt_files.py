"""Prompts as users write them: segments on a command line, and JSONL files of prompts.

A segment is `text:...`, `speech:FILE` or `units:[Hu1][Hu2]...`. A line of a file is an object with an optional `id` and
either `input`, a list of segments, or `prompt`, a token string.

A file whose lines are not such objects is refused. A prompt that cannot be used, such as one that is too long or whose
audio is missing, is kept with the reason, and the others are answered.
"""

import collections
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import parse_json, read_text
from spirit_jax.core.paths import local_path, parent_folder
from spirit_jax.inference.prompts import EncodedPrompt, Modality, PromptEncoder, Segment, Task

_MAX_ID_BYTES = 200  # file systems take names of 255 bytes
_MAX_PATH = 4096


class InputError(SpiritError):
    """A prompt on the command line or in a file that cannot be used; the message names the file and the line."""


class NamedPrompt(NamedTuple):
    """A prompt with the id that its results have."""

    id: str
    prompt: str | list[Segment] | SpiritError
    """A token string, segments, or why the prompt cannot be used."""


def parse_segment(text: str, directory: pathlib.Path = pathlib.Path()) -> Segment:
    """Return the segment that `text:...`, `speech:FILE` or `units:[Hu1]...` describes.

    Args:
        directory: relative files are looked for here.

    Raises:
        InputError: another form.
        AudioError: the file cannot be read, or is shorter than 80 ms.
        PathError: not a path.
        PromptError: text with a lone surrogate.
        UnitError: malformed units.
    """
    kind, separator, content = text.partition(":")
    if separator and kind == "text":
        return Segment.text(content)
    if separator and kind == "speech" and len(content) <= _MAX_PATH:
        return Segment.speech(directory / local_path(content, "speech"))
    if separator and kind == "units" and content.lstrip().startswith("["):
        return Segment.speech(content)
    raise InputError(f"{text[:40]!r}: expected text:..., speech:FILE or units:[Hu1][Hu2]...")


def read_prompts(path: str | os.PathLike) -> list[NamedPrompt]:
    """Read a JSONL file of prompts. A line without an id has its number as id; audio files are relative to the file.

    Raises:
        InputError: the file cannot be read, a line is not a prompt, an id occurs twice, or no prompt can be used; names
            the file and the line.
        BucketError, BucketJobError: the file is in a bucket that cannot be read.
    """
    prompts: list[NamedPrompt] = []
    directory = parent_folder(os.fspath(path), "prompts")
    for number, line in enumerate(read_text(local_path(os.fspath(path), "prompts"), InputError).split("\n"), 1):
        if line.strip():
            prompts.append(_parse_line(line, number, f"{path}, line {number}", directory))
    if not prompts:
        raise InputError(f"{path}: no prompts in it")
    name, count = collections.Counter(prompt.id for prompt in prompts).most_common(1)[0]
    if count > 1:
        raise InputError(f"{path}: id {name!r} comes twice")
    first = prompts[0].prompt
    if isinstance(first, SpiritError) and all(isinstance(prompt.prompt, SpiritError) for prompt in prompts):
        raise first
    return prompts


def _parse_line(line: str, number: int, where: str, directory: pathlib.Path) -> NamedPrompt:
    entry = parse_json(line, where, InputError)
    if not isinstance(entry, dict) or ("prompt" in entry) == ("input" in entry):
        raise InputError(f'{where}: expected {{"id": ..., "input": [...]}} or {{"id": ..., "prompt": "..."}}')
    given = entry.get("id")
    if not isinstance(given, str | int | None) or isinstance(given, bool):
        raise InputError(f"{where}: id must be a string or a whole number, found {ascii(given)[:40]}")
    name = str(number if given is None else given)
    if not _is_file_name(name):
        raise InputError(f"{where}: id {name[:40]!a} cannot be part of a file name of at most {_MAX_ID_BYTES} bytes")
    _check_form(entry, where)
    try:
        prompt = entry["prompt"] if "prompt" in entry else [parse_segment(part, directory) for part in entry["input"]]
    except SpiritError as error:
        prompt = InputError(f"{where}: {error}")
    return NamedPrompt(name, prompt)


def _is_file_name(name: str) -> bool:
    return bool(name) and pathlib.PurePath(name).name == name and "\0" not in name and _bytes(name) <= _MAX_ID_BYTES


def _bytes(name: str) -> float:
    """Bytes of a name in UTF-8; infinite for one that is not Unicode."""
    try:
        return len(name.encode())
    except UnicodeEncodeError:
        return float("inf")


def _check_form(entry: dict[str, Any], where: str) -> None:
    """Refuse a prompt that is neither a string nor a list of strings."""
    if "prompt" in entry:
        if not isinstance(entry["prompt"], str) or not entry["prompt"]:
            found = ascii(entry["prompt"])[:40]
            raise InputError(f'{where}: "prompt" must be a string with something in it, found {found}')
        return
    segments = entry["input"]
    if not isinstance(segments, list) or not segments or not all(isinstance(part, str) for part in segments):
        found = ascii(segments)[:40]
        raise InputError(f'{where}: "input" must be a list of text:..., speech:FILE and units:..., found {found}')


def encode_prompts(
    encoder: PromptEncoder,
    prompts: Sequence[NamedPrompt],
    few_shot: Sequence[NamedPrompt],
    output_modality: Modality,
    task: Task | None = None,
) -> list[EncodedPrompt | SpiritError]:
    """Encode each prompt with the few-shot examples in front, in their order; or return why it cannot be used.

    Args:
        task: writes prompts as the recipe of a task does; there are no few-shot examples then.

    Raises:
        InputError: an example cannot be used, or none of the prompts; names them.
    """
    if task is not None and few_shot:
        raise InputError(f"task {task} writes the whole prompt; leave --few-shot out")
    examples = []
    for name, example in few_shot:
        try:
            if isinstance(example, SpiritError):
                raise example
            examples.append(_with_units(encoder, example))
        except SpiritError as error:
            raise InputError(f"few-shot example {name}: {error}") from error
    encoded = [_encode(encoder, prompt, examples, output_modality, task) for _, prompt in prompts]
    problems = [
        f"{name}: {error}" for (name, _), error in zip(prompts, encoded, strict=True) if isinstance(error, SpiritError)
    ]
    if len(problems) == len(prompts) == 1:
        raise InputError(problems[0].partition(": ")[2])
    if len(problems) == len(prompts):
        raise InputError(f"none of the {len(prompts)} prompts can be used", problems)
    return encoded


def _encode(
    encoder: PromptEncoder,
    prompt: str | list[Segment] | SpiritError,
    examples: Sequence[str | list[Segment]],
    output_modality: Modality,
    task: Task | None,
) -> EncodedPrompt | SpiritError:
    try:
        if isinstance(prompt, SpiritError):
            return prompt
        if task is None:
            return encoder.encode(prompt, output_modality, few_shot=examples)
        return encoder.encode_task(prompt, task, output_modality)
    except SpiritError as error:
        return error


def _with_units(encoder: PromptEncoder, prompt: str | list[Segment]) -> str | list[Segment]:
    """Return the prompt with its audio encoded, so that it is not encoded again for each prompt that follows it."""
    return prompt if isinstance(prompt, str) else [encoder.encode_speech(segment) for segment in prompt]
