"""What a released file holds besides the tensors that we use: kept in a folder `released/`, so that an export gives it all back.

weights.json          for each weight file: its containers, configs and keys in order, a mark in the place of the tensors; of a file that
                      is a pickle of other objects (k-means), that it lies here whole
unused.safetensors    tensors that our networks have no use for, as FILE:KEY
everything else       small files of the released folder, unchanged
"""

import json
import pathlib
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

from spirit_jax.convert.formats.files import ConversionError
from spirit_jax.convert.formats.safetensors_file import load_safetensors, save_safetensors
from spirit_jax.core.files import plain_name

FOLDER = "released"
_WEIGHTS, _UNUSED = "weights.json", "unused.safetensors"
_WEIGHT_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".safetensors", ".gguf", ".onnx", ".msgpack", ".h5")
_CARRY_BYTES = 16 * 2**20
_STATE = "$state"
_TYPE = "$type"
_WHOLE = "file"


def describe(value: Any, state: Any) -> Any:
    """Nested containers as JSON; `state`, the dict of tensors inside it, becomes a mark with its keys.

    Raises `ConversionError` for a tensor outside `state` or anything that is not data.
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


def whole(keys: Iterable[str]) -> dict[str, Any]:
    """The description of a file that cannot be written again without code, and is kept as it is."""
    return {_STATE: _WHOLE, "keys": list(keys)}


def is_whole(description: Any) -> bool:
    """Whether `whole` made it."""
    return isinstance(description, dict) and description.get(_STATE) == _WHOLE


def keys(description: Any) -> list[str]:
    """The keys of the state dict in a description."""
    match description:
        case {"$state": _, "keys": found}:
            return found
        case dict():
            return [key for item in description.values() for key in keys(item)]
        case list():
            return [key for item in description for key in keys(item)]
    return []


def carried(folder: pathlib.Path, but: Iterable[str] = ()) -> tuple[list[pathlib.Path], list[str]]:
    """Files of a released folder that go along unchanged, and notes on those that do not: too large, or other weights."""
    files, notes = [], []
    skipped = {*but, _WEIGHTS, _UNUSED}
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.name in skipped or path.name.startswith("."):
            continue
        if path.suffix in _WEIGHT_SUFFIXES or path.stat().st_size > _CARRY_BYTES:
            notes.append(f"{path} is left behind")
        else:
            files.append(path)
    return files, notes


def save(
    directory: pathlib.Path, files: Iterable[pathlib.Path], descriptions: Mapping[str, Any], unused: Mapping[str, Any]
) -> None:
    """Writes `released/` into `directory`; `unused` is by FILE:KEY."""
    folder = directory / FOLDER
    folder.mkdir()
    for path in files:
        shutil.copyfile(path, folder / path.name)
    (folder / _WEIGHTS).write_text(json.dumps(descriptions, indent=1) + "\n")
    if unused:
        save_safetensors(folder / _UNUSED, unused)


def load(folder: pathlib.Path) -> tuple[list[pathlib.Path], dict[str, Any], dict[str, dict[str, Any]]]:
    """Reads `released/`: (files to copy, descriptions by file, unused tensors by file and key)."""
    path = folder / _WEIGHTS
    try:
        descriptions = {
            plain_name(name, path, ConversionError): found for name, found in json.loads(path.read_bytes()).items()
        }
    except (OSError, ValueError, AttributeError) as error:
        raise ConversionError(f"{path}: {error}") from error
    unused: dict[str, dict[str, Any]] = {name: {} for name in descriptions}
    if (folder / _UNUSED).is_file():
        for name, tensor in load_safetensors(folder / _UNUSED).items():
            file, _, key = name.partition(":")
            unused.setdefault(file, {})[key] = tensor
    return [file for file in carried(folder)[0] if file.name not in descriptions], descriptions, unused
