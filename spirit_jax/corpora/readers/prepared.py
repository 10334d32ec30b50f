"""Corpora that `write_corpus` prepared, the bundled ones among them, read without TensorFlow."""

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from spirit_jax.corpora.input_path import InputPath
from spirit_jax.corpora.readers import position
from spirit_jax.corpora.utterance import CorpusError, Utterance

BUNDLED = pathlib.Path(__file__).parents[1] / "bundled"
"""TFDS data directory of the corpora that come with the package."""


class Corpus(Sequence[Utterance]):
    """One split of a prepared corpus: a sequence of utterances, each read from disk when it is asked for.

    Attributes:
        name: of the corpus.
        split: the opened split.
        splits: names of all its splits.
        location: directory of the files.
        has_speech: whether utterances have audio.
    """

    def __init__(self, directory: str | os.PathLike, split: str):
        """Open a split of a TFDS directory, or of the newest version in it.

        Raises:
            CorpusError: names the directory; it holds no prepared corpus or no such split, or features are missing.
        """
        import tensorflow_datasets as tfds  # takes a second to import; reading needs no TensorFlow

        self.location, self.split = version_directory(pathlib.Path(directory)), split
        with _naming(self.location):
            builder = tfds.builder_from_directory(self.location)
            self.name, self.splits = builder.info.name, tuple(sorted(builder.info.splits))
            features: Any = builder.info.features or {}  # TFDS has no type for a mapping of features
            names = set(features)
        if split not in self.splits:
            raise CorpusError(f"{self.location} has no split {split!r}; it has {', '.join(self.splits)}")
        missing = {"id", "text"} - names
        if missing:
            raise CorpusError(f"{self.location}: features {sorted(missing)} are missing; found {sorted(names)}")
        self.has_speech = "audio" in names
        with _naming(self.location):
            # TFDS decorates the method in a way that hides its parameters from type checkers
            self._source: Any = builder.as_data_source(split)  # pyright: ignore[reportCallIssue]
            len(self._source)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Utterance:
        index = position(index, len(self), self.location)
        try:
            example = self._source[index]
        except Exception as error:  # array_record and protobuf have no common error class
            raise CorpusError(
                f"{self.location}: record {index} of split {self.split!r} cannot be read ({error})"
            ) from error
        words = example.get("words") or {"word": [], "start_ms": [], "end_ms": []}
        try:
            return self._utterance(example, words)
        except ValueError as error:  # text that is not UTF-8, or times of another number than words
            raise CorpusError(f"{self.location}: record {index} of split {self.split!r}: {error}") from error

    def _utterance(self, example: dict[str, Any], words: dict[str, Any]) -> Utterance:
        return Utterance(
            id=_text(example["id"]),
            audio=example["audio"] if self.has_speech else None,
            text=_text(example["text"]),
            words=tuple(map(_text, words["word"])),
            spans_ms=np.stack([words["start_ms"], words["end_ms"]], axis=1).astype(np.int32),
            speaker=_text(example.get("speaker", b"")),
        )

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the names and contents of the split's files."""
        digest = hashlib.sha256()
        for path in sorted(self.location.glob(f"*-{self.split}.*")):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()


@contextlib.contextmanager
def _naming(directory: pathlib.Path) -> Iterator[None]:
    """Name a directory in the errors of TFDS, which raises what its files and features raise."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise CorpusError(f"{directory}: cannot be opened as a TFDS directory ({reason})") from error


def is_prepared(source: InputPath) -> bool:
    """Whether the input is a prepared TFDS directory or the name of a bundled corpus."""
    return source.holds_dataset or (not source.path.is_dir() and source.argument in bundled_names())


def open_prepared(source: InputPath, split: str) -> Corpus:
    """Open a split of a prepared TFDS directory or of a bundled corpus."""
    return open_corpus(source.path if source.holds_dataset else source.argument, split)


def open_corpus(name_or_directory: str | os.PathLike, split: str) -> Corpus:
    """Open a split of a bundled corpus by its name, such as "spirit_mini", or of a prepared TFDS directory.

    Example::

        corpus = open_corpus("spirit_mini", "train")
        corpus[0].text, corpus[0].load()

    Raises:
        CorpusError: this is neither a bundled name nor a prepared directory, or it has no such split.
    """
    name = str(name_or_directory)
    return Corpus(BUNDLED / name if name in bundled_names() else name_or_directory, split)


def bundled_names() -> list[str]:
    """Names of the bundled corpora."""
    return sorted(path.name for path in BUNDLED.iterdir())


def version_directory(directory: pathlib.Path) -> pathlib.Path:
    """The directory itself if it holds a prepared dataset, otherwise that of the newest version in it.

    Raises:
        CorpusError: there is neither; names the bundled corpora.
    """
    if (directory / "dataset_info.json").is_file():
        return directory
    found = [path.parent for path in directory.glob("*/dataset_info.json")]
    versions = [path for path in found if all(part.isdigit() for part in path.name.split("."))]
    if not versions:
        raise CorpusError(
            f"{directory}: no prepared corpus (dataset_info.json) here; bundled ones are {', '.join(bundled_names())}"
        )
    return max(versions, key=lambda path: [int(part) for part in path.name.split(".")])


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
