"""Documents against string forms that `support/synthetic.py` builds word by word and frame by frame."""

import dataclasses
import itertools

import numpy as np
import pytest

from spirit_jax.corpora import open_corpus
from spirit_jax.data.sampling import record_rng
from spirit_jax.data.sequences import SPEECH, TEXT, Sequencer, interleaving, span_unit_ids, word_frames
from spirit_jax.data.unit_record import RecordError, UnitRecord
from spirit_jax.data.word_pieces import WordPieces
from spirit_jax.units import SpeechUnits
from spirit_jax.vocabulary import Vocabulary
from tests.support.goldens import golden
from tests.support.synthetic import (
    frames_of,
    spans_of,
    speech_record,
    string_form,
    text_record,
    unit_string,
    units_of,
    word,
)

LONG = 100_000  # ids; no document is cut


@pytest.fixture(scope="module", params=["base", "expressive"])
def vocabulary(request):
    return Vocabulary.load(golden(f"tokenizers/small_{request.param}_userdef"))


def _sequencer(vocabulary, recipe, max_ids=LONG, **spans):
    return Sequencer(vocabulary, recipe, max_ids, **spans)


def _ids(vocabulary, string):
    """The document of a string form, through the tokenizer."""
    return [*vocabulary.encode(string), vocabulary.eos_id]


def _string(vocabulary, ids):
    assert ids.dtype == np.int32
    assert ids[: len(vocabulary.prefix)].tolist() == list(vocabulary.prefix)
    assert ids[-1] == vocabulary.eos_id
    return vocabulary.decode(ids)


def _expressive(vocabulary):
    return vocabulary.variant == "expressive"


TEXTS = [
    "the cat sat on the mat",
    "",
    "word",
    " leading, and trailing ",
    "two  spaces   and four    more",
    "lines\nand\n\nparagraphs \n with spaces\taround\r\n them",
    "no\u00a0break, \u3000 ideographic \u2003em \u00a0 spaces",
    "na\u00efve caf\u00e9 \u4f60\u597d \U0001f600 \u0301combining",
    "[Text] and [Speech][Hu3] or [Hu 3] written out, [ASR]too[TTS]",
    "<s> </s> <unk> 1234 5,678.90 a1b2",
    "\u2581 the piece's own mark \u2581\u2581x",
]


@pytest.mark.parametrize("which", ["base", "expressive", "trained", "released"])
def test_encoding_by_word_equals_encoding_the_text(which):
    if which == "trained":
        vocabulary = Vocabulary.train(
            ["the cat sat on the mat, the dog ran\tafter it", "of the and to the in the"] * 9, 300
        )
    elif which == "released":
        vocabulary = Vocabulary.load(golden("checkpoints/spiritlm_model/spirit-lm-expressive-7b"))
    else:
        vocabulary = Vocabulary.load(golden(f"tokenizers/small_{which}_userdef"))
    pieces, rng = WordPieces(vocabulary), np.random.default_rng(0)
    assert pieces.by_word
    letters = list("abcdefghij  \n.,'-0123\u00e9\u4f60[]")
    texts = TEXTS + ["".join(rng.choice(letters, rng.integers(1, 80))) for _ in range(300)]
    for _ in range(2):  # unknown words, then known ones
        for text in texts:
            assert pieces(text) == vocabulary.encode_text(text), repr(text)


def test_word_frames_have_their_center_in_the_word():
    rng = np.random.default_rng(0)
    for number in range(30):
        record = speech_record(rng, number, 20)
        for index, (first, last) in enumerate(word_frames(record.spans_ms, len(units_of(record).hubert))):
            assert list(range(first, last)) == frames_of(record, index, index + 1)


def test_interleaving_covers_the_words_in_spans_of_the_given_lengths():
    firsts, lengths = [], {TEXT: set(), SPEECH: set()}
    for seed in range(400):
        words = 1 + seed % 150
        spans = interleaving(words, np.random.default_rng(seed), (10, 30), (5, 15))
        firsts.append(spans[0][0])
        assert [span[1] for span in spans] == [0, *(span[2] for span in spans[:-1])]
        assert spans[-1][2] == words
        assert all(one[0] != two[0] for one, two in itertools.pairwise(spans))
        for modality, first, last in spans[:-1]:
            lengths[modality].add(last - first)
        assert spans[-1][2] - spans[-1][1] <= (30, 15)[spans[-1][0]]
    assert lengths == {TEXT: set(range(10, 31)), SPEECH: set(range(5, 16))}  # both ends, and everything between
    assert 0.4 < np.mean(firsts) < 0.6  # 400 fair draws: 4 standard deviations


@pytest.mark.parametrize("pause", [0, 300])
def test_interleaved_documents_equal_their_string_form(vocabulary, pause):
    rng, switches = np.random.default_rng(1), 0
    for number in range(25):
        record = speech_record(rng, number, int(rng.integers(1, 60)), pause=pause)
        (ids,) = _sequencer(vocabulary, "interleaved")(record, record_rng(3, "source", number, 0))
        string = _string(vocabulary, ids)
        spans = spans_of(record, string, expressive=_expressive(vocabulary))  # every word occurs once and in order
        assert string == string_form(record, spans, expressive=_expressive(vocabulary))
        assert ids.tolist() == _ids(vocabulary, string)
        for modality, first, last in spans[:-1]:
            assert last - first in (range(10, 31) if modality == "text" else range(5, 16))
        switches += len(spans) - 1
    assert switches > 25


def test_speech_spans_of_a_real_utterance_match_its_word_times(vocabulary):
    """Each unit is the number of its frame, so that a span shows the time from which it was cut."""
    corpus = open_corpus("spirit_mini", "train")
    spoken = max((corpus[index] for index in range(20)), key=lambda utterance: len(utterance.words))
    samples = len(spoken.load())
    frames = (samples - 720) // 640 + 1  # HuBERT's
    assert len(spoken.words) >= 8
    assert frames <= 501
    record = UnitRecord(
        spoken.id,
        spoken.text,
        spoken.words,
        spoken.spans_ms,
        SpeechUnits(np.arange(frames)),
        samples // 16,
        spoken.speaker,
    )
    record.validate()
    make = _sequencer(vocabulary, "interleaved", text_words=(2, 4), speech_words=(1, 3))
    switches = 0
    for epoch in range(20):
        (ids,) = make(record, record_rng(0, "mini", 0, epoch))
        string, heard_or_read = _string(vocabulary, ids), []
        for piece in string.replace("[Text]", "\n[Text]").replace("[Speech]", "\n[Speech]").split("\n")[1:]:
            if piece.startswith("[Text]"):
                heard_or_read += piece.removeprefix("[Text]").split()
                continue
            cut = SpeechUnits.from_string(piece).hubert
            assert cut.tolist() == list(range(cut[0], cut[-1] + 1))
            start, end = 40 * int(cut[0]), 40 * int(cut[-1]) + 40
            middles = record.spans_ms.mean(1)
            inside = np.flatnonzero((middles >= start) & (middles < end))
            # the audio begins and ends with these words, within half a frame
            assert abs(start - record.spans_ms[inside[0], 0]) <= 20
            assert abs(end - min(record.spans_ms[inside[-1], 1], 40 * frames)) <= 20
            heard_or_read += [record.words[index] for index in inside]
        assert tuple(heard_or_read) == record.words
        switches += string.count("[Text]") + string.count("[Speech]") - 1
    assert switches > 20


def test_interleaving_depends_only_on_its_key_and_changes_every_epoch(vocabulary):
    record = speech_record(np.random.default_rng(2), 0, 80)
    make = _sequencer(vocabulary, "interleaved")
    keys = [
        (seed, source, index, epoch) for seed in (0, 1) for source in "ab" for index in (0, 1) for epoch in range(4)
    ]
    documents = [make(record, record_rng(*key))[0].tolist() for key in keys]
    assert documents == [make(record, record_rng(*key))[0].tolist() for key in keys]
    assert len({tuple(ids) for ids in documents}) == len(keys)


def test_uncut_documents_equal_their_string_form(vocabulary):
    record = speech_record(np.random.default_rng(3), 0, 30)
    units = units_of(record) if _expressive(vocabulary) else units_of(record).without_expression()
    content = {
        "speech": f"[Speech]{units.to_string()}",
        "text": f"[Text]{record.text}",
        "asr": f"[Speech]{units.to_string()}[ASR]{record.text}",
        "tts": f"[Text]{record.text}[TTS]{units.to_string()}",
    }
    for recipe, string in content.items():
        (ids,) = _sequencer(vocabulary, recipe)(record, record_rng(0, "", 0, 0))
        assert ids.tolist() == _ids(vocabulary, string), recipe
    both = [_sequencer(vocabulary, "asr_tts")(record, record_rng(0, "", 0, epoch))[0].tolist() for epoch in range(20)]
    assert {tuple(ids) for ids in both} == {tuple(_ids(vocabulary, content[recipe])) for recipe in ("asr", "tts")}


def test_units_past_the_last_frame_are_kept_in_whole_speech(vocabulary):
    """The style encoder can give one unit more than HuBERT has seconds (docs/formats.md, "Style encoder")."""
    record = speech_record(np.random.default_rng(3), 0, 4)
    hubert, pitch, _ = units_of(record).streams
    assert pitch is not None
    units = SpeechUnits(hubert[:25], pitch[:13], np.array([5, 6]))
    record = dataclasses.replace(record, units=units, duration_ms=1040, words=(), spans_ms=np.zeros((0, 2), np.int32))
    record.validate()
    (ids,) = _sequencer(vocabulary, "speech")(record, record_rng(0, "", 0, 0))
    string = units.to_string() if _expressive(vocabulary) else units.without_expression().to_string()
    assert ids.tolist() == _ids(vocabulary, f"[Speech]{string}")


def test_transcription_has_every_word_in_both_modalities(vocabulary):
    rng = np.random.default_rng(4)
    for number in range(10):
        record = speech_record(rng, number, 12)
        spans = [(modality, index, index + 1) for index in range(12) for modality in ("text", "speech")]
        (ids,) = _sequencer(vocabulary, "transcription")(record, record_rng(0, "", number, 0))
        assert ids.tolist() == _ids(vocabulary, string_form(record, spans, expressive=_expressive(vocabulary)))


def test_words_without_a_frame_are_written_as_text_only(vocabulary):
    record = speech_record(np.random.default_rng(5), 0, 3, pause=0)
    spans = np.array([[0, 200], [201, 215], [215, 400]], np.int32)  # no frame center (20, 60, ...) from 201 to 215
    record = dataclasses.replace(record, spans_ms=spans, units=units_of(record).cut(0, 10), duration_ms=400)
    record.validate()
    (ids,) = _sequencer(vocabulary, "transcription")(record, record_rng(0, "", 0, 0))
    first, second, third = (
        unit_string(record, frames_of(record, w, w + 1), expressive=_expressive(vocabulary)) for w in range(3)
    )
    a, b, c = record.words
    assert second == ""
    assert ids.tolist() == _ids(vocabulary, f"[Text]{a} [Speech]{first}[Text]{b} {c} [Speech]{third}")
    silent = dataclasses.replace(record, words=("x",), spans_ms=spans[1:2])
    only_speech = (5, 15), (5, 15)
    for epoch in range(20):
        rng = record_rng(0, "", 0, epoch)
        starts_with_speech = record_rng(0, "", 0, epoch).integers(2) == SPEECH
        make = _sequencer(vocabulary, "interleaved", text_words=only_speech[0], speech_words=only_speech[1])
        if starts_with_speech:
            with pytest.raises(RecordError, match="utterance-0.*no word lasts a frame"):
                make(silent, rng)
        else:
            assert _string(vocabulary, make(silent, rng)[0]) == "[Text]x"


def test_ids_of_many_spans_equal_the_ids_of_each(vocabulary):
    rng = np.random.default_rng(6)
    for frames in (1, 2, 26, 300, 2400, 2401, 3000, 5000):  # beyond 100 s the order of the streams drifts
        hubert = np.repeat(rng.integers(0, 501, frames), 2)[:frames]
        pitch, style = rng.integers(0, 3, -(-frames // 2)), rng.integers(0, 100, -(-frames // 25))
        units = SpeechUnits(hubert, pitch, style)
        shorter = SpeechUnits(hubert, pitch[: max(1, len(pitch) - 3)], style[:1])
        cuts = np.sort(rng.integers(0, frames + 1, 6)).tolist()
        spans = [(0, frames)] + [(a, b) for a, b in itertools.pairwise(cuts) if b > a]
        for streams in (units, shorter, units.without_expression()):
            for got, (a, b) in zip(span_unit_ids(vocabulary, streams, spans), spans, strict=True):
                expected = vocabulary.unit_ids(streams.cut(a, b))
                assert got.tolist() == expected.tolist(), (frames, a, b)


@pytest.mark.parametrize("recipe", ["speech", "interleaved", "transcription", "asr", "tts"])
def test_documents_longer_than_a_row_are_cut_at_words(vocabulary, recipe):
    record = speech_record(np.random.default_rng(7), 0, 120)
    max_ids = 130
    documents = _sequencer(vocabulary, recipe, max_ids)(record, record_rng(0, "", 0, 0))
    assert len(documents) > 2
    texts, hubert = [], []
    for ids in documents:
        assert len(ids) <= max_ids
        string = _string(vocabulary, ids)
        assert ids.tolist() == _ids(vocabulary, string)
        assert string.startswith(("[Text]", "[Speech]"))
        texts += string.replace("[ASR]", "[Text]").replace("[TTS]", "[").replace("[", " [").replace("]", "] ").split()
        hubert.append(string.count("[Hu"))
    written = [text for text in texts if not text.startswith("[")]
    if recipe in ("transcription", "asr", "tts"):
        assert tuple(written) == record.words  # each word once, in order
    if recipe == "interleaved":
        # the words of the text spans, in order, each at most once
        places = [record.words.index(name) for name in written]
        assert places == sorted(set(places))
    if recipe == "speech":
        # cuts lose no unit; a cut within a run adds at most one
        (whole,) = _sequencer(vocabulary, recipe)(record, record_rng(0, "", 0, 0))
        total = _string(vocabulary, whole).count("[Hu")
        assert total <= sum(hubert) <= total + len(documents) - 1
    # each is as long as it can be: one more word would not fit (a word here takes under 45 ids in both modalities)
    assert all(len(ids) > max_ids - 45 for ids in documents[:-1])


@pytest.mark.parametrize("recipe", ["speech", "interleaved", "transcription", "asr", "tts"])
def test_documents_that_just_fit_a_row_are_not_cut(vocabulary, recipe):
    """This holds for a whole document and for the first part of one; with one slot less both are shorter."""
    record = speech_record(np.random.default_rng(7), 0, 120)

    def documents(max_ids: int) -> list[np.ndarray]:
        return _sequencer(vocabulary, recipe, max_ids)(record, record_rng(0, "", 0, 0))

    (whole,) = documents(LONG)
    np.testing.assert_array_equal(documents(len(whole)), [whole])
    assert len(documents(len(whole) - 1)) > 1
    first = documents(130)[0]
    np.testing.assert_array_equal(documents(len(first))[0], first)
    assert len(documents(len(first) - 1)[0]) < len(first)


@pytest.mark.parametrize("words", [0, 2])
def test_speech_without_words_is_cut_at_seconds(vocabulary, words):
    """So is a long stretch without words after an aligned one."""
    record = speech_record(np.random.default_rng(8), 0, 60)
    record = dataclasses.replace(record, words=record.words[:words], spans_ms=record.spans_ms[:words])
    documents = _sequencer(vocabulary, "speech", 200)(record, record_rng(0, "", 0, 0))
    frames, start = len(units_of(record).hubert), 0
    origin = frames_of(record, 1, 2)[0] if words else 0
    for ids in documents:
        assert len(ids) <= 200
        matching = [
            end
            for end in [*range(origin + 25, frames, 25), frames]
            if end > start
            and _string(vocabulary, ids)
            == "[Speech]" + unit_string(record, list(range(start, end)), expressive=_expressive(vocabulary))
        ]
        assert len(matching) == 1
        start = matching[0]
    assert start == frames


def test_long_text_is_cut_before_words(vocabulary):
    record = text_record(np.random.default_rng(9), 0, 700)
    documents = _sequencer(vocabulary, "text", 101)(record, record_rng(0, "", 0, 0))
    strings = [_string(vocabulary, ids) for ids in documents]
    assert "".join(string.removeprefix("[Text]") for string in strings) == record.text
    assert all(
        string.startswith("[Text] ") for string in strings[1:]
    )  # the space before the word, not a part of a word
    assert all(len(ids) <= 101 for ids in documents)
    assert all(len(ids) > 101 - 12 for ids in documents[:-1])  # a word here takes at most 12 pieces
    unbroken = dataclasses.replace(record, text="".join(word(i) for i in range(200)))
    documents = _sequencer(vocabulary, "text", 101)(unbroken, record_rng(0, "", 0, 0))
    assert "".join(_string(vocabulary, ids).removeprefix("[Text]") for ids in documents) == unbroken.text


def test_unusable_records_are_named_with_the_reason(vocabulary):
    rng = np.random.default_rng(10)
    text, spoken = text_record(rng, 5, 20), speech_record(rng, 6, 12)
    unaligned = dataclasses.replace(spoken, words=(), spans_ms=np.zeros((0, 2), np.int32))
    key = record_rng(0, "", 0, 0)
    for recipe in ("speech", "interleaved", "asr"):
        with pytest.raises(RecordError, match=f"'document-5': recipe '{recipe}' needs speech units"):
            _sequencer(vocabulary, recipe)(text, key)
    for recipe in ("interleaved", "transcription"):
        with pytest.raises(RecordError, match=f"'utterance-6': recipe '{recipe}' needs aligned words"):
            _sequencer(vocabulary, recipe)(unaligned, key)
    too_long = r"'utterance-6': takes \d+ tokens, more than a row of sequence_length 31, and cannot be cut"
    with pytest.raises(RecordError, match=too_long):
        _sequencer(vocabulary, "asr", 32)(unaligned, key)


def test_speech_without_a_transcript_serves_only_speech(vocabulary):
    record = UnitRecord("clip-9", "", units=SpeechUnits(np.arange(50) % 7), duration_ms=2000)
    record.validate()
    (ids,) = Sequencer(vocabulary, "speech", 200)(record, None)
    assert vocabulary.decode(ids) == "[Speech]" + units_of(record).to_string()
    for recipe in ("text", "interleaved", "asr", "transcription"):
        with pytest.raises(RecordError, match="'clip-9': recipe '.*' needs a transcript"):
            Sequencer(vocabulary, recipe, 200)(record, np.random.default_rng(0))
