"""The `--input` of a command, resolved once for all readers."""

import dataclasses
import functools
import glob
import os
import pathlib
import re

from spirit_jax.core.buckets import is_bucket
from spirit_jax.core.paths import local_path, match_files


@dataclasses.dataclass(frozen=True)
class InputPath:
    """A path, a glob or a name that the user gave as input."""

    argument: str
    """As the user wrote it."""
    path: pathlib.Path
    """The argument as a path; the pattern if it is a glob."""
    matches: tuple[pathlib.Path, ...] | None
    """Sorted files and folders that a glob matches; None for anything else."""

    @classmethod
    def resolve(cls, argument: str) -> "InputPath":
        """Look the argument up; a path that exists is never taken for a glob. An input in a bucket is copied first.

        The folder before the first wildcard of a glob is copied with all that is in it, because transcripts are beside
        the recordings.

        Raises:
            PathError: the argument is not a path, or names an address such as `s3://`.
            BucketError, BucketJobError: it is in a bucket and cannot be read.
        """
        if is_bucket(argument) and glob.has_magic(argument):
            folder = re.split(r"[*?[]", argument)[0].rpartition("/")[0]
            local = os.path.join(glob.escape(local_path(folder, "--input")), argument[len(folder) + 1 :])
        else:
            local = local_path(argument, "--input")
        path = pathlib.Path(local)
        if not glob.has_magic(local) or os.path.exists(path):
            return cls(argument, path, None)
        return cls(argument, path, tuple(match_files(local)))

    @functools.cached_property
    def holds_dataset(self) -> bool:
        """Whether the path is a directory with a prepared TFDS dataset in it or below it."""
        return self.path.is_dir() and any(self.path.glob("**/dataset_info.json"))
