"""Reads a part of a checkpoint directory and writes the released folders that it was imported from."""

import pathlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spirit_jax import checkpoint
from spirit_jax.convert import released_folder
from spirit_jax.convert.errors import ConversionError, reading
from spirit_jax.convert.formats import hf_weights
from spirit_jax.convert.formats.arrays import Progress, ReadableArray, counted, nbytes, same_bits
from spirit_jax.convert.formats.torch_file import save_torch
from spirit_jax.convert.parts import ReleasedPart, check_sizes
from spirit_jax.convert.released_folder import ReleasedFolder
from spirit_jax.convert.table import to_torch
from spirit_jax.convert.weight_files import WeightFile, open_weight_file
from spirit_jax.core.checksums import check_seal
from spirit_jax.core.files import read_json


@dataclass(frozen=True)
class ExportedPart:
    """A part of a checkpoint directory, mapped to its released files."""

    descriptions: dict[str, dict[str, Any]]
    """For each released folder, the description (`released_folder.describe`) of each weight file to write."""
    files: dict[str, list[pathlib.Path]]
    """For each released folder, the files to copy."""
    tensors: dict[str, dict[str, ReadableArray]]
    """Released tensors by file and key."""

    @property
    def nbytes(self) -> int:
        """Bytes of the released tensors."""
        return sum(nbytes(tensor) for state in self.tensors.values() for tensor in state.values())

    def write(self, directory: pathlib.Path, progress: Progress) -> None:
        """Write the released folders into `directory`, which has none of them."""
        for name, descriptions in self.descriptions.items():
            folder = directory / name
            folder.mkdir()
            for path in self.files.get(name, []):
                shutil.copyfile(path, folder / path.name)
            for file, description in descriptions.items():
                state = {key: counted(tensor, progress) for key, tensor in self.tensors[file].items()}
                if file.endswith(".safetensors"):
                    hf_weights.save_weights(folder, state, {file: list(state)})
                else:
                    save_torch(folder / file, released_folder.rebuild(description, state))


def export_part(part: ReleasedPart, directory: pathlib.Path) -> ExportedPart:
    """Read a part of a checkpoint directory and check that it can be exported.

    Args:
        directory: the part's own directory.

    Raises:
        ConversionError: the part was not imported from a released one, or lacks a file or an array, or a weight file
            that is exported verbatim no longer holds the part's arrays.
    """
    check_seal(directory, ConversionError)
    folder = directory / released_folder.FOLDER
    if not folder.is_dir():
        raise ConversionError(
            f"{directory}: no {released_folder.FOLDER}/ there: the part was not imported from a released checkpoint, "
            "so its released config is unknown"
        )
    released = ReleasedFolder.load(folder)
    config = read_json(directory / checkpoint.CONFIG, ConversionError)
    if not isinstance(config, dict):
        raise ConversionError(f"{directory / checkpoint.CONFIG}: a {type(config).__name__}, a part's config expected")
    arrays = checkpoint.flatten(checkpoint.load_arrays(directory))
    verbatim = [name for name, found in released.descriptions.items() if released_folder.is_verbatim(found)]
    descriptions: dict[str, dict[str, Any]] = {part.folder: {}}
    tensors: dict[str, dict[str, ReadableArray]] = {}
    for file in part.files:
        if file.config_key is not None and file.config_key not in config:
            continue
        with reading(directory / checkpoint.CONFIG, "the config of a part"):
            check_sizes(config)
            rows, shapes = file.table(config)
        names = list(released.descriptions) if file.name is None else [file.find_name(released.descriptions, folder)]
        absent = [name for name in names if name not in released.descriptions] or sorted(shapes.keys() - arrays.keys())
        if absent:
            raise ConversionError(f"{directory}: {', '.join(absent)} missing")
        kept = {key: tensor for name in names for key, tensor in released.unused[name].items()}
        keys = {name: released_folder.state_keys(released.descriptions[name]) for name in names}
        ordered = [key for name in names for key in keys[name]]
        differ = [path for path, shape in shapes.items() if tuple(arrays[path].shape) != tuple(shape)]
        if differ:
            raise ConversionError(f"{directory}: the shape of {', '.join(differ)} is not that of its config")
        state = to_torch(rows, {path: arrays[path] for path in shapes}, kept, ordered)
        released_folder.check_keys(folder, ordered, state)
        for name in names:
            tensors[name] = {key: state[key] for key in keys[name]}
            if name in verbatim:
                _check_unchanged(file, folder, tensors[name])
            else:
                descriptions.setdefault(file.folder or part.folder, {})[name] = released.descriptions[name]
    files = {part.folder: released.files + [folder / name for name in verbatim]}
    return ExportedPart(descriptions, files, tensors)


def _check_unchanged(file: WeightFile, folder: pathlib.Path, tensors: Mapping[str, ReadableArray]) -> None:
    """Check that a weight file that is exported verbatim still holds the values of the part's arrays."""
    (opened,), _ = open_weight_file(file, folder)
    different = [key for key in tensors if key not in opened.state or not same_bits(opened.state[key], tensors[key])]
    if different:
        raise ConversionError(
            f"{opened.path}: {', '.join(different)} is not what the part's arrays hold: changed since the import"
        )
