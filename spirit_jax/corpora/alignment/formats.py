"""Word times in the files of other tools: one table of formats, each a small function from text to words.

| format | written by |
|---|---|
| `.TextGrid` | Praat, the Montreal Forced Aligner |
| `.lab` with times | LibriTTSLabel (seconds), HTK and HTS (units of 100 ns) |
| `.alignment.txt` | LibriSpeech alignments |
| `.ctm` | NIST tools, Kaldi, NeMo |
| `.json` | Whisper, WhisperX, Gentle, the transcription API of OpenAI, moshi-finetune, lists of words |

Files are data of strangers: a line that cannot be read raises `CorpusError`, which names the file and the line.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from spirit_jax.core.files import decode_text, parse_json, read_bytes
from spirit_jax.corpora.alignment.aligner import WordTime, fill_gaps
from spirit_jax.corpora.utterance import CorpusError, Utterance

TimedWord = tuple[str, float | None, float | None]
"""A word, its start and its end in seconds; None where the tool found no time."""

_SILENCES = {"", "sp", "sil", "spn", "<eps>", "<sil>", "<p:>", "pau", "<unk>", "{sl}", "{ns}", "!sil"}
"""Labels in lower case that are no words."""

_HTK_SECONDS = 1e-7
_MAIN_SPEAKER = "SPEAKER_MAIN"
_LONGEST_S = 1e6


@dataclasses.dataclass(frozen=True, eq=False)
class AlignedWords:
    """The words of one utterance and their times."""

    words: tuple[str, ...]
    """Words in order."""
    spans_ms: Int[np.ndarray, "W 2"]
    """Start and end of each word in milliseconds. Words without a time share the gap between their neighbors."""


@dataclasses.dataclass(frozen=True)
class AlignmentFormat:
    """One kind of file with word times."""

    suffix: str
    """End of the names of its files; case does not count."""
    parse: Callable[[str, str], Mapping[str, Sequence[TimedWord]] | None]
    """From the text of a file and its name to the words of each utterance by id, "" for the utterance that the file is
    named after; None if the file is of another format."""
    several: bool = False
    """Whether a file holds several utterances and names their ids."""


def format_suffix(path: pathlib.Path) -> str:
    """The suffix of a file with word times, as its name has it; "" for other files."""
    lower = path.name.lower()
    size = next((len(each.suffix) for each in ALIGNMENT_FORMATS if lower.endswith(each.suffix.lower())), 0)
    return path.name[len(path.name) - size :]


def with_words(utterance: Utterance, aligned: AlignedWords | None) -> Utterance:
    """An utterance with the words of a file, which are its text too if it has none; unchanged without a file."""
    if aligned is None:
        return utterance
    text = utterance.text if utterance.text.strip() else " ".join(aligned.words)
    return dataclasses.replace(utterance, text=text, words=aligned.words, spans_ms=aligned.spans_ms)


def read_alignment(path: pathlib.Path) -> dict[str, AlignedWords] | None:
    """Read a file with word times.

    Returns:
        Words by the id of the utterance, "" for the one that the file is named after; None if no format knows the file.

    Raises:
        CorpusError: the file cannot be read; names the file, the line and what was expected.
    """
    candidates = [each for each in ALIGNMENT_FORMATS if path.name.lower().endswith(each.suffix.lower())]
    if not candidates:
        return None
    content = read_bytes(path, CorpusError)
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):  # Praat writes UTF-16 where a label is not ASCII
        content = content.decode("utf-16", "replace").encode()
    text = decode_text(content, path, CorpusError)
    for each in candidates:
        found = each.parse(text, str(path))
        if found is not None:
            return {name: in_milliseconds(words, str(path)) for name, words in found.items()}
    return None


def in_milliseconds(words: Sequence[TimedWord], where: str) -> AlignedWords:
    """Words with times in milliseconds, without silences; a word without a time shares the gap between its neighbors.

    Args:
        words: text, start and end in seconds; a missing time is None.
        where: the file, for messages.

    Raises:
        CorpusError: a time is negative, implausibly large, or ends before it starts.
    """
    words = [(text.strip(), start, end) for text, start, end in words if text.strip().lower() not in _SILENCES]
    times: list[WordTime | None] = []
    for text, start, end in words:
        if start is None or end is None:
            times.append(None)
            continue
        if not 0 <= start <= end < _LONGEST_S:
            raise CorpusError(f"{where}: {text!r} at {start}..{end} s: needs a start that is not after its end")
        times.append(WordTime(round(start * 1000), round(end * 1000), 1.0))
    last_ms = max((time.end_ms for time in times if time), default=0)
    filled = fill_gaps(times, last_ms)
    spans_ms = np.array([(time.start_ms, time.end_ms) for time in filled], np.int32).reshape(-1, 2)
    return AlignedWords(tuple(text for text, _, _ in words), spans_ms)


def _number(text: Any, where: str) -> float:
    try:
        return float(text)
    except (TypeError, ValueError, OverflowError) as error:
        raise CorpusError(f"{where}: needs a time in seconds, found {text!r}") from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, with their numbers."""
    return ((number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip())


def _parse_librispeech(text: str, where: str) -> dict[str, list[TimedWord]]:
    """Lines such as `84-121123-0000 ",GO,,DO" "0.490,0.890,0.960,1.270"`: words and their ends; "" is silence."""
    utterances = {}
    for number, line in _lines(text):
        match = re.fullmatch(r'(\S+)\s+"([^"]*)"\s+"([^"]*)"\s*', line)
        words, ends = (match[2].split(","), match[3].split(",")) if match else ([], [])
        if match is None or len(words) != len(ends):
            raise CorpusError(f'{where}:{number}: needs ID "WORD,WORD,..." "END,END,..." with an end for each word')
        seconds = [_number(end, f"{where}:{number}") for end in ends]
        utterances[match[1]] = list(zip(words, [0.0, *seconds[:-1]], seconds, strict=True))
    return utterances


def _parse_ctm(text: str, where: str) -> dict[str, list[TimedWord]]:
    """Lines `ID CHANNEL START DURATION WORD [SCORE]` in seconds; lines with `;;` are comments."""
    utterances: dict[str, list[TimedWord]] = {}
    for number, line in _lines(text):
        if line.lstrip().startswith(";;"):
            continue
        columns = line.split()
        if len(columns) < 5:
            raise CorpusError(f"{where}:{number}: needs ID CHANNEL START DURATION WORD, found {line[:60]!r}")
        start, duration = (_number(column, f"{where}:{number}") for column in columns[2:4])
        utterances.setdefault(columns[0], []).append((columns[4], start, start + duration))
    return utterances


def _parse_lab(text: str, where: str) -> dict[str, list[TimedWord]] | None:
    """Lines `START END [WORD]`; whole numbers are units of 100 ns. A file without times is a transcript: None."""
    rows = [(number, line.split(None, 2)) for number, line in _lines(text)]
    if not rows or not all(len(row) >= 2 and _is_number(row[0]) and _is_number(row[1]) for _, row in rows[:1]):
        return None
    words = []
    unit = _HTK_SECONDS if all("." not in time for _, row in rows for time in row[:2]) else 1.0
    for number, row in rows:
        if len(row) < 2:
            raise CorpusError(f"{where}:{number}: needs START END WORD, found {' '.join(row)[:60]!r}")
        start, end = (_number(time, f"{where}:{number}") * unit for time in row[:2])
        words.append((row[2] if len(row) > 2 else "", start, end))
    return {"": words}


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d*)?(e-?\d+)?", text) is not None


_GRID_TOKEN = re.compile(r'"((?:[^"]|"")*)"|<(exists|absent)>|(?<![\w\[.])-?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?(?![\w\].])')


def _parse_textgrid(text: str, where: str) -> dict[str, list[TimedWord]]:
    """Praat's long and short text files. The tier with words is named `words`, or ends in it; else it is the first.

    Both forms are the same sequence of strings and numbers. The long form adds names of fields and numbers of items in
    brackets, which are left out.
    """
    tokens = _GRID_TOKEN.finditer(text)
    tiers: dict[str, list[TimedWord]] = {}
    try:
        kind, object_class = _string(tokens), _string(tokens)
        if (kind, object_class) != ("ooTextFile", "TextGrid"):
            raise CorpusError(f"{where}: not a TextGrid (its first strings are {kind!r}, {object_class!r})")
        _skip_bounds(tokens)
        count = int(_real(tokens)) if next(tokens)[2] == "exists" else 0
        for number in range(count):
            tier_class, name = _string(tokens), _string(tokens)
            _skip_bounds(tokens)
            entries = []
            for _ in range(int(_real(tokens))):
                start = _real(tokens)
                end = _real(tokens) if tier_class == "IntervalTier" else start
                entries.append((_string(tokens), start, end))
            if tier_class == "IntervalTier":
                tiers[name if name not in tiers else f"{name} {number}"] = entries
    except StopIteration as error:
        raise CorpusError(f"{where}: the TextGrid ends before its last interval") from error
    except (_UnexpectedToken, OverflowError) as error:
        raise CorpusError(f"{where}: not a TextGrid in text form: {error}") from error
    if not tiers:
        raise CorpusError(f"{where}: the TextGrid has no interval tier")
    name = next((name for name in tiers if name.lower().split()[-1:] in (["words"], ["word"])), next(iter(tiers)))
    return {"": tiers[name]}


class _UnexpectedToken(Exception):
    """A string where a number was expected, or the reverse."""


def _string(tokens: Iterator[re.Match[str]]) -> str:
    token = next(tokens)
    if token[1] is None:
        raise _UnexpectedToken(f"a string expected, found {token[0]!r}")
    return token[1].replace('""', '"')


def _real(tokens: Iterator[re.Match[str]]) -> float:
    token = next(tokens)
    if token[1] is not None or token[2] is not None:
        raise _UnexpectedToken(f"a number expected, found {token[0][:60]!r}")
    return float(token[0])


def _skip_bounds(tokens: Iterator[re.Match[str]]) -> None:
    """Pass over the start and the end of a grid or a tier."""
    for _ in range(2):
        _real(tokens)


def _parse_moshi(text: str, where: str) -> dict[str, list[TimedWord]] | None:
    """moshi-finetune: `{"alignments": [["word", [start, end], "SPEAKER_MAIN"], ...]}`; the main speaker's words."""
    found = _object(text, where)
    if not isinstance(found, dict) or not isinstance(found.get("alignments"), list):
        return None
    try:
        rows = [(str(word), tuple(span), speaker) for word, span, speaker in found["alignments"]]
        main = any(speaker == _MAIN_SPEAKER for *_, speaker in rows)
        return {
            "": [
                (word, _number(start, where), _number(end, where))
                for word, (start, end), speaker in rows
                if speaker == _MAIN_SPEAKER or not main
            ]
        }
    except CorpusError:
        raise
    except (TypeError, ValueError) as error:
        raise CorpusError(f'{where}: alignments must be a list of ["word", [start, end], "speaker"]') from error


def _parse_whisper(text: str, where: str) -> dict[str, list[TimedWord]] | None:
    """Whisper, WhisperX and others: an object with `segments` that have `words`, or with `words` or `word_segments`."""
    found = _object(text, where)
    if not isinstance(found, dict):
        return None
    segments = found.get("segments")
    lists: list[Any] = [found.get("words"), found.get("word_segments")]
    if isinstance(segments, list):
        lists.insert(0, [word for part in segments if isinstance(part, dict) for word in part.get("words") or ()])
    words = next((each for each in lists if each and isinstance(each, list) and isinstance(each[0], dict)), None)
    return None if words is None else {"": [_json_word(word, where) for word in words]}


def _parse_word_list(text: str, where: str) -> dict[str, list[TimedWord]] | None:
    """A list of `[word, start, end]` in seconds, or of objects such as `{"word", "start", "end"}`."""
    found = _object(text, where)
    if not isinstance(found, list) or not found or not isinstance(found[0], list | dict):
        return None
    return {"": [_json_word(word, where) for word in found]}


def _object(text: str, where: str) -> Any:
    return parse_json(text, where, CorpusError)


def _json_word(word: Any, where: str) -> TimedWord:
    """A word of a JSON file: `[word, start, end]`, or an object with `word` or `text`, in seconds or milliseconds."""
    expected = f"{where}: words must be [word, start, end] or objects with word, start and end"
    if isinstance(word, list):
        if len(word) < 3 or not isinstance(word[0], str):
            raise CorpusError(f"{expected}, found {str(word)[:60]}")
        return word[0], _number(word[1], where), _number(word[2], where)
    label = word.get("word", word.get("text")) if isinstance(word, dict) else None
    if not isinstance(label, str):
        raise CorpusError(f"{expected}, found {str(word)[:60]}")
    in_ms = "start_ms" in word
    times = [word.get("start_ms"), word.get("end_ms")] if in_ms else [word.get("start"), word.get("end")]
    if None in times:
        return label, None, None
    start, end = (_number(time, where) / (1000 if in_ms else 1) for time in times)
    return label, start, end


ALIGNMENT_FORMATS = (
    AlignmentFormat(".TextGrid", _parse_textgrid),
    AlignmentFormat(".lab", _parse_lab),
    AlignmentFormat(".alignment.txt", _parse_librispeech, several=True),
    AlignmentFormat(".ctm", _parse_ctm, several=True),
    AlignmentFormat(".json", _parse_moshi),
    AlignmentFormat(".json", _parse_whisper),
    AlignmentFormat(".json", _parse_word_list),
)
"""Formats; the first whose suffix fits and that knows the content reads a file."""

SUFFIXES_BESIDE_AUDIO = tuple(dict.fromkeys(each.suffix for each in ALIGNMENT_FORMATS if not each.several))
"""Suffixes of the files that hold the words of one recording and are looked for beside it."""
