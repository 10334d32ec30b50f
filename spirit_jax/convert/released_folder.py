"""The folder `released/` of an imported part: everything in the released files that the JAX networks do not use.

An export needs it to write the released files back, bit for bit:

- `weights.json`: for each weight file, its containers, configs and keys in order, with a mark in the place of the
  tensors. A weight file that cannot be written without code (a pickled k-means model) is marked as kept verbatim.
- `unused.safetensors`: tensors that the networks do not use, as FILE:KEY.
- everything else: small files of the released folder and weight files that are kept verbatim, unchanged.
"""

import json
import pathlib
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.formats.arrays import ReadableArray
from spirit_jax.convert.formats.safetensors_file import load_safetensors, save_safetensors
from spirit_jax.core.files import plain_name, read_json, shown, write_file

FOLDER = "released"
"""Name of the folder inside an imported part."""

LM_FOLDER, SPEECH_FOLDER = "spiritlm_model", "speech_tokenizer"
"""Folders of the released tree."""

MODEL_FOLDERS = {"base": "spirit-lm-base-7b", "expressive": "spirit-lm-expressive-7b"}
"""Folder of each language model under `LM_FOLDER`."""

SELECTIONS = {
    "llm": ("llm",),
    "hubert": ("phonetic",),
    "pitch": ("pitch",),
    "style": ("style",),
    "vocoder": ("vocoder_base", "vocoder_expressive"),
    "aligner": ("aligner",),
}
"""The parts that each value of `--only` selects."""

_WEIGHTS, _UNUSED = "weights.json", "unused.safetensors"
_WEIGHT_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".safetensors", ".gguf", ".onnx", ".msgpack", ".h5")
_MAX_CARRIED_BYTES = 16 * 2**20
# Keys in weights.json.
_STATE = "$state"
_TYPE = "$type"
_VERBATIM = "file"


@dataclass(frozen=True)
class ReleasedFolder:
    """Contents of `released/`."""

    files: list[pathlib.Path]
    """Files to copy unchanged."""
    descriptions: dict[str, Any]
    """For each weight file, what `describe` or `describe_verbatim` returns."""
    unused: Mapping[str, Mapping[str, ReadableArray]]
    """Tensors that the networks do not use, by file and key."""

    def save(self, directory: pathlib.Path) -> None:
        """Write `released/` into a part's directory, which has none yet."""
        folder = directory / FOLDER
        folder.mkdir()
        for path in self.files:
            shutil.copyfile(path, folder / path.name)
        write_file(folder / _WEIGHTS, json.dumps(self.descriptions, indent=1) + "\n")
        unused = {f"{file}:{key}": tensor for file, state in self.unused.items() for key, tensor in state.items()}
        if unused:
            save_safetensors(folder / _UNUSED, unused)

    @classmethod
    def load(cls, folder: pathlib.Path) -> "ReleasedFolder":
        """Read `released/`. Files that are kept verbatim are among the descriptions and not among the files.

        Raises:
            ConversionError: a damaged folder, or a weight file whose name leads outside the folder.
        """
        path = folder / _WEIGHTS
        found = read_json(path, ConversionError)
        if not isinstance(found, dict):
            raise ConversionError(f"{path}: {type(found).__name__} found, a description of each weight file expected")
        descriptions = {plain_name(name, path, ConversionError): description for name, description in found.items()}
        for name, description in descriptions.items():
            if not _is_description(description):
                raise ConversionError(f"{path}: {name} is {shown(description)}: not the description of a weight file")
        unused: dict[str, dict[str, ReadableArray]] = {name: {} for name in descriptions}
        if (folder / _UNUSED).is_file():
            for name, tensor in load_safetensors(folder / _UNUSED).items():
                file, _, key = name.partition(":")
                unused.setdefault(file, {})[key] = tensor
        files, _ = carried_files(folder)
        return cls([file for file in files if file.name not in descriptions], descriptions, unused)


def describe(value: Any, state: Any) -> Any:
    """Nested containers as JSON, with a mark in the place of `state`, the dict of tensors inside them.

    The mark holds the keys of `state` in order.

    Raises:
        ConversionError: a tensor outside `state`, or anything that is not data.
    """
    match value:
        case _ if value is state:
            return {_STATE: type(value).__name__, "keys": list(value)}
        case dict():
            items = {key: describe(item, state) for key, item in value.items()}
            if type(value) is dict and all(isinstance(key, str) and not key.startswith("$") for key in items):
                return items
            return {_TYPE: type(value).__name__, "items": [[describe(k, state), v] for k, v in items.items()]}
        case list():
            return [describe(item, state) for item in value]
        case tuple():
            return {_TYPE: "tuple", "items": [describe(item, state) for item in value]}
        case None | bool() | int() | float() | str():
            return value
    raise ConversionError(f"{type(value).__name__} where a config is expected")


def rebuild(description: Any, tensors: Mapping[str, Any]) -> Any:
    """The inverse of `describe`, with `tensors` in the place of the mark."""
    match description:
        case {"$state": kind, "keys": _}:
            return OrderedDict(tensors) if kind == "OrderedDict" else dict(tensors)
        case {"$type": "tuple", "items": items}:
            return tuple(rebuild(item, tensors) for item in items)
        case {"$type": kind, "items": items}:
            pairs = ((rebuild(key, tensors), rebuild(item, tensors)) for key, item in items)
            return OrderedDict(pairs) if kind == "OrderedDict" else dict(pairs)
        case dict():
            return {key: rebuild(item, tensors) for key, item in description.items()}
        case list():
            return [rebuild(item, tensors) for item in description]
    return description


def _is_description(value: Any) -> bool:
    """Whether `rebuild` and `state_keys` accept a value from a file."""
    match value:
        case {"$state": "dict" | "OrderedDict" | "file", "keys": [*keys]}:
            return all(isinstance(key, str) for key in keys)
        case {"$type": "tuple", "items": [*items]}:
            return all(map(_is_description, items))
        case {"$type": "dict" | "OrderedDict", "items": [*items]}:
            pairs = [pair for pair in items if isinstance(pair, list) and len(pair) == 2]
            keys, values = [key for key, _ in pairs], [item for _, item in pairs]
            return len(pairs) == len(items) and all(map(_is_key, keys)) and all(map(_is_description, values))
        case dict():
            return not any(key.startswith("$") for key in value) and all(map(_is_description, value.values()))
        case list():
            return all(map(_is_description, value))
    return True


def _is_key(value: Any) -> bool:
    """Whether a description is that of a key: text, a number, or a tuple of such."""
    match value:
        case {"$type": "tuple", "items": [*items]}:
            return all(map(_is_key, items))
    return not isinstance(value, dict | list)


def check_keys(folder: pathlib.Path, keys: Iterable[str], tensors: Iterable[str]) -> None:
    """Check that the keys that descriptions hold are those of the tensors.

    Raises:
        ConversionError: names the keys that differ.
    """
    different = sorted({*keys} ^ {*tensors})
    if different:
        raise ConversionError(
            f"{folder / _WEIGHTS} does not list the tensors of the released files: {shown(', '.join(different))}"
        )


def describe_verbatim(keys: Iterable[str]) -> dict[str, Any]:
    """The description of a weight file that cannot be written without code, and is therefore kept as it is."""
    return {_STATE: _VERBATIM, "keys": list(keys)}


def is_verbatim(description: Any) -> bool:
    """Whether `describe_verbatim` made the description."""
    return isinstance(description, dict) and description.get(_STATE) == _VERBATIM


def state_keys(description: Any) -> list[str]:
    """The keys of the tensors in a description, in order."""
    match description:
        case {"$state": _, "keys": found}:
            return found
        case dict():
            return [key for item in description.values() for key in state_keys(item)]
        case list():
            return [key for item in description for key in state_keys(item)]
    return []


def carried_files(folder: pathlib.Path, but: Iterable[str] = ()) -> tuple[list[pathlib.Path], list[str]]:
    """The files of a released folder that an import copies unchanged, and a note on each that it leaves behind.

    Files over 16 MiB and weights of other formats are left behind.

    Args:
        but: names of files that are neither copied nor noted.
    """
    files, notes = [], []
    skipped = {*but, _WEIGHTS, _UNUSED}
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.name in skipped or path.name.startswith("."):
            continue
        if path.suffix in _WEIGHT_SUFFIXES or path.stat().st_size > _MAX_CARRIED_BYTES:
            notes.append(f"{path} is left behind")
        else:
            files.append(path)
    return files, notes
