"""Pairs of an input and an output for supervised fine-tuning: `DIR/SPLIT.jsonl`, a pair or a conversation a line.

    {"id": "a", "input": ["units:[Hu3][Hu7]", "text: Which day is it?"], "output": ["text: Sunday"]}
    {"turns": [{"input": ["text:Hello"], "output": ["units:[Hu9]"]}, {"input": [...], "output": [...]}]}

A segment is `text:...` or `units:[Hu1][Hu2]...`, as a prompt of `generate` has them; `python -m spirit_jax.pairs` turns
`speech:FILE` into units. A document has the ids of the string form of all segments (docs/formats.md, "Prompts and
generation"), put together by a template. The model learns the outputs and, after the last one, the end of the document.
The rest it only reads. A modality token at the start of an output is learned too, so that the model can choose the
modality.
"""

import dataclasses
import hashlib
import os
import pathlib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from spirit_jax import units as speech_units
from spirit_jax.core.files import parse_json, read_bytes
from spirit_jax.data.packing import only_read
from spirit_jax.data.unit_record import RecordError
from spirit_jax.data.word_pieces import shared_prefix
from spirit_jax.vocabulary import SPEECH_TOKEN, Vocabulary

TOKENIZER_KEY = "speech_tokenizer"
"""Key of a first line that names the speech tokenizer that encoded the units, by its fingerprint."""

_UNITS = re.compile(r"(\[(?:Hu|Pi|St)[0-9]+\])+")
_UNIT = re.compile(r"\[(Hu|Pi|St)([0-9]+)\]")


@dataclasses.dataclass(frozen=True)
class Template:
    """Text in front of the input and of the output of a turn. Where it follows speech, [Text] comes first."""

    before_input: str = ""
    before_output: str = ""


TEMPLATES: Mapping[str, Template] = {
    "plain": Template(),
    "asr": Template(before_output="[ASR]"),
    "tts": Template(before_output="[TTS]"),
    "intent": Template(before_output=" Intent:"),
    "emotion": Template(before_output=" Emotion:"),
    "answer": Template(before_output=" Answer:"),
    "chat": Template(before_input="\nUser: ", before_output="\nAssistant: "),
}
"""The templates by name. Prompts of `generate` need the same text before the answer: `--input text:" Intent:"`."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """Input and output of the model, as segments `text:...` and `units:...`."""

    input: tuple[str, ...]
    output: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Pair:
    """One line: a pair, or a conversation of several turns."""

    id: str
    """The name of the line in messages."""
    turns: tuple[Turn, ...]

    def validate(self) -> None:
        """Does nothing: a line is checked when it is read. The loader calls this method of every record."""


class LineFile:
    """The lines of a JSONL file, read one at a time; the first may name a speech tokenizer.

    Attributes:
        path: the file.
        directory: the directory that holds it.
        units: fingerprint of the speech tokenizer that encoded the units, "" where the file names none.
        fingerprint: sha256 (hex) of the file.

    Raises:
        RecordError: the file cannot be read.
    """

    def __init__(self, path: pathlib.Path):
        content = read_bytes(path, RecordError)
        self.path, self.directory = path, path.parent
        self.fingerprint = hashlib.sha256(content).hexdigest()
        places, start = [], 0
        for line in content.split(b"\n"):
            if line.strip():
                places.append((start, len(line)))
            start += len(line) + 1
        self.units = ""
        if places:
            first = content[: places[0][0] + places[0][1]]
            if f'"{TOKENIZER_KEY}"'.encode() in first:
                self.units = _tokenizer_of(first, path)
                places = places[1:]
        self._places = np.array(places, np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._places)

    def check_units(self, known: Collection[str]) -> None:
        """Check that one of these speech tokenizers encoded the units; a file that names none is trusted.

        Args:
            known: fingerprints of the speech tokenizers.

        Raises:
            RecordError: another one did.
        """
        if self.units and self.units not in known:
            raise RecordError(
                f"{self.path}: its units are of the speech tokenizer {self.units[:12]}, the checkpoint has "
                f"{' or '.join(sorted(each[:12] for each in known)) or 'none'}: encode the audio again"
            )

    def entry(self, index: int) -> tuple[str, dict[str, Any]]:
        """The place of a line, for messages, and its object.

        Raises:
            RecordError: the line is not a JSON object; names the file and the line.
        """
        start, size = self._places[index].tolist()
        with self.path.open("rb") as file:
            file.seek(start)
            content = file.read(size)
        where = f"{self.path}, pair {index + 1}"
        found = parse_json(content.decode("utf-8", errors="replace"), where, RecordError)
        if not isinstance(found, dict):
            raise RecordError(f"{where}: an object expected, found a {type(found).__name__}")
        return where, found


def _tokenizer_of(first: bytes, path: pathlib.Path) -> str:
    found = parse_json(first.decode("utf-8", errors="replace"), path, RecordError)
    if not isinstance(found, dict) or not isinstance(found.get(TOKENIZER_KEY), str) or len(found) != 1:
        raise RecordError(f'{path}: its first line should be {{"{TOKENIZER_KEY}": FINGERPRINT}} or a pair')
    return found[TOKENIZER_KEY]


def split_file(directory: str | os.PathLike, split: str) -> pathlib.Path:
    """The file of a split.

    Raises:
        RecordError: there is none; the message lists the splits that are there.
    """
    path = pathlib.Path(directory) / f"{split}.jsonl"
    if not path.is_file():
        there = sorted(file.stem for file in pathlib.Path(directory).glob("*.jsonl"))
        raise RecordError(f"{directory}: no split {split!r} ({path.name}), it has {', '.join(there) or 'none'}")
    return path


class PairRecords(LineFile):
    """Random access to the pairs of one split; has the interface of `records.RecordSource`.

    Attributes:
        damaged: always empty; damaged lines raise when they are read.
    """

    def __init__(self, directory: str | os.PathLike, split: str):
        super().__init__(split_file(directory, split))
        self.damaged: dict[int, str] = {}

    def __getitem__(self, index: int) -> Pair:
        """The pair at an index.

        Raises:
            RecordError: it is no pair, or an output is empty; names the file and the pair.
        """
        where, entry = self.entry(index)
        name = name_of(where, entry)
        if ("turns" in entry) == ("input" in entry):
            raise RecordError(f'{name}: either "input" and "output", or "turns" with both expected')
        turns = entry.get("turns", [entry])
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
            raise RecordError(f'{name}: "turns" must be a list of objects with input and output')
        return Pair(name, tuple(_turn(turn, name) for turn in turns))


def name_of(where: str, entry: Mapping[str, Any]) -> str:
    """The place of a line with its id, if it has one, for messages."""
    return f"{where} (id {str(entry['id'])[:40]!r})" if "id" in entry else where


def _turn(turn: Mapping[str, Any], name: str) -> Turn:
    parts = {}
    for key in ("input", "output"):
        parts[key] = segments(turn.get(key), key, name)
    if not has_content(parts["output"]):
        raise RecordError(f'{name}: "output" is empty: there is nothing to learn')
    return Turn(**parts)


def segments(value: Any, key: str, name: str) -> tuple[str, ...]:
    """Check the segments of one side of a pair.

    Raises:
        RecordError: a value that is no list of segments, audio that is not encoded, or malformed units.
    """
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise RecordError(f'{name}: "{key}" must be a list of "text:..." and "units:[Hu1]...", found {str(value)[:60]}')
    for part in value:
        kind, _, content = part.partition(":")
        if kind == "speech":
            raise RecordError(f"{name}: {part[:60]!r} is audio: encode the file first with python -m spirit_jax.pairs")
        if kind not in ("text", "units") or (kind == "units" and not _UNITS.fullmatch(content)):
            raise RecordError(f"{name}: {part[:60]!r}: text:... or units:[Hu1][Hu2]... expected")
    return tuple(value)


def has_content(parts: Sequence[str]) -> bool:
    """Whether segments hold anything."""
    return any(part.partition(":")[2] for part in parts)


class PairSequencer:
    """Makes the document of a pair.

    Args:
        vocabulary: of the model.
        template: a name of `TEMPLATES`.
        max_ids: ids of the longest document: the length of a row + 1.
    """

    is_random = False

    def __init__(self, vocabulary: Vocabulary, template: str, max_ids: int):
        self.vocabulary, self.template, self.max_ids = vocabulary, TEMPLATES[template], max_ids

    def __call__(self, record: Pair, rng: np.random.Generator | None = None) -> list[Int32[np.ndarray, " _N"]]:
        """The document of a pair, with ids that are not learned marked by `packing.only_read`.

        Raises:
            RecordError: units that the vocabulary lacks, or a document that is longer than a row.
        """
        del rng
        ids = self.encode(record)
        if len(ids) > self.max_ids:
            raise RecordError(
                f"{record.id}: it takes {len(ids)} tokens, a row has {self.max_ids}: the answer would be cut; raise "
                "sequence_length, or leave such pairs out with data.on_bad_record skip"
            )
        return [ids]

    def encode(self, record: Pair) -> Int32[np.ndarray, " N"]:
        """The document of a pair, however long."""
        parts = [only_read(np.array(self.vocabulary.prefix, np.int32))]
        for run in render(record.turns, self.template):
            modality = self.vocabulary.text_id if run.kind == "text" else self.vocabulary.speech_id
            content = self._encode(run.kind, run.string, record.id)
            whole = np.array([modality, *content], np.int32)
            start, before = 0, ""
            for string, is_learned in run.pieces:
                before += string
                end = 1 + shared_prefix(self._encode(run.kind, before, record.id), content)
                if not is_learned:
                    whole[start:end] = only_read(whole[start:end])
                start = max(start, end)
            parts.append(whole)
        return np.concatenate([*parts, np.array([self.vocabulary.eos_id], np.int32)])

    def _encode(self, kind: str, string: str, name: str) -> Sequence[int]:
        """Ids of a stretch of text, in which tokens that are spelled out stay text, or of unit tokens."""
        if kind == "text":
            return self.vocabulary.encode_text(string)
        self._check_units(string, name)
        return self.vocabulary.encode(SPEECH_TOKEN + string)[len(self.vocabulary.prefix) + 1 :]

    def _check_units(self, string: str, name: str) -> None:
        for stream, value in _UNIT.findall(string):
            index = speech_units.NAMES.index(stream)
            if index not in self.vocabulary.streams or int(value) >= speech_units.SIZES[index]:
                raise RecordError(f"{name}: the model's vocabulary has no [{stream}{value}]")


@dataclasses.dataclass
class Run:
    """A stretch of a document in one modality. It begins with the modality's token."""

    kind: str
    """"text" or "units"."""
    pieces: list[tuple[str, bool]]
    """Strings, and whether the model learns each."""

    @property
    def string(self) -> str:
        """All strings joined."""
        return "".join(string for string, _ in self.pieces)


def render(turns: Sequence[Turn], template: Template) -> list[Run]:
    """The stretches of a conversation. The modality changes from each to the next."""
    runs: list[Run] = []

    def add(part: str, is_learned: bool) -> None:
        kind, _, content = part.partition(":")
        if content:
            if not runs or runs[-1].kind != kind:
                runs.append(Run(kind, []))
            runs[-1].pieces.append((content, is_learned))

    for turn in turns:
        for part in (f"text:{template.before_input}", *turn.input, f"text:{template.before_output}"):
            add(part, is_learned=False)
        for part in turn.output:
            add(part, is_learned=True)
    return runs


def check_template(name: str) -> None:
    """Check the name of a template.

    Raises:
        ValueError: it is none of `TEMPLATES`.
    """
    if name not in TEMPLATES:
        raise ValueError(f"template {name!r} is none of {', '.join(TEMPLATES)}")
