"""Gives the utterances of any corpus the word times of files that another tool wrote (`formats`)."""

import hashlib
import logging
import pathlib
from collections.abc import Iterator, Sequence

from spirit_jax.core.paths import local_path, walk_files
from spirit_jax.corpora.alignment.formats import (
    ALIGNMENT_FORMATS,
    AlignedWords,
    format_suffix,
    read_alignment,
    with_words,
)
from spirit_jax.corpora.inputs import Input
from spirit_jax.corpora.readers import position, stat_fingerprint
from spirit_jax.corpora.utterance import CorpusError, Utterance

_LOG = logging.getLogger(__name__)


class AlignmentFiles:
    """Word times by the ids of utterances, from a file or from all files in and below a folder.

    Files of one utterance each are found by their path below the folder or by their name alone, both without suffix,
    and are read when they are asked for. Files of several utterances are read at once.
    """

    def __init__(self, location: pathlib.Path):
        """
        Raises:
            CorpusError: there is no file with word times here, or one of several utterances cannot be read.
        """
        self.location = location
        found = list(walk_files(location)) if location.is_dir() else [location]
        self.paths = [path for path in found if format_suffix(path)]
        if not self.paths:
            known = ", ".join(dict.fromkeys(each.suffix for each in ALIGNMENT_FORMATS))
            raise CorpusError(f"{location}: no file with word times here; known are {known}")
        self._single: dict[str, list[pathlib.Path]] = {}
        self._read: dict[str, AlignedWords] = {}
        several = tuple(each.suffix for each in ALIGNMENT_FORMATS if each.several)
        for path in self.paths:
            if path.name.lower().endswith(several):
                self._read |= read_alignment(path) or {}
                continue
            relative = path.relative_to(location) if location.is_dir() else pathlib.PurePath(path.name)
            stem = path.name[: -len(format_suffix(path))]
            for name in {relative.with_name(stem).as_posix(), stem}:
                self._single.setdefault(name, []).append(path)

    def find(self, utterance: Utterance) -> AlignedWords | None:
        """The words of an utterance, by its id, the last part of its id, or the name of its audio file; None for none.

        Raises:
            CorpusError: its file cannot be read, or several files have its name.
        """
        for name in _names(utterance):
            if name in self._read:
                return self._read[name]
            paths = self._single.get(name, [])
            if len(paths) > 1:
                raise CorpusError(f"utterance {utterance.id!r}: its words are in both {paths[0]} and {paths[1]}")
            if paths:
                words = read_alignment(paths[0])
                if words is None:
                    raise CorpusError(f"{paths[0]}: holds no word times in a form that is known")
                return words[""]
        return None

    def has(self, utterance: Utterance) -> bool:
        """Whether there is a file for an utterance; whether it can be read shows when it is."""
        return any(name in self._read or name in self._single for name in _names(utterance))

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the files' names, sizes and times."""
        return stat_fingerprint(self.paths)


class AlignedInput(Sequence[Utterance]):
    """A corpus whose utterances have the word times of alignment files; the members are those of `inputs.Input`.

    Utterances without a file stay as they are. An utterance without a transcript gets the words as its text.
    """

    def __init__(self, corpus: Input, files: AlignmentFiles):
        self._corpus, self._files = corpus, files
        self.name, self.split, self.splits = corpus.name, corpus.split, corpus.splits
        self.location, self.has_speech = corpus.location, True

    def __len__(self) -> int:
        return len(self._corpus)

    def __getitem__(self, index: int) -> Utterance:
        utterance = self._corpus[position(index, len(self), self.location)]
        return with_words(utterance, self._files.find(utterance))

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the fingerprints of the corpus and of the files."""
        return hashlib.sha256(f"{self._corpus.fingerprint} {self._files.fingerprint}".encode()).hexdigest()


def attach_alignments(corpus: Input, source: str) -> AlignedInput:
    """Give a corpus the word times of a file or folder that the user names.

    Raises:
        CorpusError: the corpus holds text, or no utterance of it has a file with word times there.
        PathError: the source is not a path.
        BucketError, BucketJobError: it is in a bucket and cannot be read.
    """
    location = pathlib.Path(local_path(source, "--alignments"))
    if not corpus.has_speech:
        raise CorpusError(f"{corpus.location}: holds text; word times need audio")
    if not location.exists():
        raise CorpusError(f"{location}: no such file or folder with word times")
    files = AlignmentFiles(location)
    aligned = AlignedInput(corpus, files)
    found = sum(_has_words(corpus, files, index) for index in range(len(corpus)))
    if not found:
        raise CorpusError(
            f"{location}: none of the {len(corpus)} clips of {corpus.location} has word times here; a file is named "
            "after the id or the audio file of its clip"
        )
    _LOG.info("%s: word times for %d of %d clips in %s", corpus.name, found, len(corpus), location)
    return aligned


def _has_words(corpus: Input, files: AlignmentFiles, index: int) -> bool:
    """Whether an utterance has a file; one that cannot be used has none."""
    try:
        return files.has(corpus[index])
    except CorpusError:
        return False


def _names(utterance: Utterance) -> Iterator[str]:
    """Names under which the words of an utterance may be filed."""
    yield utterance.id
    yield utterance.id.rsplit("/", 1)[-1]
    # words of a whole file do not fit a part of it
    is_whole = not utterance.offset_s and utterance.duration_s is None
    if isinstance(utterance.audio, pathlib.Path | str) and is_whole:
        yield pathlib.PurePath(utterance.audio).with_suffix("").name
