"""The parts of the speech tokenizer: which released files each is made of, and where their tensors go.

A part of ours, `speech_tokenizer/<name>/`, is `config.json` (`kind` and the network's sizes), `params.safetensors` (our paths) and
`released/` (`released.py`).
"""

import importlib.util
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from spirit_jax import checkpoint
from spirit_jax.convert import released
from spirit_jax.convert.components import fcpe, hifigan, hubert, style, vqvae
from spirit_jax.convert.formats import hf_weights
from spirit_jax.convert.formats.files import ConversionError, counted, nbytes
from spirit_jax.convert.formats.numpy_pickle import CENTERS, is_torch_file, load_centers
from spirit_jax.convert.formats.torch_file import load_torch, save_torch
from spirit_jax.convert.table import Rows, same_bits, to_ours, to_theirs
from spirit_jax.core.files import read_json

Table = tuple[Rows, Mapping[str, tuple[int, ...]]]
HUGGING_FACE = ""  # in the place of a file name: whichever of Hugging Face's is there
LAYER = "--layer"  # among the contents: what the command line says of a k-means quantizer whose name does not

_FCPE_FOLDER, FCPE_FILE = "fcpe", "fcpe_c_v001.pt"


@dataclass(frozen=True)
class WeightFile:
    """A released weight file: its name, the keys that lead to its state dict, and the table out of the part's config."""

    name: str
    state: tuple[str, ...]
    table: Callable[[Mapping[str, Any]], Table]
    folder: str | None = None  # where it is not the part's
    key: str | None = None  # of the part's config: without it the part does not have this file
    like: str | None = None  # what it may be called elsewhere, a regular expression

    def called(self, names: Iterable[str], where: pathlib.Path) -> str:
        """Which of the names is this file's: its own, or else the only one that is `like` it."""
        names = list(names)
        if self.name in names or self.like is None:
            return self.name
        found = sorted(name for name in names if re.fullmatch(self.like, name, re.IGNORECASE))
        if len(found) > 1:
            raise ConversionError(f"{where}: {' or '.join(found)}? Leave only the one that is meant there")
        return found[0] if found else self.name


@dataclass(frozen=True)
class Part:
    """Our name of the part, its released folder and files, and its config out of {file: content without tensors}.

    `extra` names a further file that a config refers to: it is among the contents if it is there.
    """

    name: str
    folder: str
    files: tuple[WeightFile, ...]
    config: Callable[[Mapping[str, Any]], dict[str, Any]]
    extra: Callable[[Mapping[str, Any]], str | None] = lambda _: None


def _under(prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}{path}": shape for path, shape in shapes.items()}


def _only(prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {path: shape for path, shape in shapes.items() if path.startswith(prefix)}


HUBERT_FILE, QUANTIZER_FILE = "mhubert_base_25hz.pt", "L11_quantizer_500.pt"
# What TWIST, GSLM and textless-lib call theirs: mhubert_base_25hz_cp_mls_cv_sp_fisher_L11_km500.bin, km.bin, ...
_KMEANS = r"(.*[-_.])?(km\d*|kmeans|quantizer|centroids|centers)([-_.].*)?\.(bin|pt|pkl|joblib|npy)"
_ENCODER = rf"(?!{_KMEANS}$)(?!.*(hifigan|generator)).*\.pt"


def _hubert_config(files: Mapping[str, Any]) -> dict[str, Any]:
    encoder, quantizer = files[HUBERT_FILE], files[QUANTIZER_FILE]
    configs = encoder["model_cfg"], encoder["task_cfg"]
    if CENTERS not in quantizer:
        return hubert.part_config(*configs, quantizer["model_cfg"])
    return hubert.part_config(*configs, None, quantizer[CENTERS].shape, files[LAYER] or quantizer["layer"])


def _pitch_config(files: Mapping[str, Any]) -> dict[str, Any]:
    config = vqvae.part_config(files["config.yaml"], files.get(_speaker_stats(files) or ""))
    if FCPE_FILE in files:
        config["fcpe"] = fcpe.part_config(files[FCPE_FILE]["config_dict"])
    return config


def _speaker_stats(files: Mapping[str, Any]) -> str | None:
    """The file of the speakers' statistics, wherever it was when the model was trained: looked for beside config.yaml only."""
    found = files["config.yaml"].get("speaker_stats")
    return pathlib.PurePosixPath(found).name or None if isinstance(found, str) else None


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
                HUBERT_FILE,
                ("model_weight",),
                lambda c: (hubert.rows(c), _only("encoder/", hubert.shapes(c))),
                like=_ENCODER,
            ),
            WeightFile(
                QUANTIZER_FILE,
                ("model_weight",),
                lambda c: (hubert.quantizer_rows(c), _only("quantizer/", hubert.shapes(c))),
                like=_KMEANS,
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
                FCPE_FILE,
                ("model",),
                lambda c: (fcpe.rows(c["fcpe"], "fcpe/"), _under("fcpe/", fcpe.shapes(c["fcpe"]))),
                folder=_FCPE_FOLDER,
                key="fcpe",
            ),
        ),
        _pitch_config,
        _speaker_stats,
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
    """A released part, checked and mapped but not yet read. `tensors` and `unused` are the released ones, by FILE:KEY.

    `contents` is what its files hold, under their released names.
    """

    config: dict[str, Any]
    arrays: dict[str, Any]
    unused: dict[str, Any]
    descriptions: dict[str, Any]
    files: list[pathlib.Path]
    notes: list[str]
    tensors: dict[str, Any]
    contents: dict[str, Any]

    @property
    def nbytes(self) -> int:
        return sum(nbytes(array) for array in self.arrays.values())

    def write(self, directory: pathlib.Path, progress: Callable[[int], Any]) -> None:
        """Writes the part of ours into an empty directory."""
        (directory / checkpoint.CONFIG).write_text(json.dumps(self.config, indent=1) + "\n")
        arrays = {path: counted(array, progress) for path, array in self.arrays.items()}
        checkpoint.save_arrays(directory, checkpoint.unflatten(arrays))
        released.save(directory, self.files, self.descriptions, self.unused)


def read_released(part: Part, folder: pathlib.Path, layer: int | None = None) -> Imported:
    """Reads a released part, `folder` being its own folder. `layer`: whose output k-means centroids are of, if their name does not say."""
    contents: dict[str, Any] = {LAYER: layer}
    states: dict[str, tuple[WeightFile, pathlib.Path, dict[str, Any]]] = {}
    descriptions: dict[str, Any] = {}
    notes: list[str] = []
    whole: list[pathlib.Path] = []
    for file in part.files:
        for path, content, state in _open(file, folder, notes):
            contents[file.name or path.name] = content
            states[path.name] = (file, path, state)
            if CENTERS in state:
                whole.append(path)
                descriptions[path.name] = released.whole(state)
            else:
                descriptions[path.name] = released.describe(content, state)
    files, left = released.carried(folder, but=states)
    for path in files:
        if (content := _read_config(path)) is not None:
            contents[path.name] = content
    try:
        extra = part.extra(contents)
        if extra is not None and extra not in contents:
            if (folder / extra).is_file():
                contents[extra] = load_torch(folder / extra)
                whole.append(folder / extra)
                descriptions[extra] = released.whole({})
                left = [note for note in left if not note.startswith(f"{folder / extra} ")]
            else:
                notes.append(f"{folder / extra} is not there, though the config names it: done without")
        config = part.config(contents)
        contents[LAYER] = config.get("layer")
    except (KeyError, TypeError, AttributeError) as error:
        raise ConversionError(f"{folder}: the config of the part lacks {error}") from error
    except ConversionError as error:
        raise ConversionError(f"{folder}: {error}") from error
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
    return Imported(config, arrays, unused, descriptions, files + whole, notes + left, tensors, contents)


def _read_config(path: pathlib.Path) -> Any:
    """The content of a small file that a part's config may come from, None for other files."""
    try:
        if path.suffix == ".json":
            return read_json(path, ConversionError)
        if path.suffix in (".yaml", ".yml"):
            return yaml.safe_load(path.read_bytes())
        if path.suffix == ".txt":
            return path.read_text().splitlines()
    except yaml.YAMLError as error:
        raise ConversionError(f"{path}: {' '.join(str(error).split())}") from error
    return None


def _open(file: WeightFile, folder: pathlib.Path, notes: list[str]) -> list[tuple[pathlib.Path, Any, dict[str, Any]]]:
    """(path, content, state dict) of a weight file, or of each shard."""
    if file.name == HUGGING_FACE:
        tensors, shards = hf_weights.load_weights(folder)
        states = [(folder / name, {key: tensors[key] for key in keys}) for name, keys in shards.items()]
        return [(path, state, state) for path, state in states]
    folder = folder.parent / file.folder if file.folder else folder
    names = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    path = folder / file.called(names, folder)
    if file.folder == _FCPE_FOLDER and not path.is_file():
        path = _installed_fcpe()
        if path is None:
            notes.append(
                "torchfcpe is not installed: the pitch part will have no FCPE (pip install --no-deps torchfcpe)"
            )
            return []
    if not path.is_file():
        raise ConversionError(f"{path}: missing")
    content = _from_fairseq(load_torch(path), path, notes) if is_torch_file(path) else load_centers(path)
    if hasattr(content, "shape"):  # nothing but a matrix: k-means centroids
        layer = re.search(r"(?:^|[-_.])L(\d+)(?=[-_.])", path.name)
        content = {CENTERS: content, "layer": int(layer[1]) if layer else None}
        return [(path, content, {CENTERS: content[CENTERS]})]
    state = content
    for key in file.state:
        state = state.get(key) if isinstance(state, dict) else None
    if not isinstance(state, dict):
        raise ConversionError(f"{path}: no {'.'.join(file.state)} in it, only {', '.join(map(str, content))}")
    return [(path, content, state)]


def _installed_fcpe() -> pathlib.Path | None:
    """The weights inside the installed torchfcpe package, which is found but not imported (it needs torch)."""
    package = importlib.util.find_spec("torchfcpe")
    path = pathlib.Path(package.origin).parent / "assets" / FCPE_FILE if package and package.origin else None
    return path if path and path.is_file() else None


def _from_fairseq(content: Any, path: pathlib.Path, notes: list[str]) -> Any:
    """A checkpoint as fairseq's trainer saves it, in the released layout: its model, the two configs and the dictionaries."""
    if not isinstance(content, dict) or not {"cfg", "model"} <= content.keys() or not isinstance(content["cfg"], dict):
        return content
    left = sorted(content.keys() - {"cfg", "model", "task_state"})
    notes.append(f"{path} is fairseq's: exported in the released layout, without {', '.join(left) or 'anything else'}")
    dictionaries = (content.get("task_state") or {}).get("dictionaries", [])
    return {
        "task_cfg": content["cfg"]["task"],
        "model_cfg": content["cfg"]["model"],
        "model_weight": content["model"],
        "dictionaries_symbols": [dictionary.attributes.get("symbols", []) for dictionary in dictionaries],
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
    config = read_json(directory / checkpoint.CONFIG, ConversionError)
    arrays = checkpoint.flatten(checkpoint.load_arrays(directory))
    folders: dict[str, tuple[dict[str, Any], list[pathlib.Path]]] = {part.folder: ({}, files)}
    tensors: dict[str, dict[str, Any]] = {}
    for file in part.files:
        if file.key is not None and file.key not in config:
            continue
        rows, shapes = file.table(config)
        own = [file.called(descriptions, directory / released.FOLDER)]
        names = own if file.name != HUGGING_FACE else list(descriptions)
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
            if released.is_whole(descriptions[name]):
                _check_whole(file, directory / released.FOLDER, tensors[name])
            else:
                target[0][name] = descriptions[name]
    files += [directory / released.FOLDER / name for name, found in descriptions.items() if released.is_whole(found)]
    return Exported(folders, tensors)


def _check_whole(file: WeightFile, folder: pathlib.Path, tensors: Mapping[str, Any]) -> None:
    """A file that is exported as it came must still say what our arrays do."""
    ((path, _, state),) = _open(file, folder, [])
    different = [key for key in tensors if key not in state or not same_bits(state[key], tensors[key])]
    if different:
        raise ConversionError(
            f"{path}: {', '.join(different)} is not what the part's arrays hold: changed since the import"
        )
