"""Utterances: audio from bytes and from files, and the checks before encoding."""

import dataclasses

import numpy as np
import pytest

from spirit_jax.audio import load_audio, save_audio
from spirit_jax.corpora import CorpusError, Utterance
from tests.support.clips import RATE, clip, flac


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
        ({"words": ("other", "things")}, "most of its words are not in its transcript: 'other things'"),
        ({"text": "zwei Wörter"}, "most of its words are not in its transcript"),
    ],
)
def test_unusable_utterances_name_themselves(change, message):
    assert clip().load().size == RATE
    with pytest.raises(CorpusError, match=message) as caught:
        dataclasses.replace(clip(), **change).load()
    assert "'clip'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_audio_is_read_from_its_file_when_needed(tmp_path):
    path = tmp_path / "clip.flac"
    utterance = dataclasses.replace(clip(), audio=path)
    with pytest.raises(CorpusError, match=r"utterance 'clip': .*clip.flac: no such file"):
        utterance.load()
    path.write_bytes(flac(RATE))
    np.testing.assert_array_equal(utterance.load(), clip().load())


def test_transcript_may_be_optional():
    untranscribed = dataclasses.replace(clip(), text="", words=(), spans_ms=np.zeros((0, 2), np.int32))
    with pytest.raises(CorpusError, match="transcript is empty"):
        untranscribed.load()
    assert dataclasses.replace(untranscribed, transcript_required=False).load().size == RATE


def test_spelling_of_words_may_differ_from_the_transcript():
    for text, words in (("TWO, words!", ("two", "words")), ("two 2266", ("two", "thousand")), ("二語", ("二", "語"))):
        assert dataclasses.replace(clip(), text=text, words=words).load().size == RATE


def test_an_utterance_may_be_a_part_of_its_file(tmp_path):
    part = dataclasses.replace(clip(), offset_s=0.1, duration_s=0.85, spans_ms=clip().spans_ms - 100)
    np.testing.assert_array_equal(part.load(), clip().load()[1600:15_200])
    whole = dataclasses.replace(clip(), audio=part.audio_bytes())
    np.testing.assert_allclose(dataclasses.replace(whole, spans_ms=part.spans_ms).load(), part.load(), atol=1e-4)
    with pytest.raises(CorpusError, match="0 samples are shorter"):
        dataclasses.replace(clip(), offset_s=9.0).load()


def test_long_recording_is_decoded_once_for_its_parts(tmp_path, monkeypatch):
    tone = np.sin(np.arange(48_000) / 10).astype(np.float32) * 0.5
    save_audio(tmp_path / "long.wav", tone)
    decoded = []
    monkeypatch.setattr(
        "spirit_jax.corpora.utterance.load_audio", lambda path: decoded.append(path) or load_audio(path)
    )
    parts = [Utterance(f"{i}", tmp_path / "long.wav", "tone", offset_s=float(i), duration_s=1.0) for i in range(3)]
    for index, part in enumerate(parts):
        np.testing.assert_allclose(part.load(), tone[index * 16_000 : (index + 1) * 16_000], atol=1e-4)
    assert len(decoded) == 1
    save_audio(tmp_path / "long.wav", tone[:40_000])  # another file at the same place is decoded again
    assert parts[2].load().size == 8_000
    assert len(decoded) == 2
