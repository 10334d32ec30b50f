"""The parts of the speech tokenizer: which released files each is made of, and where their tensors go.

A part of ours, `speech_tokenizer/<name>/`, is `config.json` (`kind` and the network's sizes), `params.safetensors` (our paths) and
`released/` (`released.py`).
"""

import importlib.util
import json
import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from spirit_jax import checkpoint
from spirit_jax.convert import fcpe, hf_weights, hifigan, hubert, released, style, vqvae
from spirit_jax.convert.files import ConversionError, counted, nbytes, read_json
from spirit_jax.convert.table import Rows, to_ours, to_theirs
from spirit_jax.convert.torch_file import load_torch, save_torch

Table = tuple[Rows, Mapping[str, tuple[int, ...]]]
HUGGING_FACE = ""  # in the place of a file name: whichever of Hugging Face's is there

_FCPE_FOLDER, _FCPE_FILE = "fcpe", "fcpe_c_v001.pt"


@dataclass(frozen=True)
class WeightFile:
    """A released weight file: its name, the keys that lead to its state dict, and the table out of the part's config."""

    name: str
    state: tuple[str, ...]
    table: Callable[[Mapping[str, Any]], Table]
    folder: str | None = None  # where it is not the part's
    key: str | None = None  # of the part's config: without it the part does not have this file


@dataclass(frozen=True)
class Part:
    """Our name of the part, its released folder and files, and its config out of {file: content without tensors}."""

    name: str
    folder: str
    files: tuple[WeightFile, ...]
    config: Callable[[Mapping[str, Any]], dict[str, Any]]


def _under(prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}{path}": shape for path, shape in shapes.items()}


def _only(prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {path: shape for path, shape in shapes.items() if path.startswith(prefix)}


def _hubert_config(files: Mapping[str, Any]) -> dict[str, Any]:
    encoder, quantizer = files["mhubert_base_25hz.pt"], files["L11_quantizer_500.pt"]
    return hubert.part_config(encoder["model_cfg"], encoder["task_cfg"], quantizer["model_cfg"])


def _pitch_config(files: Mapping[str, Any]) -> dict[str, Any]:
    config = vqvae.part_config(files["config.yaml"])
    if _FCPE_FILE in files:
        config["fcpe"] = fcpe.part_config(files[_FCPE_FILE]["config_dict"])
    return config


def _hifigan(name: str, folder: str) -> Part:
    generator = WeightFile("generator.pt", ("generator",), lambda c: (hifigan.rows(c), hifigan.shapes(c)))

    def config(files: dict[str, Any]) -> dict[str, Any]:
        return hifigan.part_config(files["config.json"], files.get("speakers.txt", ()), files.get("styles.txt", ()))

    return Part(name, folder, (generator,), config)


PARTS = (
    Part(
        "phonetic",
        "hubert_25hz",
        (
            WeightFile(
                "mhubert_base_25hz.pt",
                ("model_weight",),
                lambda c: (hubert.rows(c), _only("encoder/", hubert.shapes(c))),
            ),
            WeightFile(
                "L11_quantizer_500.pt",
                ("model_weight",),
                lambda c: (hubert.quantizer_rows(), _only("quantizer/", hubert.shapes(c))),
            ),
        ),
        _hubert_config,
    ),
    Part(
        "pitch",
        "vqvae_f0_quantizer",
        (
            WeightFile(
                "model.pt",
                ("model",),
                lambda c: (vqvae.rows(c["vqvae"], "vqvae/"), _under("vqvae/", vqvae.shapes(c["vqvae"]))),
            ),
            WeightFile(
                _FCPE_FILE,
                ("model",),
                lambda c: (fcpe.rows(c["fcpe"], "fcpe/"), _under("fcpe/", fcpe.shapes(c["fcpe"]))),
                folder=_FCPE_FOLDER,
                key="fcpe",
            ),
        ),
        _pitch_config,
    ),
    Part(
        "style",
        "style_encoder_w2v2",
        (WeightFile(HUGGING_FACE, (), lambda c: (style.rows(c), style.shapes(c))),),
        lambda files: style.part_config(files["config.json"]),
    ),
    _hifigan("vocoder_base", "hifigan_spiritlm_base"),
    _hifigan("vocoder_expressive", "hifigan_spiritlm_expressive_w2v2"),
)


@dataclass(frozen=True)
class Imported:
    """A released part, checked and mapped but not yet read. `tensors` and `unused` are the released ones, by FILE:KEY."""

    config: dict[str, Any]
    arrays: dict[str, Any]
    unused: dict[str, Any]
    descriptions: dict[str, Any]
    files: list[pathlib.Path]
    notes: list[str]
    tensors: dict[str, Any]

    @property
    def nbytes(self) -> int:
        return sum(nbytes(array) for array in self.arrays.values())

    def write(self, directory: pathlib.Path, progress: Callable[[int], Any]) -> None:
        """Writes the part of ours into an empty directory."""
        (directory / checkpoint.CONFIG).write_text(json.dumps(self.config, indent=1) + "\n")
        arrays = {path: counted(array, progress) for path, array in self.arrays.items()}
        checkpoint.save_arrays(directory, checkpoint.unflatten(arrays))
        released.save(directory, self.files, self.descriptions, self.unused)


def read_released(part: Part, folder: pathlib.Path) -> Imported:
    """Reads a released part, `folder` being its own folder."""
    contents: dict[str, Any] = {}
    states: dict[str, tuple[WeightFile, pathlib.Path, dict[str, Any]]] = {}
    descriptions: dict[str, Any] = {}
    notes: list[str] = []
    for file in part.files:
        for path, content, state in _open(file, folder, notes):
            contents[path.name] = content
            descriptions[path.name] = released.describe(content, state)
            states[path.name] = (file, path, state)
    files, left = released.carried(folder, but=states)
    notes += left
    for path in files:
        try:
            if path.suffix == ".json":
                contents[path.name] = read_json(path)
            elif path.suffix in (".yaml", ".yml"):
                contents[path.name] = yaml.safe_load(path.read_bytes())
            elif path.suffix == ".txt":
                contents[path.name] = path.read_text().splitlines()
        except yaml.YAMLError as error:
            raise ConversionError(f"{path}: {' '.join(str(error).split())}") from error
    try:
        config = part.config(contents)
    except (KeyError, TypeError) as error:
        raise ConversionError(f"{folder}: the config of the part lacks {error}") from error
    arrays: dict[str, Any] = {}
    unused: dict[str, Any] = {}
    for file in part.files:
        mine = {name: state for name, (owner, _, state) in states.items() if owner is file}
        if not mine:
            continue
        rows, shapes = file.table(config)
        merged = {key: tensor for state in mine.values() for key, tensor in state.items()}
        found, kept = to_ours(rows, merged, shapes, " + ".join(str(states[name][1]) for name in mine))
        arrays |= found
        for name, state in mine.items():
            unused |= {f"{name}:{key}": kept[key] for key in state if key in kept}
    tensors = {f"{name}:{key}": tensor for name, (_, _, state) in states.items() for key, tensor in state.items()}
    return Imported(config, arrays, unused, descriptions, files, notes, tensors)


def _open(file: WeightFile, folder: pathlib.Path, notes: list[str]) -> list[tuple[pathlib.Path, Any, dict[str, Any]]]:
    """(path, content, state dict) of a weight file, or of each shard."""
    if file.name == HUGGING_FACE:
        tensors, shards = hf_weights.load_weights(folder)
        states = [(folder / name, {key: tensors[key] for key in keys}) for name, keys in shards.items()]
        return [(path, state, state) for path, state in states]
    path = (folder.parent / file.folder if file.folder else folder) / file.name
    if file.folder == _FCPE_FOLDER and not path.is_file():
        path = _installed_fcpe()
        if path is None:
            notes.append(
                "torchfcpe is not installed: the pitch part will have no FCPE (pip install --no-deps torchfcpe)"
            )
            return []
    if not path.is_file():
        raise ConversionError(f"{path}: missing")
    content = _from_fairseq(load_torch(path))
    state = content
    for key in file.state:
        state = state.get(key) if isinstance(state, dict) else None
    if not isinstance(state, dict):
        raise ConversionError(f"{path}: no {'.'.join(file.state)} in it, only {', '.join(content)}")
    return [(path, content, state)]


def _installed_fcpe() -> pathlib.Path | None:
    """The weights inside the installed torchfcpe package, which is found but not imported (it needs torch)."""
    package = importlib.util.find_spec("torchfcpe")
    path = pathlib.Path(package.origin).parent / "assets" / _FCPE_FILE if package and package.origin else None
    return path if path and path.is_file() else None


def _from_fairseq(content: Any) -> Any:
    """A checkpoint as fairseq's trainer saves it, in the released layout: its model and the two configs."""
    if not isinstance(content, dict) or not {"cfg", "model"} <= content.keys() or not isinstance(content["cfg"], dict):
        return content
    return {
        "model_cfg": content["cfg"]["model"],
        "task_cfg": content["cfg"]["task"],
        "model_weight": content["model"],
        "dictionaries_symbols": [],
    }


@dataclass(frozen=True)
class Exported:
    """A part of ours, ready to be written as it was released: {folder: ({file: content}, files to copy)}."""

    folders: dict[str, tuple[dict[str, Any], list[pathlib.Path]]]
    tensors: dict[str, dict[str, Any]]

    @property
    def nbytes(self) -> int:
        return sum(nbytes(tensor) for state in self.tensors.values() for tensor in state.values())

    def write(self, directory: pathlib.Path, progress: Callable[[int], Any]) -> None:
        """Writes the released folders into `directory`."""
        for name, (descriptions, files) in self.folders.items():
            folder = directory / name
            folder.mkdir()
            for path in files:
                (folder / path.name).write_bytes(path.read_bytes())
            for file, description in descriptions.items():
                state = {key: counted(tensor, progress) for key, tensor in self.tensors[file].items()}
                if file.endswith(".safetensors"):
                    hf_weights.save_weights(folder, state, {file: list(state)})
                else:
                    save_torch(folder / file, released.rebuild(description, state))


def read_ours(part: Part, directory: pathlib.Path) -> Exported:
    """Reads a part of ours, `directory` being its own."""
    if not (directory / released.FOLDER).is_dir():
        raise ConversionError(
            f"{directory}: no {released.FOLDER}/ there: the part was not imported from a released checkpoint, so its "
            "released config is unknown"
        )
    files, descriptions, unused = released.load(directory / released.FOLDER)
    config = read_json(directory / checkpoint.CONFIG)
    arrays = checkpoint.flatten(checkpoint.load_arrays(directory))
    folders: dict[str, tuple[dict[str, Any], list[pathlib.Path]]] = {part.folder: ({}, files)}
    tensors: dict[str, dict[str, Any]] = {}
    for file in part.files:
        if file.key is not None and file.key not in config:
            continue
        rows, shapes = file.table(config)
        names = [file.name] if file.name != HUGGING_FACE else list(descriptions)
        missing = [name for name in names if name not in descriptions]
        if missing or not shapes.keys() <= arrays.keys():
            absent = missing or sorted(shapes.keys() - arrays.keys())
            raise ConversionError(f"{directory}: {', '.join(absent)} missing")
        kept = {key: tensor for name in names for key, tensor in unused[name].items()}
        ordered = [key for name in names for key in released.keys(descriptions[name])]
        state = to_theirs(rows, {path: arrays[path] for path in shapes}, kept, ordered)
        for name in names:
            tensors[name] = {key: state[key] for key in released.keys(descriptions[name])}
            target = folders.setdefault(file.folder or part.folder, ({}, []))
            target[0][name] = descriptions[name]
    return Exported(folders, tensors)
