"""Everything that can be encoded: one protocol, and one table of the kinds of input with the reader of each."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Protocol

from spirit_jax.corpora.input_path import InputPath
from spirit_jax.corpora.readers import audio_files, manifest, named, prepared, text_lines, tfds_speech
from spirit_jax.corpora.utterance import CorpusError, Utterance


class Input(Protocol):
    """One split of a corpus with random access to its utterances, which are read when they are asked for."""

    @property
    def name(self) -> str:
        """Name of the corpus; its records carry it."""
        ...

    @property
    def split(self) -> str:
        """Name of the split; its records carry it."""
        ...

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that the corpus was divided into by whoever made it; () for one without splits."""
        ...

    @property
    def location(self) -> pathlib.Path:
        """File, folder or pattern that messages name."""
        ...

    @property
    def has_speech(self) -> bool:
        """Whether utterances have audio; otherwise they are documents of text."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes whenever an utterance changes, so that finished work is reused only for the same input."""
        ...

    def __len__(self) -> int:
        """Number of utterances."""
        ...

    def __getitem__(self, index: int, /) -> Utterance:
        """Read one utterance.

        Raises:
            CorpusError: it cannot be read; names the file and its place in it.
        """
        ...


@dataclasses.dataclass(frozen=True)
class InputKind:
    """One kind of input and its reader."""

    description: str
    """Names this kind in messages."""
    accepts: Callable[[InputPath], bool]
    """Whether an input is of this kind."""
    open: Callable[[InputPath, str], Input]
    """Open a split of an input of this kind; kinds without splits use the name for the records."""


INPUT_KINDS = (
    InputKind("a .jsonl file or glob with lines of text", text_lines.is_text_lines, text_lines.open_text_lines),
    InputKind("a manifest (.jsonl, .json, .csv, .tsv, also .gz)", manifest.is_manifest, manifest.open_manifest),
    InputKind("an audio file", audio_files.is_audio_file, audio_files.open_audio_file),
    InputKind("a glob of audio files", audio_files.is_glob, audio_files.open_glob),
    InputKind("a directory that a TFDS builder prepared", tfds_speech.is_tfds_speech, tfds_speech.open_tfds_speech),
    InputKind("a prepared or bundled corpus", prepared.is_prepared, prepared.open_prepared),
    InputKind("a folder of audio files", audio_files.is_folder, audio_files.open_folder),
)
"""Kinds of input; the first that accepts an input reads it."""


def open_input(source: str, split: str) -> Input:
    """Open anything that can be encoded.

    | source | utterances |
    |---|---|
    | `.jsonl`, or a glob of them, with lines of text | a document a line (`readers.text_lines`) |
    | manifest (`.jsonl`, `.json`, `.csv`, `.tsv`) | an utterance a line, with the fields of `readers.fields` |
    | audio file, folder or glob of audio files | an utterance a file; a `.txt` file beside it is its transcript |
    | prepared TFDS directory, or name of a bundled corpus | an utterance a record |
    | `NAME:DIR`, such as `librispeech:DIR` | the clips of a published corpus in its layout (`readers.named`) |

    Args:
        source: what the user names; a path that exists is never taken for a glob.
        split: which split to open; inputs without splits use it as the name of the records.

    Raises:
        CorpusError: names the file, and the line of a manifest, and says what is wrong. A line, transcript or clip that
            cannot be used is an error when it is read, as long as there are others.
        PathError: the source is not a path, or names an address such as `s3://`.
        BucketError, BucketJobError: it is in a bucket that cannot be used.
    """
    if named.is_named(source):
        return named.open_named(source, split)
    path = InputPath.resolve(source)
    if path.matches is None and path.path.exists() and not path.path.is_file() and not path.path.is_dir():
        raise CorpusError(f"{source}: is a device or a pipe; write its content to a file first, such as lines.jsonl")
    kind = next((kind for kind in INPUT_KINDS if kind.accepts(path)), None)
    if kind is None:
        kinds = "; ".join(kind.description for kind in INPUT_KINDS)
        raise CorpusError(
            f"{source}: no prepared corpus or other input here; inputs are: {kinds}; "
            f"bundled corpora are {', '.join(prepared.bundled_names())}; published corpora are named as NAME:DIR with "
            f"{', '.join((*named.NAMED_CORPORA, *named.ARCHIVES))}"
        )
    return kind.open(path, split)
