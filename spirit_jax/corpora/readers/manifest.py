"""Manifests: a line for each utterance, as JSON objects or as columns that the first line names.

Example::

    {"audio": "wav/1.flac", "text": "Hello you.", "words": [{"word": "Hello", "start_ms": 80, "end_ms": 410}, ...]}

A `.json` file may also hold one list. A file of fairseq has a folder in its first line, then a path and a number of
samples a line. Each form may be compressed (`.gz`). `fields.py` has the names of the fields.
"""

import csv
import gzip
import io
import logging
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from spirit_jax.core.bucket_cache import address_of
from spirit_jax.core.errors import printable
from spirit_jax.core.files import is_encodable, parse_json, read_bytes
from spirit_jax.corpora.input_path import InputPath
from spirit_jax.corpora.readers import fields
from spirit_jax.corpora.readers.audio_files import AudioFiles
from spirit_jax.corpora.utterance import CorpusError, Utterance

_EXPANSION, _LEAST_EXPANDED = 100, 1 << 26
"""A compressed manifest may expand to this many times its size, and to this many bytes in any case."""

Entry = tuple[int, Any]
"""Line number, and the value of the line or the error that makes it unusable."""


def is_manifest(source: InputPath) -> bool:
    """Whether the input has the suffix of a manifest."""
    return source.matches is None and _form(source.path) in _FORMS and not source.path.is_dir()


def open_manifest(source: InputPath, split: str) -> AudioFiles:
    """Open the audio files that a manifest lists; the id of a line defaults to its audio path without the suffix.

    A line that cannot be used is an error when it is read, not here.

    Raises:
        CorpusError: there is no such file, it is not text, or no line of it can be used; names the file.
    """
    path = source.path
    if not os.path.lexists(path):
        raise CorpusError(f"{path}: no such manifest")
    address = address_of(path)
    folder = path.parent if address is None else address.rpartition("/")[0]  # what the paths in it are relative to
    return AudioFiles(path.name.split(".")[0], path, split, _utterances(path, folder), folder)


def _form(path: pathlib.Path) -> str:
    """The suffix that tells the form of a manifest."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


def _utterances(path: pathlib.Path, folder: pathlib.Path | str) -> Iterator[Utterance | CorpusError]:
    content = read_bytes(path, CorpusError)
    if path.suffix == ".gz":
        content = expand(content, path)
    # bytes that are not UTF-8 become surrogates here, so that only their lines are unusable
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape").replace("\r\n", "\n")
    unused: set[str] = set()
    for number, value in _FORMS[_form(path)](path, text):
        where = f"{path}:{number}"
        try:
            if isinstance(value, CorpusError):
                raise value
            yield fields.utterance(value, where, folder)
            unused |= fields.unused(value)
        except CorpusError as error:
            yield error
    if unused:
        logging.warning("%s: fields that are not used: %s", path, printable(", ".join(sorted(unused)))[:200])


def expand(content: bytes, path: pathlib.Path) -> bytes:
    """Decompress the content of a `.gz` file of text.

    Raises:
        CorpusError: it is damaged, or expands to far more than text does; names the file.
    """
    limit = _LEAST_EXPANDED + _EXPANSION * len(content)
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            expanded = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(f"{path}: cannot be decompressed ({error})") from error
    if len(expanded) > limit:
        raise CorpusError(f"{path}: expands to more than {limit} bytes")
    return expanded


def _check_utf8(line: str, where: str) -> None:
    if not is_encodable(line):
        raise CorpusError(f"{where}: not UTF-8 text; convert the file to UTF-8")


def _json_entries(path: pathlib.Path, text: str) -> Iterator[Entry]:
    """Values of a JSONL file, or of a list or an object of objects in one JSON text."""
    start = text[:100].lstrip()[:1]
    if start == "[" or (start == "{" and _form(path) == ".json"):
        try:
            whole = parse_json(text, path, CorpusError)
        except CorpusError:
            whole = None  # not one value: lines
        if isinstance(whole, dict) and not fields.has_audio(whole) and all(isinstance(v, dict) for v in whole.values()):
            whole = [{"id": name, **value} for name, value in whole.items()]
        if whole is not None:
            yield from enumerate(whole if isinstance(whole, list) else [whole], 1)
            return
    for number, line in enumerate(_lines(text), 1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                _check_utf8(line, where)
                yield number, parse_json(line, where, CorpusError)
            except CorpusError as error:
                yield number, error


def _tsv_entries(path: pathlib.Path, text: str) -> Iterator[Entry]:
    """Rows of tab-separated columns, which the first line names; or a list of files as fairseq writes it."""
    header, *rows = _lines(text)
    if "\t" not in header and rows and rows[0].count("\t") == 1 and rows[0].split("\t")[1].isdigit():
        folder = header.rstrip("/")
        yield from _rows(path, ["audio", "samples"], [f"{folder}/{row}".split("\t") for row in rows])
        return
    yield from _rows(path, header.split("\t"), [row.split("\t") for row in rows])


def _csv_entries(path: pathlib.Path, text: str) -> Iterator[Entry]:
    """Rows of columns that commas separate, or semicolons or bars; the first line names them."""
    header = text.split("\n", 1)[0]
    delimiter = next((each for each in ",;|\t" if each in header), ",")
    try:
        first, *rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)) or [[]]
    except csv.Error as error:
        raise CorpusError(f"{path}: not a table that can be read ({error})") from error
    yield from _rows(path, first, rows)


def _rows(path: pathlib.Path, header: list[str], rows: list[list[str]]) -> Iterator[Entry]:
    """The rows of a table as objects."""
    _check_utf8("".join(header), f"{path}:1")
    names = [name.strip() for name in header]
    if not set(names) & {*fields.AUDIO, *fields.FILES}:
        known = ", ".join((*fields.AUDIO, *fields.FILES))
        raise CorpusError(
            f"{path}:1: needs an 'audio' path: no column is named {known}; found {', '.join(names)[:200]}"
        )
    for number, row in enumerate(rows, 2):
        where = f"{path}:{number}"
        if not row:
            continue
        if len(row) != len(names):
            yield number, CorpusError(f"{where}: {len(row)} columns, the first line names {len(names)}")
        elif not is_encodable("".join(row)):
            yield number, CorpusError(f"{where}: not UTF-8 text; convert the file to UTF-8")
        else:
            yield number, dict(zip(names, row, strict=True))


def _lines(text: str) -> list[str]:
    """Lines without their ends; other line ends of Unicode are part of a transcript."""
    return text.removesuffix("\n").split("\n")


_FORMS: dict[str, Callable[[pathlib.Path, str], Iterator[Entry]]] = {
    ".jsonl": _json_entries,
    ".json": _json_entries,
    ".tsv": _tsv_entries,
    ".csv": _csv_entries,
}
"""Readers of the lines of each form of manifest, by suffix."""
