"""Folders and globs of audio files, with transcripts and word times in files beside them."""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from spirit_jax.audio import AUDIO_SUFFIXES
from spirit_jax.core.bucket_cache import address_of
from spirit_jax.core.buckets import list_objects
from spirit_jax.core.buckets import split as split_address
from spirit_jax.core.files import read_text
from spirit_jax.core.paths import walk_files
from spirit_jax.corpora.alignment.formats import (
    SUFFIXES_BESIDE_AUDIO,
    AlignedWords,
    read_alignment,
    with_words,
)
from spirit_jax.corpora.input_path import InputPath
from spirit_jax.corpora.readers import position
from spirit_jax.corpora.readers.fields import relative_id
from spirit_jax.corpora.utterance import CorpusError, Utterance

_TRANSCRIPT_SUFFIXES = (".txt", ".lab")
_MACOS_PREFIX = "._"
"""macOS puts a file of attributes with this prefix beside each file on foreign disks."""


class AudioFiles(Sequence[Utterance]):
    """Utterances in audio files of their own, in the order of their ids. The audio is read when it is needed.

    What cannot be used comes last; reading it raises its error, so that an encoding job names and counts it.

    Attributes:
        name: of the corpus.
        split: name of the records.
        splits: (), for files and folders have none, or those of a corpus by name.
        location: the manifest or folder that they come from.
        has_speech: True.
    """

    has_speech = True
    splits: tuple[str, ...] = ()

    def __init__(
        self,
        name: str,
        location: pathlib.Path,
        split: str,
        utterances: Iterable[Utterance | CorpusError],
        root: pathlib.Path | str | None = None,
    ):
        """Sort the utterances. Files that differ in the suffix alone get ids with the suffix.

        Args:
            name: of the corpus.
            location: names the input in messages.
            split: name of the records.
            utterances: each with the path of its audio, or why a line or file cannot be used.
            root: folder that ids made from paths are relative to, or its address in a bucket.

        Raises:
            CorpusError: there is no utterance that can be used.
        """
        self.name, self.location, self.split = name, location, split
        found = list(utterances)
        errors = [item for item in found if isinstance(item, CorpusError)]
        clips = list(_distinct([item for item in found if isinstance(item, Utterance)], root))
        errors += [item for item in clips if isinstance(item, CorpusError)]
        usable = sorted((item for item in clips if isinstance(item, Utterance)), key=lambda clip: clip.id)
        if not usable and errors:
            others = f" ({len(errors)} in all cannot be used)" if len(errors) > 1 else ""
            raise CorpusError(f"{errors[0]}{others}")
        if not usable:
            raise CorpusError(f"{location}: no audio files; looked for {', '.join(AUDIO_SUFFIXES)}")
        self._items: list[Utterance | CorpusError] = [*usable, *errors]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Utterance:
        """One utterance.

        Raises:
            CorpusError: its line or transcript cannot be used; names the file.
        """
        item = self._items[position(index, len(self), self.location)]
        if isinstance(item, CorpusError):
            raise CorpusError(str(item))
        return item

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of all fields and of the files' sizes and times; their contents may be hundreds of terabytes.

        Files that are local copies have the names that they have in the bucket, so that all machines agree.
        """
        digest = hashlib.sha256()
        objects = _objects([one.audio for one in self._items if isinstance(one, Utterance)])
        for one in self._items:
            if isinstance(one, CorpusError):
                digest.update(json.dumps(str(one)).encode())
                continue
            path = one.audio
            if isinstance(path, pathlib.Path):
                file, path = _size_and_time(path), address_of(path) or path
            else:
                file = objects.get(str(path))
            row = [one.id, str(path), one.text, one.speaker, one.words, one.spans_ms.tolist(), file]
            if one.offset_s or one.duration_s is not None:
                row += [one.offset_s, one.duration_s]
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()


def _objects(audio: Iterable[Any]) -> dict[str, list[Any]]:
    """Size and version of the objects among the audio of clips, by address, from one listing a bucket.

    Raises:
        BucketError, BucketJobError: a bucket cannot be used.
    """
    by_bucket = collections.defaultdict(list)
    for address in audio:
        if isinstance(address, str):
            by_bucket[split_address(address)[0]].append(address)
    found: dict[str, list[Any]] = {}
    for addresses in by_bucket.values():
        folder = os.path.commonpath([os.path.dirname(address) for address in addresses]).replace(":/", "://", 1)
        found |= {f"{folder}/{name}": [item.size, item.generation] for name, item in list_objects(folder).items()}
    return found


def _distinct(clips: Sequence[Utterance], root: pathlib.Path | str | None) -> Iterator[Utterance | CorpusError]:
    """The utterances with different ids; those that have the id of another one are errors."""
    by_id = collections.defaultdict(list)
    for clip in clips:
        by_id[clip.id].append(clip)
    for name, group in by_id.items():
        first: dict[str, Utterance] = {}
        for clip in group:
            path = clip.audio
            from_path = root is not None and isinstance(path, pathlib.Path | str) and name == relative_id(path, root)
            if len(group) > 1 and from_path:
                clip = dataclasses.replace(clip, id=name + pathlib.PurePath(path).suffix)
            if clip.id in first:
                yield CorpusError(
                    f"two clips have the id {clip.id!r}: {first[clip.id].audio} and {path}; give each an id of its own"
                )
                continue
            first[clip.id] = clip
            yield clip


def _size_and_time(path: pathlib.Path) -> list[int] | None:
    """Size and modification time of a file, None if there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def is_audio_file(source: InputPath) -> bool:
    """Whether the input is one audio file."""
    return source.path.suffix.lower() in AUDIO_SUFFIXES and source.path.is_file()


def open_audio_file(source: InputPath, split: str) -> AudioFiles:
    """Open one audio file as a corpus of one utterance."""
    root = source.path.parent
    return AudioFiles(source.path.stem, source.path, split, _utterances([source.path], root), root)


def is_glob(source: InputPath) -> bool:
    """Whether the input is a glob."""
    return source.matches is not None


def open_glob(source: InputPath, split: str) -> AudioFiles:
    """Open the audio files that a glob matches; their ids are paths relative to the part before the first wildcard."""
    root = pathlib.Path(os.path.dirname(re.split(r"[*?[]", str(source.path))[0]))
    return AudioFiles(root.resolve().name, root, split, _utterances(source.matches or (), root), root)


def is_folder(source: InputPath) -> bool:
    """Whether the input is a directory."""
    return source.path.is_dir()


def open_folder(source: InputPath, split: str) -> AudioFiles:
    """Open the audio files in and below a folder; their ids are paths relative to it."""
    root = source.path
    return AudioFiles(root.resolve().name, root, split, _utterances(walk_files(root), root), root)


def _utterances(paths: Iterable[pathlib.Path], root: pathlib.Path) -> Iterator[Utterance | CorpusError]:
    for path in paths:
        if path.suffix.lower() in AUDIO_SUFFIXES and not path.name.startswith(_MACOS_PREFIX):
            try:
                utterance = Utterance(relative_id(path, root), path, _transcript(path), transcript_required=False)
                yield with_words(utterance, _words_beside(path))
            except CorpusError as error:
                yield error


def _transcript(audio: pathlib.Path) -> str:
    """The content of the `.txt` file beside an audio file, or of a `.lab` file without times; "" if there is none."""
    for suffix in _TRANSCRIPT_SUFFIXES:
        path = audio.with_suffix(suffix)
        if os.path.lexists(path) and (suffix == ".txt" or read_alignment(path) is None):
            return read_text(path, CorpusError).replace("\r\n", "\n").strip()
    return ""


def _words_beside(audio: pathlib.Path) -> AlignedWords | None:
    """The words in the alignment file beside an audio file; None if there is none."""
    for suffix in SUFFIXES_BESIDE_AUDIO:
        for spelled in dict.fromkeys((suffix, suffix.lower())):
            path = audio.with_suffix(spelled)
            found = read_alignment(path) if os.path.lexists(path) else None
            if found:
                return found[""]
    return None
