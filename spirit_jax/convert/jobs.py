"""Jobs that each write one part of a conversion, and how all of them together replace a target atomically."""

import pathlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from spirit_jax.convert.formats.arrays import Progress
from spirit_jax.convert.released_folder import LM_FOLDER, SPEECH_FOLDER
from spirit_jax.core.files import naming, staging_directory


@dataclass(frozen=True)
class Job:
    """One part to convert, already checked."""

    name: str
    """Name of the part: `llm`, or its name under `speech_tokenizer/`."""
    source: pathlib.Path
    place: str
    """Directory of the part, relative to the target."""
    tensors: int
    """Number of released tensors."""
    nbytes: int
    notes: Sequence[str]
    """Remarks about this part for the user."""
    write: Callable[[pathlib.Path, Progress], None]
    """Writes the part into a staging directory, at `place`."""


def run_jobs(
    jobs: Iterable[Job], target: pathlib.Path, *, overwrite: bool, progress: Progress = lambda _: None
) -> None:
    """Write all jobs into a staging directory beside `target`, then move the result to its place.

    If the target exists, only the converted parts of it are replaced. If a job fails or is interrupted, the target is
    unchanged. What a killed conversion to the same target left behind is removed.

    Raises:
        FileExistsError: the target exists and `overwrite` is false.
        OSError: the target cannot be written, as on a full disk; names a file.
    """
    _refuse_existing(target, overwrite)
    part = staging_directory(target.parent, target.name)
    staged = part / target.name
    try:
        with naming(target):
            staged.mkdir()
            for job in jobs:
                job.write(staged, progress)
        _refuse_existing(target, overwrite)  # another conversion may have written it meanwhile
        if not target.exists():
            staged.rename(target)
            return
        for path in sorted(staged.iterdir()):
            holds_parts = path.name in (LM_FOLDER, SPEECH_FOLDER)
            for entry in sorted(path.iterdir()) if holds_parts else [path]:
                _replace(entry, target / entry.relative_to(staged))
    except OSError as problem:
        if isinstance(problem.filename, str):  # users know the target, not the staging directory
            problem.filename = problem.filename.replace(str(staged), str(target), 1)
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _refuse_existing(target: pathlib.Path, overwrite: bool) -> None:
    if target.exists() and not overwrite:
        raise FileExistsError(
            f"{target} exists; choose another, or say --overwrite to replace the converted parts in it"
        )


def _replace(source: pathlib.Path, target: pathlib.Path) -> None:
    """Move `source` to `target`; an existing target moves into the staging directory, which is removed at the end."""
    target.parent.mkdir(exist_ok=True)
    if target.exists() or target.is_symlink():
        target.rename(source.with_name(f"{source.name}.replaced"))
    source.rename(target)
