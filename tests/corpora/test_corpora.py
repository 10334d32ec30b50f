"""The bundled corpora, read as TFDS directories without TensorFlow, and what is refused."""

import dataclasses
import io
import itertools
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from spirit_jax.corpora import CorpusError, Utterance, open_corpus, write_corpus

RATE = 16_000
TOOLS = pathlib.Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def speech():
    return {split: list(open_corpus("spirit_mini", split)) for split in ("train", "validation")}


@pytest.fixture(scope="module")
def stories():
    return {split: list(open_corpus("spirit_mini_text", split)) for split in ("train", "validation")}


@pytest.fixture(scope="module")
def decoded(speech):
    """Every eighth utterance with its audio: all speakers, in a second."""
    return [(utterance, utterance.load()) for utterance in itertools.islice(speech["train"], 0, None, 7)]


def level(audio):
    return 20 * np.log10(np.sqrt(np.mean(np.square(audio, dtype=np.float64))) + 1e-8)


def plain(text):
    return re.sub(r"[^a-z' ]", "", text.lower()).split()


def test_reading_needs_neither_tensorflow_nor_jax():
    code = (
        "import sys, tensorflow_datasets as tfds\n"
        "from spirit_jax import corpora\n"
        "names = ('spirit_mini', 'spirit_mini_text')\n"
        "assert all(corpora.open_corpus(name, split)[-1].text for name in names for split in ('train', 'validation'))\n"
        "source = tfds.data_source('spirit_mini', split='train', data_dir=corpora.BUNDLED)\n"
        "assert len(source) == len(corpora.open_corpus('spirit_mini', 'train')) and source[0]['audio'][:4] == b'OggS'\n"
        "found = {'tensorflow', 'jax', 'torch'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=pathlib.Path(__file__).parents[2])


def test_speech_is_whole_and_varied(speech):
    train, validation = speech["train"], speech["validation"]
    assert (len(train), len(validation)) == (480, 64)
    everything = train + validation
    assert len({utterance.id for utterance in everything}) == len(everything)
    for utterance in everything:
        assert utterance.text == " ".join(utterance.words), utterance.id
        spans = utterance.spans_ms
        assert spans.shape == (len(utterance.words), 2), utterance.id
        assert (spans[:, 1] > spans[:, 0]).all(), utterance.id
        assert (spans[1:, 0] >= spans[:-1, 1]).all(), utterance.id
        assert 1500 < spans[-1, 1] < 6500, utterance.id
    assert len({utterance.speaker for utterance in train}) == 16
    assert {utterance.speaker for utterance in validation} == {utterance.speaker for utterance in train}
    assert sum(len(utterance.words) >= 12 for utterance in train) >= 200  # long enough for the paper's spans
    assert len({word for utterance in train for word in plain(utterance.text)}) >= 700


def test_validation_is_unseen_but_made_of_seen_words(speech, stories):
    seen = {utterance.text for utterance in speech["train"]}
    held_out = [utterance.text for utterance in speech["validation"]]
    assert not seen & set(held_out)
    documents = "\n".join(story.text for split in stories.values() for story in split)
    assert not [sentence for sentence in held_out if sentence in documents]
    known = set(plain(documents)) | {word for text in seen for word in plain(text)}
    words = [word for text in held_out for word in plain(text)]
    assert np.mean([word in known for word in words]) > 0.97


def test_text_corpus(stories):
    assert (len(stories["train"]), len(stories["validation"])) == (3000, 100)
    for story in stories["train"] + stories["validation"]:
        assert story.audio is None
        assert story.words == ()
        assert len(story.text.split()) > 12, story.id
    assert not {story.text for story in stories["train"]} & {story.text for story in stories["validation"]}
    assert 5e5 < sum(len(story.text) for story in stories["train"]) < 1.5e6


def test_word_times_fit_the_decoded_audio(decoded):
    before, words, pauses, onset, offset = [], [], [], [], []
    for utterance, audio in decoded:
        spans = utterance.spans_ms * RATE // 1000
        assert spans[-1, 1] < audio.size
        before.append(level(audio[: spans[0, 0]]))
        words += [level(audio[start:end]) for start, end in spans]
        gaps = zip(spans[:-1, 1], spans[1:, 0], strict=True)
        pauses += [level(audio[end + 160 : start - 160]) for end, start in gaps if start - end > RATE // 10]
        loud = np.flatnonzero(np.abs(audio) > 0.02)
        onset.append((loud[0] - spans[0, 0]) * 1000 / RATE)
        offset.append((loud[-1] - spans[-1, 1]) * 1000 / RATE)
    # Voices stand 40 dB and more above the floor of the recordings; words before and after it are speech.
    assert np.median(words) - max(before) > 35
    assert len(pauses) > 10
    assert np.median(words) - np.median(pauses) > 35
    # Coded and decoded, speech still starts and ends where the synthesiser said: stops close up to 70 ms before they end.
    assert np.min(onset) > -5
    assert abs(np.median(onset)) < 20
    assert np.max(offset) < 10
    assert abs(np.median(offset)) < 20


def test_the_script_still_makes_this_text(stories, monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import mini_corpus_text

    held_out = {utterance.text for utterance in open_corpus("spirit_mini", "validation")}
    assert mini_corpus_text.stories(3000, 6, held_out) == [story.text for story in stories["train"]]


def test_the_script_still_times_these_words(speech, monkeypatch):
    pytest.importorskip("espeakng_loader", reason="the synthesiser is in the extra `corpus`")
    monkeypatch.syspath_prepend(str(TOOLS))
    import make_mini_corpus

    utterances = make_mini_corpus.speech("train", [utterance.text for utterance in speech["train"]], 4)
    for made, stored in zip(itertools.islice(utterances, 8), speech["train"], strict=False):
        assert (made.id, made.words, made.speaker) == (stored.id, stored.words, stored.speaker)
        np.testing.assert_array_equal(made.spans_ms, stored.spans_ms)


# --- writing, and what is refused


def flac(samples: int) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, 0.1 * np.sin(np.arange(samples) * 0.05), RATE, format="FLAC")
    return stream.getvalue()


SOUND = Utterance("clip", flac(RATE), "two words", ("two", "words"), np.array([[100, 400], [450, 900]], np.int32), "me")


def test_a_written_corpus_reads_back(tmp_path):
    silent = dataclasses.replace(SOUND, id="unaligned", words=(), spans_ms=np.zeros((0, 2), np.int32), speaker="")
    where = write_corpus(tmp_path, "mine", {"train": [SOUND, silent], "test": [SOUND]}, "A clip.")
    for directory in (where, where.parent):
        corpus = open_corpus(directory, "train")
        assert (corpus.name, corpus.splits, len(corpus), corpus.has_speech) == ("mine", ("test", "train"), 2, True)
        for stored, written in zip(corpus, [SOUND, silent], strict=True):
            for field in ("id", "audio", "text", "words", "speaker"):
                assert getattr(stored, field) == getattr(written, field)
            np.testing.assert_array_equal(stored.spans_ms, written.spans_ms)
    assert open_corpus(where, "train").fingerprint != open_corpus(where, "test").fingerprint
    assert corpus[-1].load().shape == (RATE,)
    with pytest.raises(IndexError):
        corpus[2]


def test_a_failed_write_leaves_the_old_corpus(tmp_path):
    where = write_corpus(tmp_path, "mine", {"train": [SOUND]}, "A clip.")
    with pytest.raises(CorpusError, match="all have audio or that all have none"):
        write_corpus(tmp_path, "mine", {"train": [SOUND, Utterance("t", None, "text")]}, "Mixed.")
    with pytest.raises(ValueError, match="shorter"):  # spans that do not fit the words
        write_corpus(tmp_path, "mine", {"train": [dataclasses.replace(SOUND, words=("one", "two", "three"))]}, "Bad.")
    assert len(open_corpus(where, "train")) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio": flac(RATE)[:2000]}, "cannot be decoded|holds no samples|outside"),
        ({"audio": b"not audio"}, "cannot be decoded"),
        ({"audio": None}, "has no audio"),
        ({"audio": flac(1279)}, "1279 samples are shorter"),
        ({"text": " \n"}, "transcript is empty"),
        ({"spans_ms": np.array([[100, 400], [450, 1100]], np.int32)}, r"word 1 \('words'\) at 450..1100 ms"),
        ({"spans_ms": np.array([[-50, 400], [450, 900]], np.int32)}, r"word 0 \('two'\)"),
        ({"spans_ms": np.array([[500, 700], [450, 900]], np.int32)}, r"word 1 .* out of order"),
        ({"spans_ms": np.array([[100, 90], [450, 900]], np.int32)}, "word 0"),
        ({"words": ("two",)}, "1 words, but word times of shape"),
    ],
)
def test_bad_utterances_name_themselves(change, message):
    assert SOUND.load().size == RATE
    with pytest.raises(CorpusError, match=message) as caught:
        dataclasses.replace(SOUND, **change).load()
    assert "'clip'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_corpora_and_splits(tmp_path):
    with pytest.raises(CorpusError, match="bundled ones are spirit_mini, spirit_mini_text"):
        open_corpus("no_such_corpus", "train")
    with pytest.raises(CorpusError, match="has no split 'dev'; it has train, validation"):
        open_corpus("spirit_mini", "dev")
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(CorpusError, match="cannot be opened"):
        open_corpus(tmp_path, "train")


def test_damaged_record_files(tmp_path):
    where = write_corpus(tmp_path, "mine", {"train": [SOUND] * 40}, "A clip.")
    (file,) = where.glob("*.array_record*")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorpusError, match="mine"):
        list(open_corpus(where, "train"))
    file.unlink()
    with pytest.raises(CorpusError, match="mine"):
        list(open_corpus(where, "train"))
