"""Gives a part that was trained here the folder `released/`, from which `export` writes the released files.

An imported part keeps what its released files held beside the weights. A trained part has no such files: their configs
follow from its own config.json.
"""

import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from spirit_jax import checkpoint
from spirit_jax.convert import released_folder
from spirit_jax.convert.components import hifigan, style, vqvae
from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.formats import hf_weights
from spirit_jax.convert.parts import RELEASED_PARTS, ReleasedPart
from spirit_jax.convert.released_folder import ReleasedFolder
from spirit_jax.convert.table import to_torch
from spirit_jax.core.checksums import write_checksums
from spirit_jax.core.files import atomic_directory, read_json, write_file

_HUGGING_FACE_FILE = "model.safetensors"


def _json(content: Any) -> str:
    return json.dumps(content, indent=1) + "\n"


def _vocoder_files(config: Mapping[str, Any]) -> dict[str, str]:
    names = {f"{name}.txt": config.get(name, ()) for name in ("speakers", "styles")}
    lists = {file: "".join(f"{line}\n" for line in lines) for file, lines in names.items() if lines}
    return {"config.json": _json(hifigan.released_config(config)), **lists}


_CONFIG_FILES: dict[str, Callable[[Mapping[str, Any]], dict[str, str]]] = {
    "hifigan": _vocoder_files,
    "vqvae": lambda config: {"config.yaml": yaml.safe_dump(vqvae.released_config(config), sort_keys=False)},
    "wav2vec2": lambda config: {"config.json": _json(style.released_config(config))},
}
"""The small released files of each kind of part, from its config.json."""


def describe_trained_part(name: str, directory: pathlib.Path) -> None:
    """Write `released/` into a part's directory, in the place of one that is there, and seal the directory again.

    Args:
        name: of the part, such as `vocoder_base`.
        directory: holds its config.json and arrays.

    Raises:
        ConversionError: a part that no released file describes.
    """
    (part,) = [part for part in RELEASED_PARTS if part.name == name] or [None]
    config = read_json(directory / checkpoint.CONFIG, ConversionError)
    if part is None or config.get("kind") not in _CONFIG_FILES:
        raise ConversionError(f"{directory}: a part of kind {config.get('kind')!r} has no released form")
    folder = directory / released_folder.FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    arrays = checkpoint.flatten(checkpoint.load_arrays(directory))
    ReleasedFolder([], _descriptions(part, config, arrays), {}).save(directory)
    for file, text in _CONFIG_FILES[config["kind"]](config).items():
        write_file(folder / file, text)
    write_checksums(directory)


def _descriptions(part: ReleasedPart, config: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """What `released_folder.describe` says of each weight file."""
    descriptions = {}
    for file in part.files:
        if file.config_key is not None and file.config_key not in config:
            continue
        rows, shapes = file.table(config)
        state = to_torch(rows, {path: arrays[path] for path in shapes})
        content: Any = state
        for key in reversed(file.state_keys):
            content = {key: content}
        descriptions[file.name or _HUGGING_FACE_FILE] = released_folder.describe(content, state)
    return descriptions


def write_classifier(config: Mapping[str, Any], arrays: Mapping[str, Any], directory: pathlib.Path) -> None:
    """Write a classifier as a Hugging Face `Wav2Vec2ForSequenceClassification`, in the place of one that is there.

    Args:
        config: as of a style part, with the `labels`.
        arrays: its parameters.
        directory: where it goes.
    """
    flat = checkpoint.flatten(dict(arrays))
    tensors = to_torch(style.rows(config), {path: flat[path] for path in style.shapes(config)})
    with atomic_directory(directory, overwrite=True) as scratch:
        hf_weights.save_weights(scratch, tensors, {_HUGGING_FACE_FILE: list(tensors)})
        write_file(scratch / "config.json", _json(style.released_config(config)))
