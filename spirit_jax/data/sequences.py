"""From a record to token ids: text, speech, interleaving and the paper's other recipes.

A document is `[*vocabulary.prefix, content..., eos]`. In string form, the content is (docs/paper.md):

| recipe | content |
|---|---|
| `text` | `[Text]the cat sat` |
| `speech` | `[Speech][St3][Pi7][Hu9]...`, all units of the utterance |
| `interleaved` | `[Text]the cat [Speech][Hu3]..[Hu200][Text]the mat`: alternating spans, drawn anew in every epoch |
| `transcription` | `[Text]the [Speech][Hu3]..[Text]cat [Speech][Hu5]..`: every word in both modalities |
| `asr` | `[Speech][Hu3]..[ASR]the cat sat` |
| `tts` | `[Text]the cat sat[TTS][Hu3]..` |
| `asr_tts` | one of the two, drawn anew in every epoch |

The paper leaves some choices open:

- Words within a text span are joined by single spaces. A text span before speech ends with a space, as the paper prints
  it. The ids are those that the tokenizer gives for the whole string form.
- Frame i (40 ms of HuBERT) belongs to a word if its center, 40 i + 20 ms, lies in the word's time span. A speech span
  is contiguous audio, from the first frame of its first word to the last frame of its last word. Pauses within it stay;
  a pause at a switch is in neither modality. A span without any frame (a word under 40 ms) is left out.
- The released vocabulary has no `[ASR]` and `[TTS]`. They are ordinary text pieces unless the tokenizer has them.
- A document longer than a row is cut into several, each with its own prefix and modality token. Text is cut before a
  word, speech and aligned documents at a word boundary, and whole speech without word times also at full seconds. So
  each part is a document as if its words were the whole utterance. A record that cannot be cut cannot be used: an `asr`
  or `tts` pair without word times, or a word longer than a row.
"""

import bisect
import itertools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Int, Int32

from spirit_jax.data.packing import only_read
from spirit_jax.data.unit_record import FRAME_MS, RecordError, UnitRecord
from spirit_jax.data.word_pieces import WordPieces, shared_prefix
from spirit_jax.units import SpeechUnits
from spirit_jax.vocabulary import ASR, TTS, Vocabulary

Recipe = Literal["text", "speech", "interleaved", "transcription", "asr", "tts", "asr_tts", "pairs"]
RECIPES: tuple[Recipe, ...] = get_args(Recipe)
"""Kinds of documents that can be made from a record; pairs are lines of another file (`data.pairs`)."""
OUTPUT_RECIPES: tuple[Recipe, ...] = ("asr", "tts", "asr_tts")
"""Recipes whose second half can be learned alone."""

TEXT, SPEECH = 0, 1
"""The modality of a span."""

_FRAMES_PER_SECOND = 1000 // FRAME_MS
_MAX_WORD_FRAMES = 5 * _FRAMES_PER_SECOND  # a longer stretch is speech without alignment, or a pause
_MAX_WORD_PIECES = 64  # distance from the end of a row within which the start of a word is looked for
_MAX_GRID_FRAMES = 2400  # up to here (96 s) the order of merged streams is a fixed pattern, see span_unit_ids
_GRID = np.arange(_MAX_GRID_FRAMES)


class Span(NamedTuple):
    """A stretch of words in one modality."""

    modality: int
    """TEXT or SPEECH."""
    first: int
    """The first word."""
    last: int
    """The word after the last one."""


def interleaving(
    words: int, rng: np.random.Generator, text_words: tuple[int, int], speech_words: tuple[int, int]
) -> list[Span]:
    """Draw alternating spans that cover words `0..words - 1`; the first modality has probability 1/2.

    Args:
        words: number of words, at least 1.
        rng: drawn from once for the modality and once for each span.
        text_words: least and most words of a text span; the end of the words may cut the last span short.
        speech_words: least and most words of a speech span.
    """
    spans, start, modality = [], 0, int(rng.integers(2))
    while start < words:
        least, most = speech_words if modality == SPEECH else text_words
        end = min(start + int(rng.integers(least, most + 1)), words)
        spans.append(Span(modality, start, end))
        start, modality = end, 1 - modality
    return spans


def word_frames(spans_ms: Int[np.ndarray, "W 2"], frames: int) -> Int[np.ndarray, "W 2"]:
    """The frames of each word: those whose center lies in `start <= center < end`.

    Args:
        spans_ms: start and end of each word in milliseconds, not negative.
        frames: number of frames of the utterance.

    Returns:
        First frame, and last frame + 1, of each word.
    """
    return np.minimum((spans_ms + (FRAME_MS // 2 - 1)) // FRAME_MS, frames)


class Sequencer:
    """Makes the documents of records by one recipe.

    Example::

        sequencer = Sequencer(vocabulary, "interleaved", max_ids=4097)
        documents = sequencer(record, record_rng(seed, "aligned", index, epoch))

    Args:
        vocabulary: of the model; for the Base variant, documents have HuBERT units only.
        recipe: one of `RECIPES`.
        max_ids: ids of the longest document, prefix and eos included: the length of a row + 1.
        text_words: least and most words of a text span of interleaving.
        speech_words: least and most words of a speech span of interleaving.
        learn_output: learn only the second half of a pair of `OUTPUT_RECIPES`, and the end of the document.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        recipe: Recipe,
        max_ids: int,
        text_words: tuple[int, int] = (10, 30),
        speech_words: tuple[int, int] = (5, 15),
        learn_output: bool = False,
    ):
        self.learn_output = learn_output
        self.vocabulary, self.recipe, self.max_ids = vocabulary, recipe, max_ids
        self.text_words, self.speech_words = text_words, speech_words
        self._encode = WordPieces(vocabulary)
        self._separator = self._encode(ASR)

    @property
    def is_random(self) -> bool:
        """Whether documents differ from epoch to epoch."""
        return self.recipe in ("interleaved", "asr_tts")

    def __call__(self, record: UnitRecord, rng: np.random.Generator | None) -> list[Int32[np.ndarray, " _N"]]:
        """The documents of a record: one, unless it is longer than `max_ids`.

        Args:
            record: a valid record (`UnitRecord.validate`).
            rng: of this record and epoch (`record_rng`); may be None unless `is_random`.

        Returns:
            int32 [N] each, 2 <= N <= max_ids.

        Raises:
            RecordError: names the record; it lacks units or words that the recipe needs, or a word, or a pair without
                alignment, is longer than a row.
        """
        try:
            documents = self._documents(record, rng)
            if not documents:
                raise RecordError("nothing to write: no word lasts a frame")
        except RecordError as error:
            raise RecordError(f"record {record.id!r}: {error}") from None
        return documents

    def _documents(self, record: UnitRecord, rng: np.random.Generator | None) -> list[np.ndarray]:
        recipe, units = self.recipe, record.units
        if recipe == "asr_tts":
            assert rng is not None  # is_random
            recipe = "asr" if rng.integers(2) else "tts"
        if recipe == "text":
            self._check_transcript(record, recipe)
            return self._text(record.text)
        if units is None:
            raise RecordError(f"recipe {recipe!r} needs speech units, the record has none")
        if recipe == "speech":
            return self._speech(record, units)
        self._check_transcript(record, recipe)
        if recipe == "asr":
            return self._pairs(record, units, self._asr)
        if recipe == "tts":
            return self._pairs(record, units, self._tts)
        if not record.words:
            raise RecordError(f"recipe {recipe!r} needs aligned words, the record has none")
        if recipe == "transcription":
            words = range(len(record.words))
            return self._spans(record, units, [Span(m, word, word + 1) for word in words for m in (TEXT, SPEECH)])
        assert rng is not None  # is_random
        return self._spans(record, units, interleaving(len(record.words), rng, self.text_words, self.speech_words))

    @staticmethod
    def _check_transcript(record: UnitRecord, recipe: str) -> None:
        if not record.text:
            raise RecordError(f"recipe {recipe!r} needs a transcript, the record has none")

    # Each recipe gives the content of words [first, last) and leaves the cutting to _cut; text is cut by pieces.

    def _text(self, text: str) -> list[np.ndarray]:
        ids = self._encode(text)
        room = self.max_ids - len(self.vocabulary.prefix) - 2
        documents, first = [], 0
        while first < len(ids):
            last = min(first + room, len(ids))
            if last < len(ids):  # back to the start of a word, if one is near
                nearest = max(first + 1, last - _MAX_WORD_PIECES)
                starts = self._starts_word(ids[nearest : last + 1])
                if any(starts):
                    last -= starts[::-1].index(True)
            documents.append(self._document([[self.vocabulary.text_id], ids[first:last]]))
            first = last
        return documents

    def _speech(self, record: UnitRecord, units: SpeechUnits) -> list[np.ndarray]:
        """Speech, which can be cut before every word but the first, and at full seconds of stretches without words."""
        frames = len(units.hubert)
        bounds = sorted({0, *word_frames(record.spans_ms, frames)[1:, 0].tolist(), frames})
        for first, last in itertools.pairwise(bounds.copy()):
            if last - first > _MAX_WORD_FRAMES:
                bounds.extend(range(first + _FRAMES_PER_SECOND, last, _FRAMES_PER_SECOND))
        bounds.sort()

        def content(first: int, last: int) -> list:
            whole = (first, last) == (0, len(bounds) - 1)
            cut = units if whole else units.cut(bounds[first], bounds[last])
            return [[self.vocabulary.speech_id], self.vocabulary.unit_ids(cut)]

        return self._cut(content, len(bounds) - 1)

    def _asr(self, text: str, units: SpeechUnits) -> list:
        ids = self._encode(ASR + text)
        separated, start = np.array(ids, np.int32), shared_prefix(self._separator, ids)
        speech = [[self.vocabulary.speech_id], self.vocabulary.unit_ids(units)]
        return self._second_half_learned([*speech, separated[:start]], separated[start:])

    def _tts(self, text: str, units: SpeechUnits) -> list:
        return self._second_half_learned(
            [[self.vocabulary.text_id], self._encode(text + TTS)], self.vocabulary.unit_ids(units)
        )

    def _second_half_learned(self, first: list, second: Int32[np.ndarray, " N"]) -> list:
        """Both halves of a pair, the first one marked where only the second one is learned."""
        if self.learn_output:
            first = [only_read(np.asarray(part, np.int32)) for part in first]
        return [*first, second]

    def _pairs(
        self, record: UnitRecord, units: SpeechUnits, pair: Callable[[str, SpeechUnits], list]
    ) -> list[np.ndarray]:
        """Pairs of text and speech; without alignment the whole utterance is one pair."""
        frames = word_frames(record.spans_ms, len(units.hubert))
        count = max(len(record.words), 1)

        def content(first: int, last: int) -> list:
            if (first, last) == (0, count):
                return pair(record.text, units)
            cut = units.cut(int(frames[first, 0]), int(frames[last - 1, 1]))
            return pair(" ".join(record.words[first:last]), cut)

        return self._cut(content, count)

    def _spans(self, record: UnitRecord, units: SpeechUnits, spans: list[Span]) -> list[np.ndarray]:
        """Alternating spans of words."""
        words, frames = record.words, word_frames(record.spans_ms, len(units.hubert)).tolist()

        def content(first: int, last: int) -> list:
            here = [Span(m, max(a, first), min(b, last)) for m, a, b in spans if a < last and b > first]
            if any(m == SPEECH and frames[a][0] >= frames[b - 1][1] for m, a, b in here):
                here = _without_empty_speech(here, frames)
            spoken = [(frames[a][0], frames[b - 1][1]) for m, a, b in here if m == SPEECH]
            speech = iter(span_unit_ids(self.vocabulary, units, spoken))
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
        """Documents of `content(first, last)` that cover `0..count`, each as long as a row allows."""
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
                row = f"more than a row of sequence_length {self.max_ids - 1}"
                slots = len(self._document(content(first, first + 1))) - 1
                if count > 1:
                    raise RecordError(f"part {first} of {count} takes {slots} tokens, {row}; raise sequence_length")
                raise RecordError(
                    f"takes {slots} tokens, {row}, and cannot be cut; raise sequence_length, or find the times of its "
                    "words (python -m spirit_jax.align)"
                )
            document = self._document(content(first, first + fitting))
            if len(document) > len(self.vocabulary.prefix) + 1:
                documents.append(document)
            first += fitting
        return documents

    def _starts_word(self, ids: list[int]) -> list[bool]:
        """Which pieces begin with white space."""
        anchor = self._encode("a")
        return [self.vocabulary.decode([*anchor, index])[1:2].isspace() for index in ids]


def span_unit_ids(
    vocabulary: Vocabulary, units: SpeechUnits, spans: Sequence[tuple[int, int]]
) -> list[Int32[np.ndarray, " _N"]]:
    """`vocabulary.unit_ids(units.cut(first, last))` of many spans of frames at once, which is faster.

    Every frame has three places in the order style, pitch, HuBERT, which is the order of start times up to 100 s. A
    place is kept where a unit of that stream begins and, except for style, differs from the one before.

    Args:
        vocabulary: of the model.
        units: of the utterance, at the frame rate.
        spans: `(first, last + 1)` of each span, in frames.

    Returns:
        int32 [N] ids of each span.
    """
    if not spans or max(last - first for first, last in spans) > _MAX_GRID_FRAMES:
        return [vocabulary.unit_ids(units.cut(first, last)) for first, last in spans]
    frames = np.concatenate([np.arange(first, last) for first, last in spans])
    local = np.concatenate([_GRID[: last - first] for first, last in spans])
    ends = list(itertools.accumulate(last - first for first, last in spans))
    starts = [0, *ends[:-1]]
    pitch_offset, style_offset = vocabulary.pitch_offset, vocabulary.style_offset
    pitch = units.pitch if pitch_offset is not None else None
    style = units.style if style_offset is not None else None
    columns = 1 + (pitch is not None) + (style is not None)
    ids, keep = np.empty((len(frames), columns), np.int32), np.empty((len(frames), columns), bool)
    if style is not None and style_offset is not None:
        style = style[np.minimum(frames // _FRAMES_PER_SECOND, len(style) - 1)]
        np.add(style, style_offset, out=ids[:, 0])
        np.equal(local % _FRAMES_PER_SECOND, 0, out=keep[:, 0])
    if pitch is not None and pitch_offset is not None:
        pitch = pitch[np.minimum(frames >> 1, len(pitch) - 1)]
        np.add(pitch, pitch_offset, out=ids[:, -2])
        begins = keep[:, -2]
        np.not_equal(pitch[2:], pitch[:-2], out=begins[2:])
        begins[starts] = True
        begins &= local & 1 == 0
    hubert = units.hubert[frames]
    np.add(hubert, vocabulary.hubert_offset, out=ids[:, -1])
    np.not_equal(hubert[1:], hubert[:-1], out=keep[1:, -1])
    keep[starts, -1] = True
    return [ids[start:end][keep[start:end]] for start, end in zip(starts, ends, strict=True)]


def _without_empty_speech(spans: list[Span], frames: list[list[int]]) -> list[Span]:
    """The spans without the speech spans that have no frame; text spans that then meet become one."""
    result: list[Span] = []
    for modality, first, last in spans:
        if modality == SPEECH and frames[first][0] >= frames[last - 1][1]:
            continue
        if result and modality == result[-1].modality == TEXT:
            first = result.pop().first
        result.append(Span(modality, first, last))
    return result
