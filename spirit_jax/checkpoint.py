"""Our checkpoint directory: `config.json`, `tokenizer/`, `llm/` (Orbax) and the parts under `speech_tokenizer/` (DESIGN.md).

Converted weights, a training run and any single step of it are all such a directory. Any part may be missing; asking for it
says so. A step, `RUN/checkpoints/STEP`, holds its own `llm/` and finds the rest in `RUN`.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import safetensors.numpy

from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import write_file

CONFIG = "config.json"
TOKENIZER = "tokenizer"
LLM = "llm"
SPEECH_TOKENIZER = "speech_tokenizer"
STEPS = "checkpoints"

_ARRAYS = "params.safetensors"


class CheckpointError(SpiritError):
    """A checkpoint directory, part or array that is missing or is not what was expected; the message names it."""


def find(directory: str | os.PathLike, part: str) -> pathlib.Path:
    """The path of a part (`CONFIG`, `TOKENIZER`, `speech_tokenizer/pitch`, ...), looked for in a step's run too.

    Raises:
        CheckpointError: no such directory, or no such part in it; says what is there.
    """
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such checkpoint directory")
    places = [directory]
    if directory.resolve().parent.name == STEPS:
        places.append(directory.resolve().parents[1])
    for place in places:
        if (place / part).exists():
            return place / part
    present = sorted(path.name for path in directory.iterdir() if not path.name.startswith((".", "_")))
    hint = ""
    if part == LLM and (directory / STEPS).is_dir():
        hint = f"; it is a training run: name one of its steps, {directory / STEPS}/STEP"
    raise CheckpointError(
        f"{' and '.join(map(str, places))}: no {part} there, only {', '.join(present) or 'nothing'}{hint}"
    )


def latest_step(run: str | os.PathLike) -> pathlib.Path | None:
    """The newest complete step of a training run, None where there is none yet."""
    steps = pathlib.Path(run) / STEPS
    complete = (
        [path for path in steps.iterdir() if path.name.isdigit() and (path / LLM).is_dir()] if steps.is_dir() else []
    )
    return max(complete, key=lambda path: int(path.name), default=None)


def read_config(directory: str | os.PathLike) -> dict[str, Any]:
    """The config of a checkpoint directory: at least `model` (the Llama's fields) and `variant`.

    Raises:
        CheckpointError: there is none, or it is not JSON.
    """
    path = find(directory, CONFIG)
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from error


def load_llm(directory: str | os.PathLike, abstract_params: Any) -> Any:
    """The language model's parameters, straight into their shards.

    Args:
        directory: a step or a converted checkpoint.
        abstract_params: a tree of `jax.ShapeDtypeStruct`, each with a sharding.

    Raises:
        CheckpointError: no `llm/` there, a file of it is not as a training run wrote it, or its tree or a shape differs from
            the one asked for; names the first.
    """
    from orbax.checkpoint import v1 as ocp

    return ocp.load(_checked_llm(directory, abstract_params), abstract_params, checkpointable_name=LLM)


def open_llm(directory: str | os.PathLike, abstract_params: Any) -> Any:
    """The language model's parameters unread: the tree with a `StoredArray` for each. Arguments and errors as `load_llm`."""
    directory = _checked_llm(directory, abstract_params)
    return unflatten(open_arrays(directory, flatten(abstract_params)))


def _checked_llm(directory: str | os.PathLike, abstract_params: Any) -> pathlib.Path:
    """Where `llm/` is, known to be whole and to hold this tree."""
    import jax
    from orbax.checkpoint import v1 as ocp

    directory = find(directory, LLM).resolve().parent  # Orbax takes absolute paths alone
    if read_checksums(directory) is not None:
        problem = damage(directory, jax.process_index(), jax.process_count(), within=LLM)
        if problem:
            raise CheckpointError(f"{problem}; choose another step")
    _compare_trees(f"{directory}/{LLM}", ocp.metadata(directory, LLM).metadata, abstract_params)
    return directory


class StoredArray:
    """An array of a checkpoint's `llm/`, of which `array[index]` reads a slice."""

    def __init__(self, store: Any):
        self._store = store
        self.shape, self.dtype = tuple(store.shape), np.dtype(store.dtype.numpy_dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        return self._store[index].read().result()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[...], dtype)


def open_arrays(directory: pathlib.Path, paths: Iterable[str]) -> dict[str, StoredArray]:
    """Arrays of the `llm/` in a directory by their paths, unread and unchecked.

    Stacked layers are stored a layer a chunk (`convert.orbax_file`, `training.checkpoints`): reading a layer reads no other.
    """
    import tensorstore

    ocdbt = (directory / LLM / "manifest.ocdbt").is_file()
    stores = {
        path: tensorstore.open(array_spec(directory, path, "auto", ocdbt), open=True, read=True) for path in paths
    }
    return {path: StoredArray(store.result()) for path, store in stores.items()}


def array_spec(directory: pathlib.Path, path: str, driver: str, ocdbt: bool = True) -> dict[str, Any]:
    """Where TensorStore finds an array of `llm/`: Orbax names arrays by their path joined by "."."""
    files, name = f"file://{(directory / LLM).resolve()}/", path.replace("/", ".") + "/"
    store = {"driver": "ocdbt", "base": files, "path": name} if ocdbt else files + name
    return {"driver": driver, "kvstore": store}


def _compare_trees(name: str, stored: Any, wanted: Any) -> None:
    stored, wanted = flatten(stored), flatten(wanted)
    for path in sorted(stored.keys() ^ wanted.keys()):
        found = "is missing" if path in wanted else "is there and not expected"
        raise CheckpointError(f"{name}: array {path} {found}")
    for path, leaf in wanted.items():
        if tuple(stored[path].shape) != tuple(leaf.shape):
            raise CheckpointError(
                f"{name}: array {path} has shape {tuple(stored[path].shape)}, expected {tuple(leaf.shape)}"
            )


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict whose keys are paths joined by "/"."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def save_arrays(directory: str | os.PathLike, tree: dict[str, Any]) -> None:
    """Write a small part's nested dict of arrays as one safetensors file in an existing directory."""
    flat = {path: np.ascontiguousarray(value) for path, value in flatten(tree).items()}
    write_file(pathlib.Path(directory) / _ARRAYS, safetensors.numpy.save(flat))


def load_arrays(directory: str | os.PathLike) -> dict[str, Any]:
    """Read what `save_arrays` wrote.

    Raises:
        CheckpointError: the file is missing, truncated or not safetensors.
    """
    path = pathlib.Path(directory) / _ARRAYS
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        return unflatten(safetensors.numpy.load_file(path))
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from error


def write_checksums(step: str | os.PathLike, index: int = 0, count: int = 1) -> None:
    """Seal a complete step: write the checksums of this process's share of its files, every `count`-th from `index` on.

    The step is sealed when all `count` processes have done so. CRC-32, which no single flipped byte passes, by several threads.
    """
    step = pathlib.Path(step)
    files = _files(step)[index::count]
    sums = dict(zip(files, _checksums(step / name for name in files), strict=True))
    write_file(step / f"checksums-{index:05}-of-{count:05}.json", json.dumps(sums, indent=0))


def read_checksums(step: str | os.PathLike) -> dict[str, list] | None:
    """Size and CRC-32 of every file of a sealed step by relative path; None for a step that is not sealed."""
    found = sorted(pathlib.Path(step).glob("checksums-*-of-*.json"))
    if not found or len(found) != int(found[0].stem.rsplit("-", 1)[1]):
        return None
    sums: dict[str, list] = {}
    for path in found:
        try:
            sums |= json.loads(path.read_text())
        except ValueError:
            return None
    return sums


def damage(step: str | os.PathLike, index: int = 0, count: int = 1, within: str = "") -> str | None:
    """What is wrong with a step, in a line; None if every file is as it was written.

    Args:
        index, count: look at every `count`-th file from `index` on: the processes of a job share the work.
        within: look at this part alone (`LLM`).
    """
    step, sums = pathlib.Path(step), read_checksums(step)
    if sums is None:
        return f"{step}: no checksums, so it was not completely written"
    names = [name for name in sorted(sums) if name.startswith(within)][index::count]
    for name, found in zip(names, _checksums(step / name for name in names), strict=True):
        if found != sums[name]:
            return f"{step / name}: is not as it was written (size and CRC-32 {found}, not {sums[name]})"
    return None


def _files(directory: pathlib.Path) -> list[str]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(directory)) for path in paths if not path.name.startswith(("checksums-", ".")))


def _checksums(paths: Iterable[pathlib.Path]) -> list[list]:
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        return list(threads.map(_checksum, paths))


def _checksum(path: pathlib.Path) -> list:
    """Size and CRC-32 of a file; both zero where there is none."""
    size = crc = 0
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        while block := file.read(2**22):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, f"{crc:08x}"]
