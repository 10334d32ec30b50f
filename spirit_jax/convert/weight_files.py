"""Weight files of the released speech tokenizer: the names that they may have, and where their tensors are."""

import importlib.util
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spirit_jax.convert.errors import ConversionError, reading
from spirit_jax.convert.formats import hf_weights
from spirit_jax.convert.formats.numpy_pickle import CENTERS, is_torch_file, load_centers
from spirit_jax.convert.formats.torch_file import load_torch
from spirit_jax.convert.table import Rows, Shapes
from spirit_jax.core.files import shown

FCPE_FILE = "fcpe_c_v001.pt"
"""The pitch extractor's weights. The torchfcpe package holds them too."""


@dataclass(frozen=True)
class WeightFile:
    """A weight file of a released part."""

    name: str | None
    """Released name; None for the weights of a Hugging Face directory, whatever their format, or for a state dict that
    is the only .pt file of a folder without a config."""
    table: Callable[[Mapping[str, Any]], tuple[Rows, Shapes]]
    """Mapping table and JAX shapes, from the part's config."""
    state_keys: tuple[str, ...] = ()
    """The keys that lead to the dict of tensors inside the file."""
    folder: str | None = None
    """Released folder, if it is not the part's own."""
    config_key: str | None = None
    """Key of the part's config without which the part lacks this file."""
    pattern: str | None = None
    """Regular expression of other names that the file may have."""

    def find_name(self, names: Iterable[str], where: pathlib.Path) -> str:
        """The name of this file among `names`: the released name, or else the only one that matches the pattern.

        Raises:
            ConversionError: several names match the pattern.
        """
        assert self.name is not None, "Hugging Face directories name their own weights"
        names = list(names)
        if self.name in names or self.pattern is None:
            return self.name
        found = sorted(name for name in names if re.fullmatch(self.pattern, name, re.IGNORECASE))
        if len(found) > 1:
            raise ConversionError(f"{where}: {' or '.join(found)}? Leave only the one that belongs to the part there")
        return found[0] if found else self.name


@dataclass(frozen=True)
class OpenedFile:
    """A weight file whose tensors are read when they are used."""

    path: pathlib.Path
    content: Any
    """Nested containers with tensors."""
    state: dict[str, np.ndarray]
    """The dict of tensors inside the content."""


def open_weight_file(
    file: WeightFile, folder: pathlib.Path, layer: int | None = None
) -> tuple[list[OpenedFile], list[str]]:
    """Open a weight file, or each shard of it, in the released folder of its part.

    Args:
        layer: the layer of HuBERT that k-means centroids quantize; None to read it from the file name.

    Returns:
        The opened files, none if the file is optional and missing, and notes for the user.

    Raises:
        ConversionError: a file that is missing or damaged, or in which the tensors are not where they should be.
    """
    if file.name is None:
        alone = [path for path in sorted(folder.glob("*.pt")) if not (folder / "config.json").exists()]
        if len(alone) == 1:
            return [_state_dict(alone[0])], []
        tensors, shards = hf_weights.load_weights(folder)
        states = {name: {key: tensors[key] for key in keys} for name, keys in shards.items()}
        return [OpenedFile(folder / name, state, state) for name, state in states.items()], []
    folder = folder.parent / file.folder if file.folder else folder
    names = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    path = folder / file.find_name(names, folder)
    if not path.is_file() and file.name == FCPE_FILE:
        installed = installed_fcpe()
        if installed is None:
            return [], [
                "torchfcpe is not installed: the pitch part will have no FCPE (pip install --no-deps torchfcpe)"
            ]
        path = installed
    if not path.is_file():
        raise ConversionError(f"{path}: missing")
    content, notes = from_fairseq(load_torch(path), path) if is_torch_file(path) else (load_centers(path), [])
    if isinstance(content, np.ndarray):  # a matrix alone is k-means centroids
        in_name = re.search(r"(?:^|[-_.])L(\d+)(?=[-_.])", path.name)
        state = {CENTERS: content}
        return [OpenedFile(path, {**state, "layer": layer or (int(in_name[1]) if in_name else None)}, state)], notes
    state = content
    for key in file.state_keys:
        state = state.get(key) if isinstance(state, dict) else None
    if not isinstance(state, dict):
        raise ConversionError(f"{path}: no {'.'.join(file.state_keys)} in it, only {shown(list(content))}")
    return [OpenedFile(path, content, state)], notes


def _state_dict(path: pathlib.Path) -> OpenedFile:
    """A PyTorch file that holds names and tensors and nothing else.

    Raises:
        ConversionError: it holds something else.
    """
    content = load_torch(path)
    if not isinstance(content, dict) or not all(isinstance(tensor, np.ndarray) for tensor in content.values()):
        raise ConversionError(f"{path}: a state dict (names and tensors) expected")
    return OpenedFile(path, content, content)


def installed_fcpe() -> pathlib.Path | None:
    """The weights inside the installed torchfcpe package, which is found but not imported, because it needs torch."""
    package = importlib.util.find_spec("torchfcpe")
    path = pathlib.Path(package.origin).parent / "assets" / FCPE_FILE if package and package.origin else None
    return path if path and path.is_file() else None


def from_fairseq(content: Any, path: pathlib.Path) -> tuple[Any, list[str]]:
    """Bring a checkpoint of fairseq's trainer into the released layout: model, two configs and dictionaries.

    Returns:
        The content, unchanged if it is not a checkpoint of that trainer, and notes for the user.
    """
    if not isinstance(content, dict) or not {"cfg", "model"} <= content.keys() or not isinstance(content["cfg"], dict):
        return content, []
    dropped = sorted(map(str, content.keys() - {"cfg", "model", "task_state"}))
    note = f"{path} is fairseq's: exported in the released layout, without {', '.join(dropped) or 'anything else'}"
    with reading(path, "a checkpoint of fairseq's trainer"):
        dictionaries = (content.get("task_state") or {}).get("dictionaries", [])
        released = {
            "task_cfg": content["cfg"]["task"],
            "model_cfg": content["cfg"]["model"],
            "model_weight": content["model"],
            "dictionaries_symbols": [dictionary.attributes.get("symbols", []) for dictionary in dictionaries],
        }
    return released, [note]
