"""What can be encoded besides a prepared corpus: manifests, folders and globs of audio files, and lines of text."""

import csv
import dataclasses
import glob
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from spirit_jax.corpora import Corpus, CorpusError, Utterance, open_corpus
from spirit_jax.corpora.reading import version_directory
from spirit_jax.corpora.text import TextLines, holds_text
from spirit_jax.corpora.tfds import PreparedSpeech, SpeechAlone, features

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus")

FIELDS = ("audio", "id", "text", "speaker", "words")
"""What a line of a manifest may hold; only `audio`, a path relative to the manifest, must be there."""


@dataclasses.dataclass(frozen=True, eq=False)
class Clip(SpeechAlone):
    """An utterance out of a file of its own, read when used."""

    path: pathlib.Path = pathlib.Path()

    def load(self) -> np.ndarray:
        try:
            audio = self.path.read_bytes()
        except OSError as error:
            raise CorpusError(f"utterance {self.id!r}: {self.path}: {error.strerror}") from error
        return Utterance.load(dataclasses.replace(self, audio=audio))


class AudioFiles(Sequence[Clip]):
    """Clips in the order of their ids, as a `Corpus` is: sequence, `name`, `split`, `has_speech`, `fingerprint`.

    Raises:
        CorpusError: no clip, or two of one id.
    """

    has_speech = True

    def __init__(self, name: str, directory: pathlib.Path, split: str, clips: Iterable[Clip]):
        self.name, self.directory, self.split = name, directory, split
        self._clips = sorted(clips, key=lambda clip: clip.id)
        if not self._clips:
            raise CorpusError(f"{directory}: no audio files; looked for {', '.join(AUDIO_SUFFIXES)}")
        for before, clip in zip(self._clips, self._clips[1:], strict=False):
            if before.id == clip.id:
                raise CorpusError(f"two clips have the id {clip.id!r}: {before.path} and {clip.path}")

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> Clip:
        return self._clips[index]

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of ids, transcripts and the files' sizes and times (their bytes may be hundreds of terabytes)."""
        digest = hashlib.sha256()
        for clip in self._clips:
            stat = clip.path.stat() if clip.path.exists() else None
            file = stat and [stat.st_size, stat.st_mtime_ns]
            row = [clip.id, str(clip.path), clip.text, clip.speaker, clip.words, clip.spans_ms.tolist(), file]
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()


Input = Corpus | AudioFiles | TextLines | PreparedSpeech


def open_input(source: str, split: str) -> Input:
    """A manifest (`.jsonl`, `.tsv`), a folder or glob of audio files, a prepared TFDS directory, or a bundled corpus.

    A `.jsonl` file, or a glob of them, whose lines have `text` and no `audio` is a corpus of text (`TextLines`).

    A manifest has a line an utterance, with `FIELDS`: JSON objects (`words` is a list of {"word", "start_ms", "end_ms"}),
    or tab-separated columns named in the first line (no `words`). The id defaults to the path of the audio without its
    suffix. Of an audio file that a folder or glob names, a `.txt` file beside it is the transcript. A TFDS directory is one
    that `write_corpus` or a stock builder of speech (`features.Audio`) prepared.

    Args:
        split: of a corpus that has splits; what the records of files are called.

    Raises:
        CorpusError: names the file, and the line of a manifest, and says what is wrong.
    """
    path = pathlib.Path(source)
    magic = glob.has_magic(source) and not path.exists()
    if path.suffix == ".jsonl":
        texts = sorted(map(pathlib.Path, glob.glob(source, recursive=True))) if magic else [path]
        if magic or (path.is_file() and holds_text(path)):
            mixed = [str(file) for file in texts if file.stat().st_size and not holds_text(file)]
            if mixed or not texts:
                raise CorpusError(
                    f"{source}: {mixed[0] if mixed else 'no such file'}: needs lines with 'text' and no 'audio'"
                )
            return TextLines(path.parent.resolve().name if magic else path.stem, path, split, texts)
    if path.suffix in _MANIFESTS:
        return AudioFiles(path.stem, path, split, _manifest(path))
    if magic:
        root = pathlib.Path(os.path.dirname(re.split(r"[*?[]", source)[0]))
        paths = sorted(map(pathlib.Path, glob.glob(source, recursive=True)))
        return AudioFiles(root.resolve().name, root, split, _files(paths, root))
    if path.is_dir():
        if not any(path.glob("**/dataset_info.json")):
            return AudioFiles(path.resolve().name, path, split, _files(path.rglob("*"), path))
        prepared = version_directory(path)
        if any("audio" in feature for feature in features(prepared).values()):
            return PreparedSpeech(prepared, split)
    return open_corpus(source, split)


def _files(paths: Iterable[pathlib.Path], root: pathlib.Path) -> Iterable[Clip]:
    for path in paths:
        if path.suffix.lower() in AUDIO_SUFFIXES:
            transcript = path.with_suffix(".txt")
            text = transcript.read_text().strip() if transcript.is_file() else ""
            yield Clip(_identity(path, root), None, text, path=path)


def _identity(path: pathlib.Path, root: pathlib.Path) -> str:
    return pathlib.PurePath(os.path.relpath(path, root)).with_suffix("").as_posix()


def _jsonl(path: pathlib.Path) -> Iterable[tuple[int, Any]]:
    lines = path.read_text().split("\n")  # Unicode has other line ends, which JSON does not escape
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise CorpusError(f"{path}:{number}: not JSON ({error})") from error


def _tsv(path: pathlib.Path) -> Iterable[tuple[int, Any]]:
    rows = csv.reader(path.read_text().removesuffix("\n").split("\n"), delimiter="\t", quoting=csv.QUOTE_NONE)
    columns = next(rows, [])
    for number, row in enumerate(rows, 2):
        if len(row) != len(columns):
            raise CorpusError(f"{path}:{number}: {len(row)} columns, the first line names {len(columns)}")
        yield number, dict(zip(columns, row, strict=True))


_MANIFESTS = {".jsonl": _jsonl, ".tsv": _tsv}


def _manifest(path: pathlib.Path) -> Iterable[Clip]:
    if not path.is_file():
        raise CorpusError(f"{path}: no such manifest")
    for number, fields in _MANIFESTS[path.suffix](path):
        where = f"{path}:{number}"
        if not isinstance(fields, dict) or not fields.get("audio"):
            raise CorpusError(f"{where}: needs an 'audio' path")
        unknown = sorted(fields.keys() - set(FIELDS))
        if unknown:
            raise CorpusError(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(FIELDS)}")
        audio = path.parent / fields["audio"]
        try:
            words = fields.get("words") or []
            spans = [(word["start_ms"], word["end_ms"]) for word in words]
            yield Clip(
                id=str(fields.get("id") or _identity(audio, path.parent)),
                audio=None,
                text=str(fields.get("text") or ""),
                words=tuple(word["word"] for word in words),
                spans_ms=np.array(spans, np.int32).reshape(-1, 2),
                speaker=str(fields.get("speaker") or ""),
                path=audio,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorpusError(f"{where}: words must be a list of {{word, start_ms, end_ms}} ({error!r})") from error
