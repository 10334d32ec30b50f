"""The weights of a Hugging Face directory: one `.bin` or `.safetensors` file, or shards with an index."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from spirit_jax.convert.formats.files import ConversionError, nbytes
from spirit_jax.convert.formats.safetensors_file import load_safetensors, save_safetensors
from spirit_jax.convert.formats.torch_file import load_torch, save_torch
from spirit_jax.core.files import plain_name

# In the order in which transformers looks for them.
NAMES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
SHARD_BYTES = 5 * 10**9

Shards = dict[str, list[str]]  # file name -> names of its tensors, in order


def weight_files(directory: pathlib.Path) -> list[pathlib.Path]:
    """The files that hold the weights; an index names its shards, which must lie beside it.

    Raises `ConversionError` where there are none, or the index is damaged or points outside the directory.
    """
    index = next((directory / name for name in NAMES if (directory / name).is_file()), None)
    if index is None:
        raise ConversionError(f"{directory}: no weights there; looked for {', '.join(NAMES)}")
    if not index.name.endswith(".index.json"):
        return [index]
    try:
        shards = list(dict.fromkeys(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{index}: not an index of shards ({type(error).__name__}: {error})") from error
    for shard in shards:
        if not (directory / plain_name(shard, index, ConversionError)).is_file():
            raise ConversionError(f"{index}: shard {shard} is missing")
    return [directory / shard for shard in sorted(shards)]


def load_weights(directory: pathlib.Path) -> tuple[dict[str, Any], Shards]:
    """All tensors by name as views of mapped files, and which file holds which.

    Raises `ConversionError` also for a tensor in two shards or one that the index places elsewhere.
    """
    tensors: dict[str, Any] = {}
    shards: Shards = {}
    for path in weight_files(directory):
        found = load_safetensors(path) if path.suffix == ".safetensors" else load_torch(path)
        strange = not isinstance(found, dict) or any(not hasattr(tensor, "shape") for tensor in found.values())
        if strange:
            raise ConversionError(f"{path}: a state dict (names and tensors) expected")
        twice = sorted(tensors.keys() & found.keys())
        if twice:
            raise ConversionError(f"{path}: {', '.join(twice)} also in another shard")
        tensors |= found
        shards[path.name] = list(found)
    for name in NAMES[1::2]:
        index = directory / name
        if index.is_file() and next(iter(shards)) not in NAMES:
            placed = {tensor: shard for shard, names in shards.items() for tensor in names}
            _compare(index, json.loads(index.read_bytes())["weight_map"], placed)
            break
    return tensors, shards


def _compare(index: pathlib.Path, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        lines = [f"{name}: index says {expected.get(name)}, found in {found.get(name)}" for name in wrong]
        raise ConversionError("\n  ".join([f"{index} does not fit its shards:", *lines]))


def default_shards(tensors: Mapping[str, Any], shard_bytes: int = SHARD_BYTES) -> Shards:
    """One safetensors file, or several of at most `shard_bytes` (unless a tensor alone is larger)."""
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


def save_weights(directory: pathlib.Path, tensors: Mapping[str, Any], shards: Shards) -> None:
    """Writes the files of `shards`, tensor by tensor, and an index where there is more than one."""
    for name, keys in shards.items():
        save = save_safetensors if name.endswith(".safetensors") else save_torch
        save(directory / plain_name(name, directory, ConversionError), {key: tensors[key] for key in keys})
    if len(shards) > 1:
        index = "model.safetensors" if next(iter(shards)).endswith(".safetensors") else "pytorch_model.bin"
        weight_map = {key: name for name, keys in shards.items() for key in keys}
        total = sum(nbytes(tensor) for tensor in tensors.values())
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2, sort_keys=True)
        (directory / f"{index}.index.json").write_text(text + "\n")
