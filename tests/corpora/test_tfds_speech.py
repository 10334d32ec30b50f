"""Speech that stock TFDS builders prepared, in files that TFDS's own serializer writes."""

import io
import json
import struct

import numpy as np
import pytest
import soundfile
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer
from tensorflow_datasets.core.features import TensorInfo

from spirit_jax.audio import load_audio, resample_sinc
from spirit_jax.corpora import CorpusError, open_input
from spirit_jax.corpora.readers.tfds_speech import TFDSSpeech
from tests.support.goldens import golden


def feature(kind, **content):
    return {"pythonClassName": f"tensorflow_datasets.core.features.{kind}", **content}


TEXT = feature("text_feature.Text", text={})
NUMBER = feature("tensor_feature.Tensor", tensor={"shape": {}, "dtype": "int64", "encoding": "none"})


def audio_feature(rate, dimensions=("-1",), lazy=False):
    fields = {"shape": {"dimensions": list(dimensions)}, "dtype": "int64", "encoding": "NONE", "lazyDecode": lazy}
    return feature("audio_feature.Audio", audio={**fields, **({"sampleRate": str(rate)} if rate else {})})


def write_tfrecord(path, records):
    """Write records with zero checksums, which are not read."""
    path.write_bytes(b"".join(struct.pack("<QI", len(r), 0) + r + bytes(4) for r in records))


def write_array_record(path, records):
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


WRITERS = {"array_record": write_array_record, "tfrecord": write_tfrecord}


def prepare(directory, name, features, specs, examples, kind="array_record", shards=2):
    """Write a directory as `download_and_prepare` leaves it."""
    place = directory / name / "2.1.1"
    place.mkdir(parents=True)
    serializer = ExampleSerializer({key: TensorInfo(*spec) for key, spec in specs.items()})
    records = [serializer.serialize_example(example) for example in examples]
    cuts = np.array_split(np.arange(len(records)), shards)
    for shard, rows in enumerate(cuts):
        path = place / f"{name}-train.{kind}-{shard:05d}-of-{shards:05d}"
        WRITERS[kind](path, [records[row] for row in rows])
    split = {"name": "train", "shardLengths": [str(len(rows)) for rows in cuts], "numBytes": "1"}
    info = {"name": name, "version": "2.1.1", "splits": [split], "fileFormat": kind}
    (place / "dataset_info.json").write_text(json.dumps(info))
    (place / "features.json").write_text(json.dumps({"featuresDict": {"features": features}}))
    return directory / name


@pytest.fixture(scope="module")
def speech():
    samples, rate = soundfile.read(golden("audio/espeak_a_22k.wav"), dtype="int16")
    assert rate == 22_050
    return samples


def librispeech(directory, samples, kind="array_record", **changes):
    features = {"speech": audio_feature(16_000), "text": TEXT, "speaker_id": NUMBER, "chapter_id": NUMBER, "id": TEXT}
    scalar = ((), np.int64)
    specs = {"speech": ((None,), np.int64), "text": ((), np.object_), "speaker_id": scalar, "chapter_id": scalar}
    specs["id"] = ((), np.object_)
    examples = [
        {
            "speech": samples[100 * n : 100 * n + 2000 + n].astype(np.int64),
            "text": f"HELLO {n}".encode(),
            "speaker_id": 1272 + n,
            "chapter_id": 7,
            "id": f"1272-128104-{n:04d}".encode(),
        }
        for n in range(5)
    ]
    return prepare(directory, "librispeech", {**features, **changes}, specs, examples, kind)


@pytest.mark.parametrize("kind", WRITERS)
def test_librispeech_is_read_at_random(tmp_path, speech, kind):
    corpus = open_input(str(librispeech(tmp_path, speech, kind)), "train")
    assert (corpus.name, corpus.split, len(corpus), corpus.has_speech) == ("librispeech", "train", 5, True)
    for n in (4, 0, 2, 1, 3):  # across both shards
        utterance = corpus[n]
        assert (utterance.id, utterance.text) == (f"1272-128104-{n:04d}", f"HELLO {n}")
        assert utterance.speaker == str(1272 + n)
        np.testing.assert_array_equal(utterance.load(), speech[100 * n : 100 * n + 2000 + n] / np.float32(32768))
    with pytest.raises(IndexError, match="utterance 5 of 5"):
        corpus[5]
    assert isinstance(corpus, TFDSSpeech)
    before = corpus.fingerprint
    corpus.files[1].write_bytes(corpus.files[1].read_bytes() + b" ")
    assert corpus.fingerprint != before


def test_stereo_and_stored_files_are_read(tmp_path, speech):
    """Stereo at another sample rate without transcript or id, and audio stored as a file."""
    stereo = np.stack([speech[:9000], speech[9000:18_000]], 1)
    spec = {"audio": ((None, 2), np.int64)}
    examples = [{"audio": stereo.astype(np.int64)}]
    features = {"audio": audio_feature(22_050, ("-1", "2"))}
    where = prepare(tmp_path, "stereo", features, spec, examples, shards=1)
    utterance = open_input(str(where), "train")[0]
    assert (utterance.id, utterance.text, utterance.speaker) == ("train-00000000", "", "")
    expected = resample_sinc((stereo / np.float32(32768)).mean(1), 22_050, 16_000)
    np.testing.assert_allclose(utterance.load(), expected, rtol=0, atol=1e-7)  # one rounding of the mean

    file = io.BytesIO()
    soundfile.write(file, speech, 22_050, format="FLAC")
    spec = {"audio": ((), np.object_), "sentence": ((), np.object_), "client_id": ((), np.object_)}
    examples = [{"audio": file.getvalue(), "sentence": b"Hi.", "client_id": b"me"}]
    features = {"audio": audio_feature(None, lazy=True), "sentence": TEXT, "client_id": TEXT}
    utterance = open_input(str(prepare(tmp_path, "kept", features, spec, examples, shards=1)), "train")[0]
    assert (utterance.text, utterance.speaker) == ("Hi.", "me")
    np.testing.assert_array_equal(utterance.load(), load_audio(golden("audio/espeak_a_22k.wav")))


def test_unusable_directories_are_named(tmp_path, speech):
    with pytest.raises(CorpusError, match="does not say the sample rate of 'speech'"):
        open_input(str(librispeech(tmp_path / "rate", speech, speech=audio_feature(None))), "train")
    with pytest.raises(CorpusError, match="exactly one audio feature expected, found speech, more"):
        open_input(str(librispeech(tmp_path / "two", speech, more=audio_feature(16_000))), "train")
    where = librispeech(tmp_path / "files", speech, "tfrecord")
    with pytest.raises(CorpusError, match="no split 'test'; it has train"):
        open_input(str(where), "test")
    last = where / "2.1.1" / "librispeech-train.tfrecord-00001-of-00002"
    last.write_bytes(last.read_bytes()[:-30])
    with pytest.raises(CorpusError, match="00001-of-00002: ends within record 1"):
        open_input(str(where), "train")
    last.unlink()
    with pytest.raises(CorpusError, match="00001-of-00002: no such file"):
        open_input(str(where), "train")
    loud = np.full(2000, 70_000, np.int64)
    features = {"audio": audio_feature(16_000)}
    where = prepare(tmp_path, "loud", features, {"audio": ((None,), np.int64)}, [{"audio": loud}], shards=1)
    with pytest.raises(CorpusError, match="'train-00000000': samples of more than 16 bits"):
        open_input(str(where), "train")[0]
