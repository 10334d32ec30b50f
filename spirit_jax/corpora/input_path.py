"""The `--input` of a command, resolved once for all readers."""

import dataclasses
import functools
import glob
import pathlib


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
        """Look the argument up on disk; a path that exists is never taken for a glob."""
        path = pathlib.Path(argument)
        if not glob.has_magic(argument) or path.exists():
            return cls(argument, path, None)
        return cls(argument, path, tuple(sorted(map(pathlib.Path, glob.glob(argument, recursive=True)))))

    @functools.cached_property
    def holds_dataset(self) -> bool:
        """Whether the path is a directory with a prepared TFDS dataset in it or below it."""
        return self.path.is_dir() and any(self.path.glob("**/dataset_info.json"))
