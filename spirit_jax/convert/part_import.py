"""Reads a part of the released speech tokenizer and writes it as a part of a checkpoint directory."""

import contextlib
import json
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from spirit_jax import checkpoint
from spirit_jax.convert import released_folder
from spirit_jax.convert.errors import ConversionError, reading
from spirit_jax.convert.formats.arrays import Progress, ReadableArray, counted, nbytes
from spirit_jax.convert.formats.numpy_pickle import CENTERS
from spirit_jax.convert.formats.torch_file import load_torch
from spirit_jax.convert.parts import ReleasedPart, check_sizes
from spirit_jax.convert.released_folder import ReleasedFolder
from spirit_jax.convert.table import to_jax
from spirit_jax.convert.weight_files import OpenedFile, WeightFile, open_weight_file
from spirit_jax.core.checksums import write_checksums
from spirit_jax.core.files import read_json, read_text, shown, write_file

_CONFIG_FILES = (
    *("config.json", "config.yaml", "speakers.txt", "styles.txt"),
    *("vocab.json", "tokenizer_config.json", "preprocessor_config.json"),
)
"""Released files that `parts.py` reads configs from."""
_MAX_CONFIG_BYTES = 1_000_000


@dataclass(frozen=True)
class ImportedPart:
    """A released part, checked and mapped. Its tensors are read when they are used."""

    folder: pathlib.Path
    config: dict[str, Any]
    """The part's config.json."""
    arrays: dict[str, ReadableArray]
    """JAX arrays by path."""
    tensors: dict[str, np.ndarray]
    """Released tensors, as FILE:KEY."""
    contents: dict[str, Any]
    """The content of each released file, by its released name."""
    rest: ReleasedFolder
    """Tensors that the JAX network does not use."""
    notes: list[str]

    @property
    def nbytes(self) -> int:
        """Bytes of the JAX arrays."""
        return sum(nbytes(array) for array in self.arrays.values())

    def write(self, directory: pathlib.Path, progress: Progress) -> None:
        """Write the part into an empty directory."""
        write_file(directory / checkpoint.CONFIG, json.dumps(self.config, indent=1) + "\n")
        arrays = {path: counted(array, progress) for path, array in self.arrays.items()}
        checkpoint.save_arrays(directory, checkpoint.unflatten(arrays))
        self.rest.save(directory)
        write_checksums(directory)


def import_part(part: ReleasedPart, folder: pathlib.Path, layer: int | None = None) -> ImportedPart:
    """Read a released part and check it in full.

    Args:
        folder: the part's own released folder.
        layer: the layer of HuBERT that k-means centroids quantize; None to read it from their file name.

    Raises:
        ConversionError: a file that is missing, damaged or not as the part's table expects; names it.
    """
    opened: list[tuple[WeightFile, list[OpenedFile]]] = []
    notes: list[str] = []
    for file in part.files:
        shards, file_notes = open_weight_file(file, folder, layer)
        opened.append((file, shards))
        notes += file_notes
    all_shards = [shard for _, shards in opened for shard in shards]
    carried, left_behind = released_folder.carried_files(folder, but=[shard.path.name for shard in all_shards])
    contents: dict[str, Any] = {
        file.name or shard.path.name: shard.content for file, shards in opened for shard in shards
    }
    contents |= {path.name: content for path in carried if (content := _read_config(path)) is not None}

    with _naming(folder):
        extra = part.extra_file(contents)
    extra_path = folder / extra if extra is not None and extra not in contents else None
    if extra_path is not None and not extra_path.is_file():
        notes.append(f"{extra_path} is not there, though the config names it: the part is imported without it")
        extra_path = None
    if extra_path is not None:
        contents[extra_path.name] = load_torch(extra_path)
        left_behind = [note for note in left_behind if not note.startswith(f"{extra_path} ")]
    with _naming(folder):
        config = part.config(contents)
        check_sizes(config)

    arrays: dict[str, ReadableArray] = {}
    unused: dict[str, dict[str, ReadableArray]] = {}
    for file, shards in opened:
        if not shards:
            continue
        with _naming(folder):
            rows, shapes = file.table(config)
        merged = {key: tensor for shard in shards for key, tensor in shard.state.items()}
        found, kept = to_jax(rows, merged, shapes, " + ".join(str(shard.path) for shard in shards))
        arrays |= found
        for shard in shards:
            unused[shard.path.name] = {key: kept[key] for key in shard.state if key in kept}

    # A k-means model is a pickle of objects that only their own library can write, so the file itself is kept.
    verbatim = [shard.path for shard in all_shards if CENTERS in shard.state]
    descriptions = {
        shard.path.name: released_folder.describe_verbatim(shard.state)
        if shard.path in verbatim
        else released_folder.describe(shard.content, shard.state)
        for shard in all_shards
    }
    if extra_path is not None:
        verbatim.append(extra_path)
        descriptions[extra_path.name] = released_folder.describe_verbatim(())
    rest = ReleasedFolder(carried + verbatim, descriptions, unused)
    tensors = {f"{shard.path.name}:{key}": tensor for shard in all_shards for key, tensor in shard.state.items()}
    return ImportedPart(folder, config, arrays, tensors, contents, rest, notes + left_behind)


@contextlib.contextmanager
def _naming(folder: pathlib.Path) -> Iterator[None]:
    """Make errors in released configs name the folder."""
    try:
        with reading(folder, "the config of a released part"):
            yield
    except ConversionError as error:
        if str(error).startswith(str(folder)):
            raise
        raise ConversionError(f"{folder}: {error.message}", error.details) from error


class _PlainLoader(yaml.SafeLoader):
    """YAML without anchors, whose values may be exponentially larger than the text."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"an alias in line {self.peek_event().start_mark.line + 1}, which no config needs")
        return super().compose_node(parent, index)


def _read_config(path: pathlib.Path) -> Any:
    """The content of a small file that a part's config may come from, None for other files."""
    if path.name not in _CONFIG_FILES:
        return None
    if path.stat().st_size > _MAX_CONFIG_BYTES:
        raise ConversionError(f"{path}: {path.stat().st_size} bytes, at most {_MAX_CONFIG_BYTES} expected in a config")
    if path.suffix == ".json":
        return read_json(path, ConversionError)
    if path.suffix == ".txt":
        return read_text(path, ConversionError).splitlines()
    try:
        with reading(path, "YAML"):
            return yaml.load(read_text(path, ConversionError), _PlainLoader)
    except yaml.YAMLError as error:
        raise ConversionError(f"{path}: {shown(error)}") from error
