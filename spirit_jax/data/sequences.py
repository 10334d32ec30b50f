"""From a record to token ids: text, speech, interleaving and the paper's other recipes.

A document is `[*vocabulary.prefix, content..., eos]`, where content is, in string form (PAPER.md):

| recipe | content |
|---|---|
| `text` | `[Text]the cat sat` |
| `speech` | `[Speech][St3][Pi7][Hu9]...`, all units of the utterance |
| `interleaved` | `[Text]the cat [Speech][Hu3]..[Hu200][Text]the mat`: spans in turn, drawn anew every epoch |
| `transcription` | `[Text]the [Speech][Hu3]..[Text]cat [Speech][Hu5]..`: every word in both modalities |
| `asr` | `[Speech][Hu3]..[ASR]the cat sat` |
| `tts` | `[Text]the cat sat[TTS][Hu3]..` |
| `asr_tts` | one of the two, drawn anew every epoch |

Choices where the paper says nothing:
- Words within a text span are joined by single spaces, and a text span that speech follows ends with one, as the paper
  prints it. The ids are those that the tokenizer gives for the whole string form.
- Frame i (40 ms of HuBERT) belongs to a word if its centre, 40 i + 20 ms, lies in the word's time span. A speech span is
  contiguous audio, from the first frame of its first word to the last of its last: pauses within it stay, a pause at a
  switch is in neither modality. A span without any frame (a word under 40 ms) is left out.
- The released vocabulary has no `[ASR]` and `[TTS]`: they are written as ordinary text pieces, unless the tokenizer has them.
- A document longer than a row is cut into several, each with its own prefix and modality token: text before a word, speech
  and aligned documents at a word boundary (whole speech without word times also at seconds), so that each part is a document
  as if its words were all of the utterance. What cannot be cut is a record that cannot be used: an `asr` or `tts` pair
  without word times, one word longer than a row.
"""

import bisect
import dataclasses
import itertools
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from jaxtyping import Int, Int32

from spirit_jax.data.records import RecordError, UnitRecord
from spirit_jax.units import SpeechUnits
from spirit_jax.vocabulary import Vocabulary

Recipe = Literal["text", "speech", "interleaved", "transcription", "asr", "tts", "asr_tts"]
RECIPES: tuple[str, ...] = get_args(Recipe)

TEXT, SPEECH = 0, 1
ASR, TTS = "[ASR]", "[TTS]"
Span = tuple[int, int, int]
"""(TEXT or SPEECH, first word, last word + 1)."""

_FRAME_MS = 40
_SECOND = 25  # frames
_UNALIGNED = 5 * _SECOND  # no word is so long: speech without alignment, or a pause
_WORD_PIECES = 64  # how far back from the end of a row a word's start is looked for
_GRID_FRAMES = 2400  # up to here (100 s) the order of merged streams is a fixed pattern, see _span_ids


def interleaving(
    words: int, rng: np.random.Generator, text_words: tuple[int, int], speech_words: tuple[int, int]
) -> list[Span]:
    """Spans that cover words `0..words - 1` in turn, the first modality drawn with probability 1/2.

    Args:
        words: at least 1.
        rng: drawn from once for the modality and once a span.
        text_words, speech_words: least and most words of a span; the last one may be cut short by the end.
    """
    spans, start, modality = [], 0, int(rng.integers(2))
    while start < words:
        least, most = speech_words if modality == SPEECH else text_words
        end = min(start + int(rng.integers(least, most + 1)), words)
        spans.append((modality, start, end))
        start, modality = end, 1 - modality
    return spans


def word_frames(record: UnitRecord) -> Int[np.ndarray, "W 2"]:
    """First frame and last frame + 1 of each word: the frames whose centre lies in `start <= centre < end`, ms >= 0."""
    return np.minimum((record.spans_ms + (_FRAME_MS // 2 - 1)) // _FRAME_MS, len(record.units.hubert))


_GRID = np.arange(_GRID_FRAMES)


class WordPieces:
    """`vocabulary.encode_text` with the pieces of each word remembered: the same ids, faster.

    A SentencePiece model (as trained with Llama's settings) has no piece with a space inside or at its end but for runs of
    spaces, so each word with the one space before it has its own pieces. Texts with longer runs of spaces, and other kinds
    of tokenizers, go to the tokenizer whole.
    """

    _MOST = 1 << 19  # words remembered: bounds the memory

    def __init__(self, vocabulary: Vocabulary):
        self._encode = vocabulary.encode_text
        self._known: dict[str, list[int]] = {}  # a word to its pieces after a space
        self._first: dict[str, list[int]] = {}  # and at the start of a text
        self._letter = len(self._encode("a"))
        sample = "This is one of the things that we had to do in order to be at the end of it."
        self._by_word = len(vocabulary.prefix) == 2 and self._joined(sample) == self._encode(sample)

    def __call__(self, text: str) -> list[int]:
        """Pieces of text as it stands after a special token."""
        if not self._by_word or "  " in text:
            return self._encode(text)
        ids = self._joined(text)
        return self._encode(text) if ids is None else ids

    def _joined(self, text: str) -> list[int] | None:
        first, *words = text.split(" ")
        known, pieces = self._known, self._first.get(first)
        if pieces is None:
            if len(self._first) >= self._MOST:
                self._first.clear()
            pieces = self._first[first] = self._encode(first)
        ids = pieces.copy()
        for word in words:
            pieces = known.get(word)
            if pieces is None:
                if len(word.replace("\n", "").split()) > 1:  # white space that a normaliser could make a space of
                    return None
                if len(known) >= self._MOST:
                    known.clear()
                # after a letter, so that the space is not at the start of the text
                pieces = known[word] = self._encode("a " + word)[self._letter :]
            ids += pieces
        return ids


@dataclasses.dataclass(frozen=True)
class Sequencer:
    """Makes the documents of records by one recipe.

    Args:
        vocabulary: ids; the Base variant writes HuBERT units only.
        recipe: one of `RECIPES`.
        max_ids: longest document, prefix and eos included: the row's length + 1.
        text_words, speech_words: span lengths of interleaving.
    """

    vocabulary: Vocabulary
    recipe: Recipe
    max_ids: int
    text_words: tuple[int, int] = (10, 30)
    speech_words: tuple[int, int] = (5, 15)

    def __post_init__(self):
        object.__setattr__(self, "_encode", WordPieces(self.vocabulary))

    @property
    def is_random(self) -> bool:
        """Whether documents differ from epoch to epoch."""
        return self.recipe in ("interleaved", "asr_tts")

    def __call__(self, record: UnitRecord, rng: np.random.Generator | None) -> list[Int32[np.ndarray, " _N"]]:
        """Documents of a record, one unless it is longer than `max_ids`; int32 [N], 2 <= N <= max_ids.

        Args:
            record: valid (`UnitRecord.validate`).
            rng: of this record and epoch; all that is random comes from it. None will do where nothing is (`is_random`).

        Raises:
            RecordError: naming the id; the recipe needs units or words that the record lacks, or one word (or a pair
                without alignment) is longer than a row.
        """
        recipe = self.recipe
        if recipe == "asr_tts":
            recipe = "asr" if rng.integers(2) else "tts"
        try:
            if recipe != "text" and record.units is None:
                raise RecordError(f"recipe {recipe!r} needs speech units, the record has none")
            if recipe != "speech" and not record.text:
                raise RecordError(f"recipe {recipe!r} needs a transcript, the record has none")
            documents = getattr(self, "_" + recipe)(record, rng)
            if not documents:
                raise RecordError("nothing to write: no word lasts a frame")
        except RecordError as error:
            raise RecordError(f"record {record.id!r}: {error}") from None
        return documents

    # Recipes: each gives the content of words [first, last) and leaves cutting to _cut.

    def _text(self, record, rng):
        ids = self._encode(record.text)
        room = self.max_ids - len(self.vocabulary.prefix) - 2
        documents, first = [], 0
        while first < len(ids):
            last = min(first + room, len(ids))
            if last < len(ids):  # back to the start of a word, if there is one near
                nearest = max(first + 1, last - _WORD_PIECES)
                starts = self._starts_word(ids[nearest : last + 1])
                if any(starts):
                    last -= starts[::-1].index(True)
            documents.append(self._document([[self.vocabulary.text_id], ids[first:last]]))
            first = last
        return documents

    def _speech(self, record, rng):
        bounds = sorted({0, *word_frames(record)[1:, 0].tolist(), len(record.units.hubert)})
        for first, last in itertools.pairwise(bounds.copy()):
            if last - first > _UNALIGNED:
                bounds.extend(range(first + _SECOND, last, _SECOND))
        bounds.sort()

        def content(first: int, last: int) -> list:
            whole = (first, last) == (0, len(bounds) - 1)
            units = record.units if whole else record.units.cut(bounds[first], bounds[last])
            return [[self.vocabulary.speech_id], self.vocabulary.unit_ids(units)]

        return self._cut(content, len(bounds) - 1)

    def _interleaved(self, record, rng):
        self._need_words(record)
        return self._spans(record, interleaving(len(record.words), rng, self.text_words, self.speech_words))

    def _transcription(self, record, rng):
        self._need_words(record)
        return self._spans(
            record, [(modality, word, word + 1) for word in range(len(record.words)) for modality in (TEXT, SPEECH)]
        )

    def _asr(self, record, rng):
        speech_id = [self.vocabulary.speech_id]
        return self._pairs(
            record, lambda text, units: [speech_id, self.vocabulary.unit_ids(units), self._encode(ASR + text)]
        )

    def _tts(self, record, rng):
        text_id = [self.vocabulary.text_id]
        return self._pairs(
            record, lambda text, units: [text_id, self._encode(text + TTS), self.vocabulary.unit_ids(units)]
        )

    def _need_words(self, record: UnitRecord) -> None:
        if not record.words:
            raise RecordError(f"recipe {self.recipe!r} needs aligned words, the record has none")

    def _pairs(self, record: UnitRecord, pair: Callable[[str, SpeechUnits], list]) -> list[np.ndarray]:
        frames = word_frames(record)

        def content(first: int, last: int) -> list:
            if (first, last) == (0, max(len(record.words), 1)):
                return pair(record.text, record.units)
            units = record.units.cut(int(frames[first, 0]), int(frames[last - 1, 1]))
            return pair(" ".join(record.words[first:last]), units)

        return self._cut(content, max(len(record.words), 1))

    def _spans(self, record: UnitRecord, spans: list[Span]) -> list[np.ndarray]:
        """Documents of spans of words in turn."""
        words, frames = record.words, word_frames(record).tolist()

        def content(first: int, last: int) -> list:
            here = [(m, max(a, first), min(b, last)) for m, a, b in spans if a < last and b > first]
            if any(m == SPEECH and frames[a][0] >= frames[b - 1][1] for m, a, b in here):
                here = _without_silent(here, frames)
            speech = iter(
                self._span_ids(record.units, [(frames[a][0], frames[b - 1][1]) for m, a, b in here if m == SPEECH])
            )
            parts = []
            for number, (modality, a, b) in enumerate(here, 1):
                if modality == SPEECH:
                    parts += [self.vocabulary.speech_id], next(speech)
                else:
                    text = " ".join(words[a:b])
                    parts.append([self.vocabulary.text_id, *self._encode(text if number == len(here) else text + " ")])
            return parts

        return self._cut(content, len(words))

    def _document(self, parts: list) -> np.ndarray:
        parts = [np.asarray(part, np.int32) for part in (self.vocabulary.prefix, *parts, [self.vocabulary.eos_id])]
        return np.concatenate(parts)

    def _cut(self, content: Callable[[int, int], list], count: int) -> list[np.ndarray]:
        """Documents of `content(first, last)` over `0..count`, each as long as a row takes."""
        whole = self._document(content(0, count))
        if len(whole) <= self.max_ids:
            return [whole] if len(whole) > len(self.vocabulary.prefix) + 1 else []
        documents, first = [], 0
        while first < count:
            # the most words that fit; a longer stretch never takes fewer ids
            lengths = range(first + 1, count + 1)
            fitting = bisect.bisect_right(
                lengths, self.max_ids, key=lambda last: len(self._document(content(first, last)))
            )
            if not fitting:
                raise RecordError(f"word {first} of {count} takes more than the {self.max_ids - 1} slots of a row")
            document = self._document(content(first, first + fitting))
            if len(document) > len(self.vocabulary.prefix) + 1:
                documents.append(document)
            first += fitting
        return documents

    def _starts_word(self, ids: list[int]) -> list[bool]:
        """Which pieces begin with white space."""
        anchor = self._encode("a")
        return [self.vocabulary.decode([*anchor, index])[1:2].isspace() for index in ids]

    def _span_ids(self, units: SpeechUnits, spans: list[tuple[int, int]]) -> list[np.ndarray]:
        """`vocabulary.unit_ids(units.cut(first, last))` of many spans in one go.

        Every frame of a stretch has three places in the order style, pitch, HuBERT, which is the order of start times up to
        100 s; a place is in use where a unit of that stream begins and, but for style, differs from the one before.
        """
        if not spans or max(last - first for first, last in spans) > _GRID_FRAMES:
            return [self.vocabulary.unit_ids(units.cut(first, last)) for first, last in spans]
        frames = np.concatenate([np.arange(first, last) for first, last in spans])
        local = np.concatenate([_GRID[: last - first] for first, last in spans])
        ends = list(itertools.accumulate(last - first for first, last in spans))
        starts = [0, *ends[:-1]]
        pitch = units.pitch if self.vocabulary.pitch_offset is not None else None
        style = units.style if self.vocabulary.style_offset is not None else None
        columns = 1 + (pitch is not None) + (style is not None)
        ids, keep = np.empty((len(frames), columns), np.int32), np.empty((len(frames), columns), bool)
        if style is not None:
            np.add(style[np.minimum(frames // _SECOND, len(style) - 1)], self.vocabulary.style_offset, out=ids[:, 0])
            np.equal(local % _SECOND, 0, out=keep[:, 0])
        if pitch is not None:
            pitch = pitch[np.minimum(frames >> 1, len(pitch) - 1)]
            np.add(pitch, self.vocabulary.pitch_offset, out=ids[:, -2])
            begins = keep[:, -2]
            np.not_equal(pitch[2:], pitch[:-2], out=begins[2:])
            begins[starts] = True
            begins &= local & 1 == 0
        hubert = units.hubert[frames]
        np.add(hubert, self.vocabulary.hubert_offset, out=ids[:, -1])
        np.not_equal(hubert[1:], hubert[:-1], out=keep[1:, -1])
        keep[starts, -1] = True
        return [ids[start:end][keep[start:end]] for start, end in zip(starts, ends, strict=True)]


def _without_silent(spans: list[Span], frames: list[list[int]]) -> list[Span]:
    """Spans without the speech spans that have no frame; text spans that then meet become one."""
    result: list[Span] = []
    for modality, first, last in spans:
        if modality == SPEECH and frames[first][0] >= frames[last - 1][1]:
            continue
        if result and modality == result[-1][0] == TEXT:
            first = result.pop()[1]
        result.append((modality, first, last))
    return result
