"""Reads and writes the weights of a Hugging Face directory: one file, or shards with an index."""

import json
import pathlib
from collections.abc import Mapping

import numpy as np

from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.formats.arrays import ReadableArray, nbytes
from spirit_jax.convert.formats.safetensors_file import load_safetensors, save_safetensors
from spirit_jax.convert.formats.torch_file import load_torch, save_torch
from spirit_jax.core.files import plain_name, read_json, write_file

WEIGHT_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Files that hold or list the weights, in the order in which transformers looks for them."""

SHARD_BYTES = 5 * 10**9
"""Largest weight file that an export writes by default, as transformers does."""

Shards = dict[str, list[str]]
"""Names of the tensors of each file, in order."""


def weight_files(directory: pathlib.Path) -> list[pathlib.Path]:
    """The files that hold the weights. Shards must lie beside their index.

    Raises:
        ConversionError: no weights, or an index that is damaged or names a file outside the directory.
    """
    index = next((directory / name for name in WEIGHT_NAMES if (directory / name).is_file()), None)
    if index is None:
        raise ConversionError(f"{directory}: no weights there; looked for {', '.join(WEIGHT_NAMES)}")
    if not index.name.endswith(".index.json"):
        return [index]
    shards = sorted(set(_read_index(index).values()))
    for shard in shards:
        if not (directory / shard).is_file():
            raise ConversionError(f"{index}: shard {shard} is missing")
    return [directory / shard for shard in shards]


def _read_index(index: pathlib.Path) -> dict[str, str]:
    """The file of each tensor; every file lies beside the index."""
    content = read_json(index, ConversionError)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConversionError(
            f"{index}: not an index of shards, because it has no weight_map with the file of each tensor"
        )
    return {tensor: plain_name(shard, index, ConversionError) for tensor, shard in weight_map.items()}


def load_weights(directory: pathlib.Path, *, check_content: bool = True) -> tuple[dict[str, np.ndarray], Shards]:
    """All tensors by name as views of mapped files, and the names of the tensors of each file.

    Args:
        check_content: as for `load_torch`.

    Raises:
        ConversionError: as `weight_files`; a tensor in two shards, or one that the index places in another file.
    """
    tensors: dict[str, np.ndarray] = {}
    shards: Shards = {}
    for path in weight_files(directory):
        found = (
            load_safetensors(path) if path.suffix == ".safetensors" else load_torch(path, check_content=check_content)
        )
        if not isinstance(found, dict) or not all(isinstance(tensor, np.ndarray) for tensor in found.values()):
            raise ConversionError(f"{path}: a state dict (names and tensors) expected")
        twice = sorted(tensors.keys() & found.keys())
        if twice:
            raise ConversionError(f"{path}: {', '.join(twice)} also in another shard")
        tensors |= found
        shards[path.name] = list(found)
    for name in WEIGHT_NAMES[1::2]:
        index = directory / name
        if index.is_file() and next(iter(shards)) not in WEIGHT_NAMES:
            placed = {tensor: shard for shard, names in shards.items() for tensor in names}
            _check_index(index, _read_index(index), placed)
            break
    return tensors, shards


def _check_index(index: pathlib.Path, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        lines = [f"{name}: index says {expected.get(name)}, found in {found.get(name)}" for name in wrong]
        raise ConversionError(f"{index} does not fit its shards:", lines)


def default_shards(tensors: Mapping[str, ReadableArray], shard_bytes: int = SHARD_BYTES) -> Shards:
    """Distribute tensors over safetensors files of at most `shard_bytes`, or larger where a single tensor is."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        if groups[-1] and size + nbytes(tensor) > shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += nbytes(tensor)
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": names for i, names in enumerate(groups, 1)}


def save_weights(directory: pathlib.Path, tensors: Mapping[str, ReadableArray], shards: Shards) -> None:
    """Write the files of `shards`, tensor by tensor, and an index if there is more than one file."""
    for name, keys in shards.items():
        save = save_safetensors if name.endswith(".safetensors") else save_torch
        save(directory / plain_name(name, directory, ConversionError), {key: tensors[key] for key in keys})
    if len(shards) > 1:
        index = "model.safetensors" if next(iter(shards)).endswith(".safetensors") else "pytorch_model.bin"
        weight_map = {key: name for name, keys in shards.items() for key in keys}
        total = sum(nbytes(tensor) for tensor in tensors.values())
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2, sort_keys=True)
        write_file(directory / f"{index}.index.json", text + "\n")
