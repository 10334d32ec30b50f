"""The checkpoint directory: `config.json`, `tokenizer/`, `llm/` (Orbax) and the parts under `speech_tokenizer/`.

Converted weights, a training run and every step of it are all such directories (docs/architecture.md). Any part may be
missing, and asking for it raises an error that says so. A step, `RUN/checkpoints/STEP`, holds its own `llm/`; its other
parts are those of `RUN`.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from spirit_jax.core import buckets
from spirit_jax.core.bucket_cache import local_copy
from spirit_jax.core.checksums import CHECKSUMS, check_seal, find_damage, read_checksums, write_checksums
from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import read_json, reading, shown, write_file
from spirit_jax.core.paths import as_path, check_links, local_path

CONFIG = "config.json"
TOKENIZER = "tokenizer"
LLM = "llm"
ADAPTER = "adapter"
"""In the place of `llm/` in the steps of a run that trains an adapter (`spirit_jax.adapters`)."""
PARAMS = "params"
"""In the place of `llm/` in the steps of a run that trains a part of a speech tokenizer."""
SPEECH_TOKENIZER = "speech_tokenizer"
STEPS = "checkpoints"

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
"""Fields of a Llama without which its config could be any network's."""

_OF_A_RUN = ("records/", "tensorboard/", "samples/", "generated/", "damaged/", "faults/", "profile/", ".")
"""Folders of a run that no reader of a checkpoint needs."""

_COMMITTED = "commit_success.txt"
_ORBAX_FILES = ("_CHECKPOINT_METADATA", _COMMITTED)  # beside llm/ or adapter/
_ARRAYS = "params.safetensors"


class CheckpointError(SpiritError):
    """A checkpoint directory, part or array that is missing or not as expected; the message names it."""


def find(directory: str | os.PathLike, part: str) -> pathlib.Path:
    """The path of a part such as `TOKENIZER` or `speech_tokenizer/pitch`. A step that lacks it uses that of its run.

    Raises:
        CheckpointError: no such directory, or no such part in it; the message lists the parts that are there.
        PathError: a symbolic link in the part leads out of the checkpoint or run.
    """
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such checkpoint directory")
    places = [directory]
    if directory.resolve().parent.name == STEPS:
        places.append(directory.resolve().parents[1])
    for place in places:
        if os.path.lexists(place / part):
            check_links(place / part, places[-1])
        if (place / part).exists():
            return place / part
    present = sorted(path.name for path in directory.iterdir() if not path.name.startswith((".", "_")))
    hint = ""
    if part == LLM and (directory / STEPS).is_dir():
        hint = f"; it is a training run: name one of its steps, {directory / STEPS}/STEP"
    elif part == LLM and (directory / ADAPTER).is_dir():
        hint = "; it holds an adapter: name the adapter's base, and this directory as --adapter"
    raise CheckpointError(
        f"{' and '.join(map(str, places))}: no {part} there, only {', '.join(present) or 'nothing'}{hint}"
    )


def local_directory(directory: str | os.PathLike, option: str) -> pathlib.Path:
    """The local path of a checkpoint directory that a user named. One in a bucket is copied to this machine.

    A step brings the parts of its run with it. What only training needs, such as the optimizer, is left where it is.

    Args:
        directory: a path or address, as the user typed it.
        option: names it in messages.

    Raises:
        PathError: not a path.
        BucketError, BucketJobError: it is in a bucket and cannot be read.
    """
    argument = os.fspath(directory).rstrip("/")
    if not buckets.is_bucket(argument):
        return pathlib.Path(local_path(os.fspath(directory), option))
    parent, _, step = argument.rpartition("/")
    run, _, steps = parent.rpartition("/")
    if steps != STEPS:
        return local_copy(argument, lambda name: not name.startswith((*_OF_A_RUN, f"{STEPS}/")))
    own = f"{STEPS}/{step}/"

    def wanted(name: str) -> bool:
        if name.startswith(f"{STEPS}/"):
            return name.startswith(own) and not name.startswith(f"{own}optimizer/")
        return not name.startswith(_OF_A_RUN)

    return local_copy(run, wanted) / STEPS / step


def latest_step(run: str | os.PathLike) -> Any:
    """The path of the newest complete step of a training run, also of one in a bucket; None before the first one."""
    steps = as_path(run) / STEPS
    if not steps.is_dir():
        return None
    complete = (path for path in steps.iterdir() if path.name.isdigit() and _is_complete(path))
    return max(complete, key=lambda path: int(path.name), default=None)


def _is_complete(step: Any) -> bool:
    return is_committed(step) and any((step / name).is_dir() for name in (LLM, ADAPTER, PARAMS))


def is_committed(step: Any) -> bool:
    """Whether the step at a path was completely written.

    Orbax renames a step when it has finished it. Where a bucket cannot rename folders, it writes a file instead. A step
    that was copied there from a disk has no such file, and is complete when it is sealed.
    """
    if buckets.is_bucket(step) and not buckets.is_hierarchical(buckets.split(os.fspath(step))[0]):
        return (step / _COMMITTED).exists() or read_checksums(step) is not None
    return step.is_dir()


def read_config(directory: str | os.PathLike) -> dict[str, Any]:
    """The config of a checkpoint directory.

    Its keys are at least `model`, the Llama's fields with every size among them. `variant` (see `vocabulary.Variant`)
    and `generation`, recommended sampling settings, may be there.

    Raises:
        CheckpointError: there is none, or it is damaged, not JSON, or not the config of a language model.
    """
    path = find(directory, CONFIG)
    check_seal(path.parent, CheckpointError, within=CONFIG)
    config = read_json(path, CheckpointError)
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        found = ", ".join(map(str, config)) if isinstance(config, dict) else f"a {type(config).__name__}"
        raise CheckpointError(
            f"{path}: not the config of a language model: model with the sizes of the network expected, "
            f"found {found[:200] or 'nothing'}"
        )
    absent = [name for name in _SIZES if name not in config["model"]]
    if absent:
        found = shown(", ".join(config["model"]) or "nothing")
        raise CheckpointError(f"{path}: model lacks {', '.join(absent)}, so the network is not known; it holds {found}")
    if config.get("variant") not in (None, "base", "expressive"):
        raise CheckpointError(f"{path}: variant is {shown(config['variant'])}: base or expressive expected")
    if not isinstance(config.get("generation") or {}, dict):
        raise CheckpointError(f"{path}: generation is {shown(config['generation'])}: sampling settings expected")
    return config


def end_ids(*configs: Mapping[str, Any]) -> list[int]:
    """The ids at which answers end by the first of Hugging Face's configs that names some, as a number or a list."""
    for config in configs:
        named = config.get("eos_token_id")
        ids = [index for index in (named if isinstance(named, list) else [named]) if type(index) is int]
        if ids:
            return ids
    return []


def write_config(directory: str | os.PathLike, config: Mapping[str, Any]) -> None:
    """Write the config of a run and its checksum. A run that is killed in between has a config without a checksum."""
    directory = pathlib.Path(directory)
    (directory / CHECKSUMS).unlink(missing_ok=True)
    write_file(directory / CONFIG, json.dumps(config, indent=1))
    write_checksums(directory, names=[CONFIG])


def load_llm(directory: str | os.PathLike, abstract_params: Any) -> Any:
    """Load the language model's parameters directly into their shards.

    Args:
        directory: a step or a converted checkpoint.
        abstract_params: a tree of `jax.ShapeDtypeStruct`, each with a sharding.

    Raises:
        CheckpointError: no `llm/` there, a file of it is not as a training run wrote it, or its tree or a shape differs
            from `abstract_params`; names the first difference.
    """
    from orbax.checkpoint import v1 as ocp

    directory = _checked_llm(directory, abstract_params)
    with _reading(directory):
        return ocp.load(str(directory), abstract_params, checkpointable_name=LLM)


def open_llm(directory: str | os.PathLike, abstract_params: Any) -> Any:
    """Open the language model's parameters as a tree of `StoredArray`, with the arguments and errors of `load_llm`."""
    directory = _checked_llm(directory, abstract_params)
    return unflatten(open_arrays(directory, flatten(abstract_params)))


def intact_llm(directory: str | os.PathLike) -> pathlib.Path:
    """The directory that holds `llm/`, an absolute path, after `check_arrays`.

    Raises:
        CheckpointError: no `llm/` there, or a file of it is not as it was written.
    """
    directory = find(directory, LLM).resolve().parent  # Orbax takes absolute paths only
    check_arrays(directory, LLM)
    return directory


def check_arrays(directory: pathlib.Path, part: str, error: type[SpiritError] = CheckpointError) -> None:
    """Check the files of `llm/` or `adapter/` in a directory against their checksums, if it has any.

    The processes of a job share the work.

    Raises:
        error: a file is not as it was written.
    """
    import jax

    if read_checksums(directory) is not None:
        problem = find_damage(directory, jax.process_index(), jax.process_count(), within=(part, *_ORBAX_FILES))
        if problem:
            raise error(f"{problem}; choose another step, or make it again")


def stored_tree(directory: pathlib.Path) -> dict[str, Any]:
    """The tree of `StoredArray` in `llm/`. Orbax lists the names, which are checked here because Orbax trusts them.

    Raises:
        CheckpointError: the metadata of Orbax are missing or damaged, or an array is missing.
    """
    llm = directory / LLM
    try:
        found = read_json(llm / "_METADATA", CheckpointError)
    except CheckpointError as error:
        raise _unreadable(llm, error) from error
    entries = found.get("tree_metadata") if isinstance(found, dict) else None
    paths = []
    for entry in entries.values() if isinstance(entries, dict) and entries else [None]:
        keys = entry.get("key_metadata") if isinstance(entry, dict) else None
        listed = [key.get("key") if isinstance(key, dict) else None for key in (keys if isinstance(keys, list) else ())]
        names = [name for name in listed if isinstance(name, str)]
        if not names or len(names) != len(listed):
            raise _unreadable(llm, f"{shown(entry)} in _METADATA does not name an array")
        paths.append("/".join(names))
    with _reading(directory):
        return unflatten(open_arrays(directory, paths))


def _unreadable(llm: pathlib.Path, reason: object) -> CheckpointError:
    return CheckpointError(f"{llm}: cannot be read ({reason}); it is damaged or not complete")


@contextlib.contextmanager
def _reading(directory: pathlib.Path) -> Iterator[None]:
    """Make the errors of Orbax and TensorStore, which have no common base, name the checkpoint in a line."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise _unreadable(directory / LLM, f"{type(error).__name__}: {shown(error)}") from error


def _checked_llm(directory: str | os.PathLike, abstract_params: Any) -> pathlib.Path:
    """The directory that holds `llm/`, after a check that its files are intact and hold this tree."""
    directory = intact_llm(directory)
    _check_trees(f"{directory}/{LLM}", stored_tree(directory), abstract_params)
    return directory


class StoredArray:
    """An array of a checkpoint's `llm/`; `array[index]` reads a slice of it."""

    def __init__(self, directory: pathlib.Path, store: Any):
        self._directory, self._store = directory, store
        self.shape: tuple[int, ...] = tuple(store.shape)
        self.dtype = np.dtype(store.dtype.numpy_dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        with _reading(self._directory):
            return self._store[index].read().result()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[...], dtype)


def open_arrays(directory: pathlib.Path, paths: Iterable[str]) -> dict[str, StoredArray]:
    """Open arrays of the `llm/` in a directory by their paths, without any check.

    Stacked layers are stored in one chunk for each layer (`convert.formats.orbax_file`, `training.checkpoints`), so
    that reading a layer reads no other.
    """
    import tensorstore

    ocdbt = (directory / LLM / "manifest.ocdbt").is_file()
    with _reading(directory):
        stores = {
            path: tensorstore.open(array_spec(directory, path, "auto", ocdbt), open=True, read=True) for path in paths
        }
        return {path: StoredArray(directory, store.result()) for path, store in stores.items()}


def array_spec(directory: pathlib.Path, path: str, driver: str, ocdbt: bool = True) -> dict[str, Any]:
    """The TensorStore specification of an array of `llm/`. Orbax names an array by its path joined by ".".

    Args:
        path: the array's path, joined by "/".
        driver: TensorStore's driver of the array, such as "zarr3"; "auto" to detect it.
        ocdbt: whether the arrays lie in TensorStore's OCDBT database, or in a directory each.
    """
    # A URL would give "#", "%" and "?" in the path a meaning.
    files, name = f"{(directory / LLM).resolve()}/", path.replace("/", ".") + "/"
    if ocdbt:
        store = {"driver": "ocdbt", "base": {"driver": "file", "path": files}, "path": name}
    else:
        store = {"driver": "file", "path": files + name}
    return {"driver": driver, "kvstore": store}


def _check_trees(name: str, stored: Any, wanted: Any) -> None:
    """Check that both trees have the same paths and shapes."""
    stored, wanted = flatten(stored), flatten(wanted)
    for path in sorted(stored.keys() ^ wanted.keys()):
        found = "is missing" if path in wanted else "is there and not expected"
        raise CheckpointError(f"{name}: array {path} {found}")
    for path, leaf in wanted.items():
        if tuple(stored[path].shape) != tuple(leaf.shape):
            raise CheckpointError(
                f"{name}: array {path} has shape {tuple(stored[path].shape)}, expected {tuple(leaf.shape)}"
            )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict whose keys are paths joined by "/"; `prefix` begins every path."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def save_arrays(directory: str | os.PathLike, tree: Mapping[str, Any]) -> None:
    """Write the nested dict of arrays of a speech tokenizer's part as a safetensors file in an existing directory."""
    flat = {path: np.ascontiguousarray(value) for path, value in flatten(tree).items()}
    write_file(pathlib.Path(directory) / _ARRAYS, safetensors.numpy.save(flat))


def load_arrays(directory: str | os.PathLike) -> dict[str, Any]:
    """Read the nested dict of arrays that `save_arrays` wrote.

    Raises:
        CheckpointError: the file is missing, damaged or not safetensors, or another file of a sealed part is damaged.
    """
    check_seal(directory, CheckpointError)
    path = pathlib.Path(directory) / _ARRAYS
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with reading(path, "a safetensors file", CheckpointError):
            return unflatten(safetensors.numpy.load_file(path))
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({shown(error)})") from error
