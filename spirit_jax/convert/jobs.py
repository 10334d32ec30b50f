"""Import, export and verify: plans of jobs, each of which writes one part into a directory that appears whole or not at all."""

import dataclasses
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spirit_jax import checkpoint, config
from spirit_jax.convert import extend, parts, released
from spirit_jax.convert.components import llama
from spirit_jax.convert.formats import hf_weights, orbax_file
from spirit_jax.convert.formats.files import ConversionError, counted, nbytes
from spirit_jax.convert.table import to_ours, to_theirs
from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import read_json
from spirit_jax.models.llama import LlamaConfig
from spirit_jax.vocabulary import Variant, Vocabulary, VocabularyError

Progress = Callable[[int], Any]

MODELS = {"base": "spirit-lm-base-7b", "expressive": "spirit-lm-expressive-7b"}
ONLY = {
    "llm": ("llm",),
    "hubert": ("phonetic",),
    "pitch": ("pitch",),
    "style": ("style",),
    "vocoder": ("vocoder_base", "vocoder_expressive"),
}
"""What `--only` takes, and our parts."""

_LM_FOLDER, _SPEECH_FOLDER = "spiritlm_model", "speech_tokenizer"
_GENERATION = "generation_config.json"


class UsageError(SpiritError):
    """Arguments that cannot be used; the command ends with code 2."""


@dataclass(frozen=True)
class Job:
    """One part to convert. `write` puts it into a staging directory, at `place`."""

    name: str
    source: pathlib.Path
    place: str
    tensors: int
    nbytes: int
    notes: Sequence[str]
    write: Callable[[pathlib.Path, Progress], None]


def run(jobs: Iterable[Job], target: pathlib.Path, overwrite: bool, progress: Progress = lambda _: None) -> None:
    """Writes all jobs into a directory beside `target`, then puts it in place. Of a target that exists, only the converted parts change.

    Raises `FileExistsError` if the target exists and `overwrite` is not said.
    """
    if target.exists() and not overwrite:
        raise FileExistsError(
            f"{target} exists; choose another, or say --overwrite to replace the converted parts in it"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        staged = pathlib.Path(temporary) / target.name
        staged.mkdir()
        for job in jobs:
            job.write(staged, progress)
        if not target.exists():
            staged.rename(target)
            return
        for path in sorted(staged.iterdir()):
            nested = path.name in (_LM_FOLDER, _SPEECH_FOLDER)
            for entry in sorted(path.iterdir()) if nested else [path]:
                _replace(entry, target / entry.relative_to(staged))


def _replace(source: pathlib.Path, target: pathlib.Path) -> None:
    """Two renames: what was there moves into the staging directory, which goes when all is done."""
    target.parent.mkdir(exist_ok=True)
    if target.exists() or target.is_symlink():
        target.rename(source.with_name(f"{source.name}.replaced"))
    source.rename(target)


def wanted(only: Iterable[str] | None) -> set[str]:
    """Our parts that `--only` names; all without it."""
    unknown = sorted(set(only or ()) - ONLY.keys())
    if unknown:
        raise UsageError(f"--only {','.join(unknown)}: choose among {','.join(ONLY)}")
    return {part for name in (only or ONLY) for part in ONLY[name]}


def _complete(jobs: list[Job], source: pathlib.Path, only: Iterable[str] | None) -> list[Job]:
    """The jobs, if each name that `--only` gave is among them; without `--only`, if there are any."""
    found = {job.name for job in jobs}
    missing = [name for name in only or () if not found & set(ONLY[name])]
    if missing or not jobs:
        raise UsageError(f"--source {source}: no {' and no '.join(missing or ONLY)} there")
    return jobs


# ---------------------------------------------------------------- import


def plan_import(
    source: pathlib.Path,
    only: Iterable[str] | None = None,
    model: Variant | None = None,
    layer: int | None = None,
) -> list[Job]:
    """What an import would write, everything checked: `source` is a released tree, one of its folders, or a Hugging Face Llama.

    `layer`: of HuBERT, that k-means centroids are of, where their file name does not say.

    Raises `UsageError` where the arguments leave a choice open, `ConversionError` for a checkpoint that is not what it should be.
    """
    if not source.is_dir():
        raise UsageError(f"--source {source}: no such directory")
    chosen = wanted(only)
    jobs = []
    folder = _find_llm(source, model) if "llm" in chosen else None
    if folder is not None:
        jobs.append(_import_llm(folder, model))
    for part in parts.PARTS:
        places = [source / _SPEECH_FOLDER / part.folder, source / part.folder]
        places += [source] if source.name == part.folder or chosen == {part.name} else []
        place = next((path for path in places if path.is_dir()), None)
        if part.name in chosen and place is not None:
            jobs.append(_import_part(part, place, layer))
    return _complete(jobs, source, only)


def _find_llm(source: pathlib.Path, model: Variant | None) -> pathlib.Path | None:
    """The folder of the language model, None where there is none."""
    if (source / "config.json").is_file():
        found = read_json(source / "config.json", ConversionError)
        return source if isinstance(found, dict) and found.get("model_type") == "llama" else None
    folders = {
        variant: folder
        for variant, name in MODELS.items()
        for folder in (source / _LM_FOLDER / name, source / name)
        if folder.is_dir()
    }
    if model is not None and folders and model not in folders:
        raise UsageError(f"--model {model}: {source} has only {', '.join(folders)}")
    if model is None and len(folders) > 1:
        raise UsageError(f"{source} has two language models: say --model base or --model expressive")
    return folders[model or next(iter(folders))] if folders else None


def _import_part(part: parts.Part, folder: pathlib.Path, layer: int | None) -> Job:
    found = parts.read_released(part, folder, layer)
    place = f"{checkpoint.SPEECH_TOKENIZER}/{part.name}"

    def write(staged: pathlib.Path, progress: Progress) -> None:
        (staged / place).mkdir(parents=True)
        found.write(staged / place, progress)

    return Job(part.name, folder, place, len(found.tensors), found.nbytes, found.notes, write)


def _import_llm(folder: pathlib.Path, model: Variant | None) -> Job:
    found = llama.from_hf_config(read_json(folder / "config.json", ConversionError), f"{folder}/config.json")
    tensors, shards = hf_weights.load_weights(folder)
    arrays, unused = to_ours(llama.rows(found), tensors, llama.shapes(found), str(folder))
    notes: list[str] = []
    files: list[pathlib.Path] = []
    # An index of weights in the other format, which are not carried, would lead nowhere.
    stem = "model." if next(iter(shards)).endswith(".safetensors") else "pytorch_model."
    weights = {*shards, *(name for name in hf_weights.NAMES if not name.startswith(stem))}
    if not any((folder / name).is_file() for name in extend.TOKENIZER_FILES[:2]):
        vocabulary, plain = None, False
        files, notes = released.carried(folder, but=weights)
        notes.append(f"no tokenizer in {folder}: put one into {checkpoint.TOKENIZER}/ before use")
        ours = {"variant": model}
    else:
        vocabulary, plain = _vocabulary(folder, model)
        ours = {"variant": vocabulary.variant, "vocabulary": vocabulary.fingerprint}
    if plain:
        if found.vocab_size < vocabulary.text_size:
            raise ConversionError(
                f"{folder}: {found.vocab_size} rows in the embedding, {vocabulary.text_size} pieces in the tokenizer"
            )
        notes.append(f"vocabulary extended from {vocabulary.text_size} to {vocabulary.padded_size}")
        arrays = extend.extend_arrays(arrays, vocabulary.text_size, vocabulary.padded_size)
        found = dataclasses.replace(found, vocab_size=vocabulary.padded_size)
    elif vocabulary is not None:
        if found.vocab_size < vocabulary.size:
            raise ConversionError(
                f"{folder}: {found.vocab_size} rows in the embedding, {vocabulary.size} tokens in the tokenizer"
            )
        files, notes = released.carried(folder, but=(*extend.TOKENIZER_FILES, *weights))
    ours["model"] = config.to_dict(found)
    if (folder / _GENERATION).is_file():  # what the model's authors recommend, as they wrote it
        ours["generation"] = read_json(folder / _GENERATION, ConversionError)

    def write(staged: pathlib.Path, progress: Progress) -> None:
        orbax_file.save_llm(staged / "orbax", arrays, progress)
        for path in (staged / "orbax").iterdir():
            path.rename(staged / path.name)
        (staged / "orbax").rmdir()
        (staged / checkpoint.CONFIG).write_text(json.dumps(ours, indent=1) + "\n")
        if plain:
            extend.extend_tokenizer(folder, staged / checkpoint.TOKENIZER, vocabulary.variant)
            return
        if vocabulary is not None:
            extend.copy_tokenizer(folder, staged / checkpoint.TOKENIZER)
        descriptions = {name: released.describe(state := dict.fromkeys(keys), state) for name, keys in shards.items()}
        released.save(staged, files, descriptions, {_file_of(shards, key): unused[key] for key in unused})

    size = sum(nbytes(array) for array in arrays.values())
    return Job("llm", folder, checkpoint.LLM, len(tensors), size, notes, write)


def _file_of(shards: Mapping[str, list[str]], key: str) -> str:
    return next(f"{name}:{key}" for name, keys in shards.items() if key in keys)


def _vocabulary(folder: pathlib.Path, model: Variant | None) -> tuple[Vocabulary, bool]:
    """The vocabulary, and whether it is a plain text tokenizer's that has to be extended to `model`."""
    try:
        found = Vocabulary.load(folder)
    except VocabularyError as error:
        if model is None:
            raise UsageError(f"{error}; on this command line: --model base or --model expressive") from error
        return Vocabulary.load(folder, model), True
    if model not in (None, found.variant):
        raise UsageError(f"--model {model}: the tokenizer in {folder} is Spirit LM {found.variant}'s")
    return found, False


# ---------------------------------------------------------------- export


def plan_export(source: pathlib.Path, only: Iterable[str] | None = None) -> list[Job]:
    """What an export would write: `source` is our checkpoint directory or a training run's step.

    Raises `UsageError` or `ConversionError` as `plan_import`.
    """
    if not source.is_dir():
        raise UsageError(f"--source {source}: no such directory")
    chosen = wanted(only)
    jobs = []
    if "llm" in chosen and _part_of(source, checkpoint.LLM) is not None:
        jobs.append(_export_llm(source))
    notes = []
    for part in parts.PARTS:
        place = _part_of(source, f"{checkpoint.SPEECH_TOKENIZER}/{part.name}") if part.name in chosen else None
        if place is None:
            continue
        if only is None and not (place / released.FOLDER).is_dir():
            notes.append(f"{place} is left behind: it was trained here and has no released form")
        else:
            jobs.append(_export_part(part, place))
    if jobs:
        jobs[-1] = dataclasses.replace(jobs[-1], notes=(*jobs[-1].notes, *notes))
    return _complete(jobs, source, only)


def _part_of(source: pathlib.Path, name: str) -> pathlib.Path | None:
    """Where a part is, None if it is missing; `CheckpointError` if `source` is a training run, of which a step must be named."""
    try:
        return checkpoint.find(source, name)
    except checkpoint.CheckpointError:
        if name == checkpoint.LLM and (source / checkpoint.STEPS).is_dir():
            raise
        return None


def _export_part(part: parts.Part, directory: pathlib.Path) -> Job:
    found = parts.read_ours(part, directory)

    def write(staged: pathlib.Path, progress: Progress) -> None:
        (staged / _SPEECH_FOLDER).mkdir(exist_ok=True)
        found.write(staged / _SPEECH_FOLDER, progress)

    count = sum(map(len, found.tensors.values()))
    return Job(part.name, directory, f"{_SPEECH_FOLDER}/{part.folder}", count, found.nbytes, (), write)


@dataclass(frozen=True)
class OurLlm:
    """Our language model as PyTorch tensors, unread, and what goes with them."""

    config: LlamaConfig
    variant: Variant | None
    tokenizer: pathlib.Path | None
    vocabulary: Vocabulary | None
    tensors: dict[str, Any]
    shards: hf_weights.Shards
    files: list[pathlib.Path]
    generation: dict[str, Any]


def open_our_llm(source: pathlib.Path) -> OurLlm:
    """Opens the language model of our checkpoint directory or of a training run's step."""
    stored = checkpoint.read_config(source)
    found = config.from_dict(LlamaConfig, stored["model"])
    directory = checkpoint.find(source, checkpoint.LLM).parent
    variant = stored.get("variant")
    tokenizer = _part_of(source, checkpoint.TOKENIZER)
    vocabulary = Vocabulary.load(tokenizer, variant) if tokenizer else None
    expected, present = llama.shapes(found), orbax_file.stored_shapes(directory)
    wrong = [
        f"{path}: expected {expected.get(path)}, found {present.get(path)}"
        for path in sorted(expected.keys() | present.keys())
        if expected.get(path) != present.get(path)
    ]
    if wrong:
        raise ConversionError(
            "\n  ".join([f"{directory}/{checkpoint.LLM} does not match {checkpoint.CONFIG}:", *wrong])
        )
    files: list[pathlib.Path] = []
    keys: dict[str, list[str]] = {}
    unused: dict[str, Any] = {}
    if _part_of(source, released.FOLDER) is not None:
        files, descriptions, kept = released.load(checkpoint.find(source, released.FOLDER))
        keys = {name: released.keys(description) for name, description in descriptions.items()}
        unused = {key: tensor for found_in in kept.values() for key, tensor in found_in.items()}
    names = [name for names in keys.values() for name in names]
    tensors = to_theirs(llama.rows(found), checkpoint.open_arrays(directory, expected), unused, names)
    shards = keys or hf_weights.default_shards(tensors)
    generation = stored.get("generation", {})
    return OurLlm(found, variant, tokenizer, vocabulary, tensors, shards, files, generation)


def _export_llm(source: pathlib.Path) -> Job:
    ours = open_our_llm(source)
    place = f"{_LM_FOLDER}/{MODELS.get(ours.variant, 'spirit-lm')}"

    def write(staged: pathlib.Path, progress: Progress) -> None:
        folder = staged / place
        folder.mkdir(parents=True)
        tensors = {name: counted(tensor, progress) for name, tensor in ours.tensors.items()}
        hf_weights.save_weights(folder, tensors, ours.shards)
        for path in ours.files:
            shutil.copyfile(path, folder / path.name)
        if ours.tokenizer is not None:
            extend.copy_tokenizer(ours.tokenizer, folder)
        if not (folder / "config.json").is_file():
            if ours.vocabulary is None:
                raise ConversionError(
                    f"{source}: neither {released.FOLDER}/ nor {checkpoint.TOKENIZER}/ to write config.json from"
                )
            ids = {"bos_token_id": ours.vocabulary.bos_id, "eos_token_id": ours.vocabulary.eos_id}
            dtype = np.dtype(next(iter(ours.tensors.values())).dtype)
            hf_config = llama.to_hf_config(ours.config, dtype, *ids.values())
            (folder / "config.json").write_text(json.dumps(hf_config, indent=2) + "\n")
            (folder / _GENERATION).write_text(json.dumps(ids | ours.generation, indent=2, sort_keys=True) + "\n")

    size = sum(nbytes(tensor) for tensor in ours.tensors.values())
    return Job("llm", source, place, len(ours.tensors), size, (), write)
