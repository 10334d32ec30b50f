"""Manifests: a line for each utterance, as JSON objects or as tab-separated columns.

Example::

    {"audio": "wav/1.flac", "text": "Hello you.", "words": [{"word": "Hello", "start_ms": 80, "end_ms": 410}, ...]}
"""

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from spirit_jax.core.files import read_text
from spirit_jax.corpora.input_path import InputPath
from spirit_jax.corpora.readers.audio_files import AudioFiles, relative_id
from spirit_jax.corpora.utterance import CorpusError, Utterance

FIELDS = ("audio", "id", "text", "speaker", "words")
"""Fields of a line. Only `audio` is required: a path relative to the manifest."""

_REMARKS = ("score", "seconds", "transcript_by")
"""Fields that `align` adds for people and filters; reading ignores them, and `score` and `interpolated` of a word."""


def is_manifest(source: InputPath) -> bool:
    """Whether the input has the suffix of a manifest."""
    return source.path.suffix in _LINES


def open_manifest(source: InputPath, split: str) -> AudioFiles:
    """Open the audio files that a manifest lists; the id of a line defaults to its audio path without the suffix.

    Raises:
        CorpusError: names the manifest and the line.
    """
    if not source.path.is_file():
        raise CorpusError(f"{source.path}: no such manifest")
    return AudioFiles(source.path.stem, source.path, split, _utterances(source.path))


def _json_lines(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    """Line numbers and values of a JSONL file."""
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise CorpusError(f"{path}:{number}: not JSON ({error})") from error


def _table_lines(path: pathlib.Path) -> Iterator[tuple[int, Any]]:
    """Line numbers and values of a table of tab-separated columns, which its first line names."""
    header, *rows = (line.split("\t") for line in _lines(path))
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise CorpusError(f"{path}:{number}: {len(row)} columns, the first line names {len(header)}")
        yield number, dict(zip(header, row, strict=True))


def _lines(path: pathlib.Path) -> list[str]:
    """Lines without their ends; other line ends of Unicode are part of a transcript."""
    text = read_text(path, CorpusError).replace("\r\n", "\n")
    return text.removesuffix("\n").split("\n")


_LINES: dict[str, Callable[[pathlib.Path], Iterator[tuple[int, Any]]]] = {".jsonl": _json_lines, ".tsv": _table_lines}
"""How the lines of each form of manifest are read, by suffix."""


def _utterances(path: pathlib.Path) -> Iterator[Utterance]:
    for number, fields in _LINES[path.suffix](path):
        where = f"{path}:{number}"
        if not isinstance(fields, dict) or not isinstance(fields.get("audio"), str) or not fields["audio"]:
            raise CorpusError(f"{where}: needs an 'audio' path")
        unknown = sorted(fields.keys() - {*FIELDS, *_REMARKS})
        if unknown:
            raise CorpusError(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(FIELDS)}")
        audio = path.parent / fields["audio"]
        try:
            words = fields.get("words") or []
            spans = [(word["start_ms"], word["end_ms"]) for word in words]
            yield Utterance(
                id=str(fields.get("id") or relative_id(audio, path.parent)),
                audio=audio,
                text=str(fields.get("text") or ""),
                words=tuple(word["word"] for word in words),
                spans_ms=np.array(spans, np.int32).reshape(-1, 2),
                speaker=str(fields.get("speaker") or ""),
                transcript_required=False,
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CorpusError(f"{where}: words must be a list of {{word, start_ms, end_ms}} ({error!r})") from error
