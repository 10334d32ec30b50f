"""Plans an import or an export: finds the parts in the source, checks them, and returns a job for each.

A source of an import is a released tree (`spiritlm_model/` and `speech_tokenizer/`), one of its folders, or a Hugging
Face Llama.
"""

import dataclasses
import pathlib
from collections.abc import Iterable

from spirit_jax import checkpoint
from spirit_jax.convert.errors import ConversionError, UsageError
from spirit_jax.convert.formats.arrays import Progress
from spirit_jax.convert.jobs import Job
from spirit_jax.convert.llm_export import find_part, plan_llm_export
from spirit_jax.convert.llm_import import plan_llm_import
from spirit_jax.convert.part_export import export_part
from spirit_jax.convert.part_import import import_part
from spirit_jax.convert.parts import PARTS, ReleasedPart
from spirit_jax.convert.released_folder import FOLDER, LM_FOLDER, MODEL_FOLDERS, SELECTIONS
from spirit_jax.core.files import read_json, shown
from spirit_jax.core.paths import check_links
from spirit_jax.vocabulary import Variant


def plan_import(
    source: pathlib.Path,
    only: Iterable[str] | None = None,
    model: Variant | None = None,
    layer: int | None = None,
) -> list[Job]:
    """Plan the import of released files into a checkpoint directory.

    Args:
        source: a released tree, one of its folders, or the directory of a Hugging Face Llama.
        only: keys of `SELECTIONS`; None imports every part that is there.
        model: which language model of a released tree, or the variant to extend a plain Llama to.
        layer: the layer of HuBERT that k-means centroids quantize, if their file name does not give it.

    Raises:
        UsageError: the arguments name something that is not there, or leave a choice open.
        ConversionError: a checkpoint that is not as its table expects, or a link that leaves the source.
    """
    only = _checked(only)
    if not source.is_dir():
        raise UsageError(f"--source {source}: no such directory")
    selected = _selected(only)
    jobs = []
    folder = _find_llm(source, model) if "llm" in selected else None
    if folder is not None:
        check_links(folder, source, ConversionError)
        jobs.append(plan_llm_import(folder, model))
    for part in PARTS:
        places = [source / part.released_parent / part.folder, source / part.folder]
        places += [source] if source.name == part.folder or selected == {part.name} else []
        place = next((path for path in places if path.is_dir()), None)
        if part.name in selected and place is not None:
            check_links(place, source, ConversionError)
            for name in filter(None, (file.folder for file in part.files)):
                beside = place.parent / name
                check_links(beside, beside if place == source else source, ConversionError)
            jobs.append(_plan_part_import(part, place, layer))
    return _complete(jobs, source, only)


def _find_llm(source: pathlib.Path, model: Variant | None) -> pathlib.Path | None:
    """The folder of the language model, None if there is none.

    Raises:
        UsageError: `model` is not there, or there are two.
        ConversionError: a language model of another kind.
    """
    if (source / "config.json").is_file():
        check_links(source / "config.json", source, ConversionError)
        found = read_json(source / "config.json", ConversionError)
        if not isinstance(found, dict):
            raise ConversionError(f"{source}/config.json: a {type(found).__name__}, the fields of a model expected")
        kind = found.get("model_type", "" if "num_hidden_layers" in found else None)
        if kind is not None and kind != "llama" and source.name not in {part.folder for part in PARTS}:
            raise ConversionError(
                f"{source}/config.json: model_type {shown(kind)} is not supported: the language models that can be "
                "imported are Spirit LM and Llamas (model_type 'llama', such as Llama 2, Llama 3 and TinyLlama); for a "
                "part of a speech tokenizer say --only"
            )
        return source if kind == "llama" else None
    folders = {
        variant: folder
        for variant, name in MODEL_FOLDERS.items()
        for folder in (source / LM_FOLDER / name, source / name)
        if folder.is_dir()
    }
    if model is not None and folders and model not in folders:
        raise UsageError(f"--model {model}: {source} has only {', '.join(folders)}")
    if model is None and len(folders) > 1:
        raise UsageError(f"{source} has two language models: say --model base or --model expressive")
    return folders[model or next(iter(folders))] if folders else None


def _plan_part_import(part: ReleasedPart, folder: pathlib.Path, layer: int | None) -> Job:
    imported = import_part(part, folder, layer)

    def write(staged: pathlib.Path, progress: Progress) -> None:
        (staged / part.place).mkdir(parents=True)
        imported.write(staged / part.place, progress)

    return Job(part.name, folder, part.place, len(imported.tensors), imported.nbytes, imported.notes, write)


def plan_export(source: pathlib.Path, only: Iterable[str] | None = None) -> list[Job]:
    """Plan the export of a checkpoint directory, or of a training run's step, to the released layout.

    Without `only`, parts that were trained from scratch are left behind, because they have no released form.

    Raises:
        UsageError: as `plan_import`.
        ConversionError: a part that cannot be exported, or is not as its config says.
        CheckpointError: `source` is a training run and not one of its steps.
    """
    only = _checked(only)
    if not source.is_dir():
        raise UsageError(f"--source {source}: no such directory")
    selected = _selected(only)
    jobs, notes = [], []
    if "llm" in selected and find_part(source, checkpoint.LLM) is not None:
        jobs.append(plan_llm_export(source))
    for part in PARTS:
        place = find_part(source, part.place) if part.name in selected else None
        if place is None:
            continue
        if only is None and not (place / FOLDER).is_dir():
            notes.append(f"{place} is left behind: it was trained here and has no released form")
        else:
            jobs.append(_plan_part_export(part, place))
    if jobs:
        jobs[-1] = dataclasses.replace(jobs[-1], notes=(*jobs[-1].notes, *notes))
    return _complete(jobs, source, only)


def _plan_part_export(part: ReleasedPart, directory: pathlib.Path) -> Job:
    exported = export_part(part, directory)

    def write(staged: pathlib.Path, progress: Progress) -> None:
        (staged / part.released_parent).mkdir(exist_ok=True)
        exported.write(staged / part.released_parent, progress)

    count = sum(map(len, exported.tensors.values()))
    return Job(
        part.name,
        directory,
        str(pathlib.PurePosixPath(part.released_parent, part.folder)),
        count,
        exported.nbytes,
        (),
        write,
    )


def _checked(only: Iterable[str] | None) -> list[str] | None:
    """The values of `--only`, each of which must be a key of `SELECTIONS`."""
    if only is None:
        return None
    only = list(only)
    unknown = sorted(set(only) - SELECTIONS.keys())
    if unknown:
        raise UsageError(f"--only {','.join(unknown)}: choose among {','.join(SELECTIONS)}")
    return only


def _selected(only: list[str] | None) -> set[str]:
    """The names of the selected parts."""
    return {part for name in (only or SELECTIONS) for part in SELECTIONS[name]}


def _complete(jobs: list[Job], source: pathlib.Path, only: list[str] | None) -> list[Job]:
    """The jobs, if there are any and each value of `only` is among them."""
    found = {job.name for job in jobs}
    missing = [name for name in only or () if not found & set(SELECTIONS[name])]
    if missing or not jobs:
        raise UsageError(f"--source {source}: no {' and no '.join(missing or SELECTIONS)} there")
    return jobs
