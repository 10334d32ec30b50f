"""Thousands of damaged manifests and TFDS directories: utterances, or a CorpusError that names the file."""

import json

import numpy as np
import pytest

from spirit_jax.audio import save_audio
from spirit_jax.corpora import CorpusError, open_input
from spirit_jax.corpora.writing import write_corpus
from tests.support.clips import clip
from tests.support.mutations import byte_mutations, json_mutations, text_mutations

LINE = {
    "audio": "a.wav",
    "text": "hi there",
    "id": "a",
    "speaker": "jane",
    "offset": 0.0,
    "duration": 0.4,
    "words": [{"word": "hi", "start_ms": 0, "end_ms": 90}, {"word": "there", "start_ms": 90, "end_ms": 400}],
}
FEATURES = {
    "featuresDict": {
        "features": {
            "speech": {"audio": {"shape": {"dimensions": ["-1"]}, "dtype": "int64", "sampleRate": "16000"}},
            "text": {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text", "text": {}},
        }
    }
}
INFO = {
    "name": "mine",
    "version": "1.0.0",
    "splits": [{"name": "train", "shardLengths": ["1"], "numBytes": "1"}],
    "fileFormat": "tfrecord",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with the clip a.wav."""
    monkeypatch.chdir(tmp_path)
    save_audio("a.wav", np.full(8000, 0.1, np.float32))
    return tmp_path


def _read(source, name):
    """Read all of an input; every error names the input or the utterance."""
    messages = []
    try:
        corpus = open_input(str(source), "train")
        for index in range(len(corpus)):
            try:
                utterance = corpus[index]
                assert isinstance(utterance.id, str)
                assert isinstance(utterance.text, str)
                assert isinstance(utterance.speaker, str)
                utterance.check_transcript()
            except CorpusError as error:
                messages.append(str(error))
    except CorpusError as error:
        messages.append(str(error))
    assert all(name in message or "utterance" in message or "clips have the id" in message for message in messages)
    return messages


def test_lines_of_a_manifest(folder):
    lines = []
    for number, changed in enumerate(json_mutations(LINE, 2000, seed=0)):
        if isinstance(changed, dict) and changed.get("id") == "a":
            changed["id"] = str(number)
        try:
            lines.append(json.dumps(changed))
        except ValueError:  # an integer of 401 digits
            continue
    (folder / "m.jsonl").write_text("\n".join(lines))
    assert 1000 < len(_read("m.jsonl", "m.jsonl")) < len(lines) - 100


@pytest.mark.parametrize("name", ["m.jsonl", "m.json", "m.csv", "m.tsv"])
def test_bytes_of_a_manifest(folder, name):
    rows = [{**LINE, "id": str(number)} for number in range(3)]
    if name.endswith("l"):
        content = "\n".join(map(json.dumps, rows))
    elif name == "m.json":
        content = json.dumps(rows)
    else:
        sign = "," if name == "m.csv" else "\t"
        content = "\n".join(
            sign.join(row) for row in (["audio", "text", "id"], ["a.wav", "hi", "1"], ["a.wav", "", "2"])
        )
    for changed in byte_mutations(content.encode(), 150, seed=1):
        (folder / name).write_bytes(changed)
        _read(name, "m.")
    for text in text_mutations(content, 50, seed=2):
        (folder / name).write_text(text)
        _read(name, "m.")


def test_metadata_of_a_tfds_directory(folder):
    place = folder / "mine" / "1.0.0"
    place.mkdir(parents=True)
    (place / "mine-train.tfrecord-00000-of-00001").write_bytes(b"")
    for name, value, other, kept in (
        ("features.json", FEATURES, "dataset_info.json", INFO),
        ("dataset_info.json", INFO, "features.json", FEATURES),
    ):
        (place / other).write_text(json.dumps(kept))
        refused = 0
        for changed in json_mutations(value, 700, seed=3):
            try:
                (place / name).write_text(json.dumps(changed))
            except ValueError:
                continue
            if "audio" in json.dumps(json.loads((place / "features.json").read_text())):
                refused += bool(_read("mine", "mine"))
        assert refused > 100


def test_metadata_of_a_prepared_corpus(tmp_path):
    where = write_corpus(tmp_path, "mine", {"train": [clip()]}, "A clip.")
    for path in (where / "features.json", where / "dataset_info.json"):
        content = path.read_text()
        for changed in json_mutations(json.loads(content), 60, seed=4):
            try:
                path.write_text(json.dumps(changed))
            except ValueError:
                continue
            _read(where, str(where))
        path.write_text(content)
