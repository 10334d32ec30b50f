"""Folders and globs of audio files, with transcripts in text files beside them."""

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

from spirit_jax.core.files import read_text
from spirit_jax.corpora.input_path import InputPath
from spirit_jax.corpora.readers import position
from spirit_jax.corpora.utterance import CorpusError, Utterance

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus")
"""Suffixes, in lower case, of the files that a folder or glob is searched for."""


class AudioFiles(Sequence[Utterance]):
    """Utterances in audio files of their own, in the order of their ids. The audio is read when it is needed.

    Attributes:
        name: of the corpus.
        split: name of the records.
        location: the manifest or folder that they come from.
        has_speech: True.
    """

    has_speech = True

    def __init__(self, name: str, location: pathlib.Path, split: str, utterances: Iterable[Utterance]):
        """Sort the utterances.

        Args:
            name: of the corpus.
            location: names the input in messages.
            split: name of the records.
            utterances: each with the path of its audio.

        Raises:
            CorpusError: there is no utterance, or two have one id.
        """
        self.name, self.location, self.split = name, location, split
        self._utterances = sorted(utterances, key=lambda utterance: utterance.id)
        if not self._utterances:
            raise CorpusError(f"{location}: no audio files; looked for {', '.join(AUDIO_SUFFIXES)}")
        for before, utterance in zip(self._utterances, self._utterances[1:], strict=False):
            if before.id == utterance.id:
                raise CorpusError(f"two clips have the id {utterance.id!r}: {before.audio} and {utterance.audio}")

    def __len__(self) -> int:
        return len(self._utterances)

    def __getitem__(self, index: int) -> Utterance:
        return self._utterances[position(index, len(self), self.location)]

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of all fields and of the files' sizes and times; their contents may be hundreds of terabytes."""
        digest = hashlib.sha256()
        for one in self._utterances:
            path = one.audio
            stat = path.stat() if isinstance(path, pathlib.Path) and path.exists() else None
            file = stat and [stat.st_size, stat.st_mtime_ns]
            row = [one.id, str(path), one.text, one.speaker, one.words, one.spans_ms.tolist(), file]
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()


def is_glob(source: InputPath) -> bool:
    """Whether the input is a glob."""
    return source.matches is not None


def open_glob(source: InputPath, split: str) -> AudioFiles:
    """Open the audio files that a glob matches; their ids are paths relative to the part before the first wildcard."""
    root = pathlib.Path(os.path.dirname(re.split(r"[*?[]", source.argument)[0]))
    return AudioFiles(root.resolve().name, root, split, _utterances(source.matches or (), root))


def is_folder(source: InputPath) -> bool:
    """Whether the input is a directory."""
    return source.path.is_dir()


def open_folder(source: InputPath, split: str) -> AudioFiles:
    """Open the audio files in and below a folder; their ids are paths relative to it."""
    return AudioFiles(source.path.resolve().name, source.path, split, _utterances(source.path.rglob("*"), source.path))


def relative_id(path: pathlib.Path, root: pathlib.Path) -> str:
    """The id of a file without one: its path relative to `root`, without the suffix."""
    return pathlib.PurePath(os.path.relpath(path, root)).with_suffix("").as_posix()


def _utterances(paths: Iterable[pathlib.Path], root: pathlib.Path) -> Iterable[Utterance]:
    for path in paths:
        if path.suffix.lower() in AUDIO_SUFFIXES:
            yield Utterance(relative_id(path, root), path, _transcript(path), transcript_required=False)


def _transcript(audio: pathlib.Path) -> str:
    """The content of the `.txt` file beside an audio file, "" if there is none."""
    path = audio.with_suffix(".txt")
    return read_text(path, CorpusError).replace("\r\n", "\n").strip() if path.is_file() else ""
