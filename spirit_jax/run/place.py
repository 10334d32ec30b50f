"""Where a run lives: a directory on a disk, or a folder in a bucket with a local working copy.

Orbax writes the steps of a run into the bucket itself. All else, such as logs, tokenizers and records, is written to
the working copy, which is uploaded at intervals, before a step is sealed, and at the end. So the log in the bucket
holds at least the steps that a killed run resumes from.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator

from spirit_jax import checkpoint
from spirit_jax.core import buckets
from spirit_jax.core.paths import local_path
from spirit_jax.core.working_copy import WorkingCopy, uploading
from spirit_jax.corpora.prepare import RECORDS
from spirit_jax.parallel.processes import is_primary, wait_for_all
from spirit_jax.run.config import TrainConfig

_NOT_RESUMED = (
    f"{checkpoint.STEPS}/",
    "tensorboard/",
    "samples/",
    "damaged/",
    "faults/",
    "profile/",
    "generated/",
    ".",
)
"""What a run writes and never reads again, and its steps."""

_ATOMIC = (checkpoint.TOKENIZER, checkpoint.SPEECH_TOKENIZER, RECORDS)
"""Inputs of a run that are made before its first step, and kept where they exist."""


@dataclasses.dataclass(frozen=True)
class RunPlace:
    """The directories of a run."""

    name: str
    """The run directory as the user named it: where its steps are, and what messages print."""
    directory: pathlib.Path
    """Local directory that everything but the steps is written to and read from; `name` itself on a disk."""
    copy: WorkingCopy | None = None
    """The working copy of a run in a bucket."""

    def upload(self) -> None:
        """Bring what was written to the bucket; on a disk there is nothing to do."""
        if self.copy is not None:
            self.copy.upload()

    def share(self, reason: str) -> None:
        """Wait until all processes see what the primary one has written. Every process must call it.

        Args:
            reason: names this meeting.
        """
        if self.copy is not None and is_primary():
            self.copy.upload()
        wait_for_all(reason)
        if self.copy is not None and not is_primary():
            self.copy.download()


@contextlib.contextmanager
def open_place(run_directory: str) -> Iterator[RunPlace]:
    """Open the directory of a run; one in a bucket is uploaded while the block runs.

    Raises:
        BucketError, BucketJobError: the bucket cannot be used.
    """
    if not buckets.is_bucket(run_directory):
        directory = pathlib.Path(run_directory)
        yield RunPlace(str(directory), directory)
        return
    # Orbax needs this permission at the first save, which may be hours away: ask for it now
    buckets.is_hierarchical(buckets.split(run_directory)[0])
    copy = WorkingCopy(run_directory, lambda name: not name.startswith(_NOT_RESUMED), _ATOMIC)
    with uploading(copy):
        yield RunPlace(copy.url, copy.directory, copy)


def with_local_paths(settings: TrainConfig, directory: pathlib.Path) -> TrainConfig:
    """The config with every input in a bucket copied to this machine, and the run in a local directory.

    Args:
        settings: the config as the user wrote it.
        directory: local directory of the run.

    Raises:
        BucketError, BucketJobError: an input cannot be read.
    """

    def local(path: str, option: str) -> str:
        return local_path(path, option) if buckets.is_bucket(path) else path

    def optional(path: str | None, option: str) -> str | None:
        return None if path is None else local(path, option)

    sources = {
        name: dataclasses.replace(source, path=local(source.path, f"data.sources.{name}.path"))
        for name, source in settings.data.sources.items()
    }
    preferences, prepare, init_from = settings.preferences, settings.prepare, settings.init_from
    if preferences is not None:
        data = dataclasses.replace(preferences.data, path=local(preferences.data.path, "preferences.data.path"))
        preferences = dataclasses.replace(preferences, data=data)
    if prepare is not None:
        prepare = dataclasses.replace(
            prepare, corpora=type(prepare.corpora)(local(path, "prepare.corpora") for path in prepare.corpora)
        )
    if init_from is not None and buckets.is_bucket(init_from):
        init_from = str(checkpoint.local_directory(init_from, "init_from"))
    speech_tokenizer = settings.speech_tokenizer
    if speech_tokenizer is not None and buckets.is_bucket(speech_tokenizer):
        speech_tokenizer = str(checkpoint.local_directory(speech_tokenizer, "speech_tokenizer"))
    return dataclasses.replace(
        settings,
        run_directory=str(directory) if buckets.is_bucket(settings.run_directory) else settings.run_directory,
        tokenizer=optional(settings.tokenizer, "tokenizer"),
        speech_tokenizer=speech_tokenizer,
        init_from=init_from,
        data=dataclasses.replace(settings.data, sources=sources),
        preferences=preferences,
        prepare=prepare,
    )
