"""The command that encodes the speech of pairs."""

import json
import types

import numpy as np
import pytest

from spirit_jax import pairs, speech
from spirit_jax.core import buckets
from spirit_jax.data.pairs import TOKENIZER_KEY, PairRecords
from spirit_jax.units import SpeechUnits
from tests.support.clips import flac


@pytest.fixture
def tokenizer(monkeypatch):
    """A speech tokenizer whose units count the seconds of a clip."""

    def encode_batch(clips):
        return [SpeechUnits(np.arange(1 + len(clip) // 16_000)) for clip in clips]

    fake = types.SimpleNamespace(fingerprint="abc", encode_batch=encode_batch)
    monkeypatch.setattr(speech, "speech_fingerprints", lambda _: {"abc"})
    monkeypatch.setattr(speech.SpeechTokenizer, "from_pretrained", lambda *_, **__: fake)


def _write(directory, *lines):
    for seconds in (1, 2):
        (directory / f"{seconds}.flac").write_bytes(flac(seconds * 16_000))
    (directory / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return [
        "--checkpoint",
        "base",
        "--input",
        str(directory / "in.jsonl"),
        "--output",
        str(directory / "out/train.jsonl"),
    ]


def test_audio_becomes_units_and_the_rest_is_copied(tokenizer, tmp_path):
    turn = {"input": ["speech:1.flac", "text: é"], "output": ["speech:2.flac"]}
    pairs.main(_write(tmp_path, {"id": 7, **turn}, {"turns": [turn, {"input": [], "output": ["text:a"]}]}))
    lines = list(map(json.loads, (tmp_path / "out/train.jsonl").read_text().splitlines()))
    encoded = {"input": ["units:[Hu0][Hu1]", "text: é"], "output": ["units:[Hu0][Hu1][Hu2]"]}
    assert lines[0] == {TOKENIZER_KEY: "abc"}
    assert lines[1:] == [{"id": 7, **encoded}, {"turns": [encoded, {"input": [], "output": ["text:a"]}]}]
    records = PairRecords(tmp_path / "out", "train")
    assert (len(records), records.units, records[1].turns[0].output) == (2, "abc", ("units:[Hu0][Hu1][Hu2]",))


def test_input_audio_and_output_may_be_in_a_bucket(tokenizer, bucket, tmp_path):
    options = _write(tmp_path, {"input": ["speech:1.flac"], "output": ["text:a"]})
    pairs.main(options)
    for name in ("1.flac", "in.jsonl"):
        buckets.write_object(f"{bucket}/{name}", (tmp_path / name).read_bytes())
    pairs.main([*options[:3], f"{bucket}/in.jsonl", "--output", f"{bucket}/out/train.jsonl"])
    assert buckets.read_object(f"{bucket}/out/train.jsonl") == (tmp_path / "out/train.jsonl").read_bytes()
    with pytest.raises(SystemExit) as exit_:
        pairs.main([*options[:3], f"{bucket}/in.jsonl", "--output", f"{bucket}/out/train.jsonl"])
    assert exit_.value.code == 2


def test_units_of_another_speech_tokenizer_are_refused(tokenizer, tmp_path, capsys):
    """They would be copied under the name of this one."""
    line = {"input": ["units:[Hu3]", "speech:1.flac"], "output": ["text:a"]}
    pairs.main(_write(tmp_path, {TOKENIZER_KEY: "abc"}, line))
    (tmp_path / "out/train.jsonl").unlink()
    with pytest.raises(SystemExit) as exit_:
        pairs.main(_write(tmp_path, {TOKENIZER_KEY: "xyz"}, line))
    assert exit_.value.code == 2
    assert "in.jsonl: its units are of the speech tokenizer xyz, the checkpoint has abc" in capsys.readouterr().err
    assert not (tmp_path / "out/train.jsonl").exists()


def test_a_clip_that_cannot_be_read_is_named_with_its_line(tokenizer, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        pairs.main(_write(tmp_path, {"input": [], "output": []}, {"input": ["speech:3.flac"], "output": ["text:a"]}))
    assert exit_.value.code == 2
    assert "in.jsonl, pair 2" in capsys.readouterr().err
    assert not (tmp_path / "out/train.jsonl").exists()
