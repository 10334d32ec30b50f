"""Synthetic unit records, and the string form of documents built in the slow, obvious way for tests to compare with."""

import itertools
import pathlib

import numpy as np

from spirit_jax.data.config import DataConfig, SourceConfig
from spirit_jax.data.records import RecordWriter
from spirit_jax.data.sequences import Recipe
from spirit_jax.data.unit_record import UnitRecord
from spirit_jax.units import SpeechUnits

RECIPES: dict[str, Recipe] = {"speech": "speech", "aligned": "interleaved", "prose": "text"}
"""Sources that `make_records` writes, and their recipes."""


def word(index: int) -> str:
    """A word of letters, different for each index."""
    return "".join(chr(97 + index // 26**place % 26) for place in (2, 1, 0)) + "xyz"[index % 3]


def runs(rng: np.random.Generator, length: int, size: int) -> np.ndarray:
    """Units in runs of one to four equal ones."""
    return np.repeat(rng.integers(0, size, length), rng.integers(1, 5, length))[:length]


def speech_record(
    rng: np.random.Generator, number: int, words: int, *, expressive: bool = True, pause: int = 120
) -> UnitRecord:
    """An aligned utterance of `words` different words of 40..400 ms, with pauses of up to `pause` ms between them."""
    durations, pauses = rng.integers(40, 400, words), rng.integers(0, pause + 1, words + 1)
    starts = np.cumsum(pauses[:-1]) + np.cumsum(durations) - durations
    total = int(starts[-1] + durations[-1] + pauses[-1] + 40)
    frames = total // 40
    units = SpeechUnits(
        runs(rng, frames, 501),
        runs(rng, -(-frames // 2), 64) if expressive else None,
        rng.integers(0, 100, -(-frames // 25)) if expressive else None,
    )
    names = tuple(word(number * 7 + index) for index in range(words))
    spans = np.stack([starts, starts + durations], 1).astype(np.int32)
    return UnitRecord(f"utterance-{number}", " ".join(names).capitalize() + ".", names, spans, units, total, "nobody")


def text_record(rng: np.random.Generator, number: int, words: int) -> UnitRecord:
    """A document of `words` random words."""
    return UnitRecord(f"document-{number}", " ".join(word(int(index)) for index in rng.integers(0, 2000, words)))


def units_of(record: UnitRecord) -> SpeechUnits:
    """The units of a speech record."""
    assert record.units is not None
    return record.units


def make_records(
    directory: pathlib.Path, *, records: int = 40, words: tuple[int, int] = (3, 30), seed: int = 0
) -> None:
    """Write record directories `speech`, `aligned` and `prose`, each with a train split and a small test split."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", records), ("test", 19)):
        for name in RECIPES:
            with RecordWriter(directory / name, split, shards=3 if split == "train" else 1) as writer:
                for number in range(count):
                    length = int(rng.integers(*words))
                    make = text_record if name == "prose" else speech_record
                    writer.write(make(rng, number, length))


def mixture_config(directory: pathlib.Path, **settings) -> DataConfig:
    """The mixture of the sources that `make_records` wrote, with fields of `DataConfig` as settings."""
    sources = {
        name: SourceConfig(str(directory / name), recipe, held_out_split="test") for name, recipe in RECIPES.items()
    }
    return DataConfig(sources, **settings)


def frames_of(record: UnitRecord, first_word: int, last_word: int) -> list[int]:
    """Frames whose center lies between the start of one word and the end of another, found by testing every frame."""
    start, end = record.spans_ms[first_word][0], record.spans_ms[last_word - 1][1]
    return [frame for frame in range(len(units_of(record).hubert)) if start <= 40 * frame + 20 < end]


def unit_string(record: UnitRecord, frames: list[int], *, expressive: bool = True) -> str:
    """String form of consecutive frames: runs collapsed, sorted by time (docs/formats.md, "Speech tokenizer")."""
    tokens, units = [], units_of(record)
    for order, name, stream, every, rate in (
        (0, "St", units.style, 25, 1.0),
        (1, "Pi", units.pitch, 2, 12.5),
        (2, "Hu", units.hubert, 1, 24.99),
    ):
        if order < 2 and not expressive:
            continue
        assert stream is not None
        values = [int(stream[frame // every]) for frame in frames[::every]]
        for index, value in enumerate(values):
            if name == "St" or index == 0 or values[index - 1] != value:
                tokens.append((index / rate, order, f"[{name}{value}]"))
    return "".join(token for _, _, token in sorted(tokens))


def string_form(record: UnitRecord, spans: list[tuple[str, int, int]], *, expressive: bool = True) -> str:
    """`[Text]the cat [Speech]...` from spans of `("text" or "speech", first word, last word + 1)`."""
    parts = []
    for number, (modality, first, last) in enumerate(spans, 1):
        if modality == "text":
            parts.append("[Text]" + " ".join(record.words[first:last]) + (" " if number < len(spans) else ""))
        else:
            units = unit_string(record, frames_of(record, first, last), expressive=expressive)
            parts.append("[Speech]" + units)
    return "".join(parts)


def spans_of(record: UnitRecord, string: str, *, expressive: bool = True) -> list[tuple[str, int, int]]:
    """The spans of an interleaved document's string form, found by trying every possible end of each."""
    spans, at, pieces = [], 0, string.replace("[Text]", "\n[Text]").replace("[Speech]", "\n[Speech]").split("\n")[1:]
    for number, piece in enumerate(pieces):
        modality = "text" if piece.startswith("[Text]") else "speech"
        last = number == len(pieces) - 1
        ends = [len(record.words)] if last else range(at + 1, len(record.words))
        for end in ends:
            candidate = string_form(record, [(modality, at, end)], expressive=expressive)
            if piece == candidate + (" " if modality == "text" and not last else ""):
                next_piece = "" if last else pieces[number + 1]
                # words without a change of units leave the end open; the first word of a following text decides it
                if not next_piece.startswith("[Text]") or next_piece[6:].startswith(record.words[end]):
                    break
        else:
            raise AssertionError(f"span {number} does not match any words from word {at} on: {piece[:80]}")
        spans.append((modality, at, end))
        at = end
    assert [second[0] != first[0] for first, second in itertools.pairwise(spans)] == [True] * (len(spans) - 1)
    return spans
