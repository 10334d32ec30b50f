"""Unit records: the round trip, invalid records, and files that were truncated or changed."""

import dataclasses
import json
import os
import random
import re
import resource

import msgpack
import numpy as np
import pytest

from spirit_jax.data import records as records_module
from spirit_jax.data.records import (
    METADATA,
    RecordSource,
    RecordWriter,
    read_metadata,
    read_records,
    reshard,
)
from spirit_jax.data.unit_record import RecordError, UnitRecord
from spirit_jax.units import SpeechUnits
from tests.support.synthetic import speech_record, text_record


@pytest.fixture
def records():
    rng = np.random.default_rng(0)
    base = [speech_record(rng, number, 8, expressive=False) for number in range(10, 15)]
    return [speech_record(rng, number, 12) for number in range(10)] + base + [text_record(rng, 20, 200)]


def _same(one: UnitRecord, two: UnitRecord) -> bool:
    fields = [field.name for field in dataclasses.fields(UnitRecord) if field.name != "spans_ms"]
    return np.array_equal(one.spans_ms, two.spans_ms) and all(getattr(one, f) == getattr(two, f) for f in fields)


@pytest.mark.parametrize("shards", [1, 3])
def test_written_records_read_back(tmp_path, records, shards):
    with RecordWriter(tmp_path / "corpus", "train", shards, units="abc") as writer:
        for record in records:
            writer.write(record)
    source = RecordSource(tmp_path / "corpus", "train")
    read = {record.id: record for record in (source[index] for index in range(len(source)))}
    assert len(read) == len(source) == len(records)
    assert all(_same(read[record.id], record) for record in records)
    metadata = read_metadata(tmp_path / "corpus")
    assert (metadata["name"], metadata["units"], metadata["splits"]) == ("corpus", "abc", {"train": len(records)})
    assert sorted(metadata["files"]) == [f"train-{s:05d}-of-{shards:05d}.array_record" for s in range(shards)]
    assert sorted(os.listdir(tmp_path / "corpus")) == sorted([METADATA, *metadata["files"]])
    with pytest.raises(IndexError):
        source[len(records)]


def test_splits_are_added_or_replaced(tmp_path, records):
    for split, count, shards in (("train", 5, 2), ("test", 2, 1), ("train", 3, 1)):
        with RecordWriter(tmp_path, split, shards) as writer:
            for record in records[:count]:
                writer.write(record)
    assert read_metadata(tmp_path)["splits"] == {"train": 3, "test": 2}
    assert [record.id for record in read_records(tmp_path, "train")] == [record.id for record in records[:3]]
    assert len(list(tmp_path.glob("*.array_record"))) == 2
    with pytest.raises(RecordError, match="no split 'dev', it has \\['test', 'train'\\]"):
        RecordSource(tmp_path, "dev")


def test_failed_writer_leaves_the_directory_as_it_was(tmp_path, records):
    with RecordWriter(tmp_path, "train") as writer:
        writer.write(records[0])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupted():
        with RecordWriter(tmp_path, "train", 2) as writer:
            writer.write(records[1])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_units_of_two_tokenizers_do_not_mix(tmp_path, records):
    with RecordWriter(tmp_path, "train", units="one") as writer:
        writer.write(records[0])
    with pytest.raises(RecordError, match="holds units of one, these are of two"):
        RecordWriter(tmp_path, "test", units="two")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": " \n"}, "empty transcript"),
        ({"units": SpeechUnits(np.zeros(0, int)), "duration_ms": 30}, "30 ms with 0 units is shorter than a frame"),
        ({"duration_ms": 39}, "shorter than a frame"),
        ({"duration_ms": 60_000}, "the audio 60000 ms"),
        ({"units": None}, "2 aligned words but no units"),
        ({"spans_ms": np.array([[0, 100], [100, 1041]], np.int32)}, "word 1 \\('b'\\) at 100..1041 ms"),
        ({"spans_ms": np.array([[-1, 100], [100, 200]], np.int32)}, "word 0 \\('a'\\) at -1..100 ms"),
        ({"spans_ms": np.array([[0, 100], [300, 200]], np.int32)}, "word 1 \\('b'\\) at 300..200 ms"),
        ({"spans_ms": np.array([[500, 600], [100, 200]], np.int32)}, "not in the order of their times"),
        ({"spans_ms": np.array([[500, 600]], np.int32)}, "2 words but spans of shape \\(1, 2\\)"),
        ({"words": ("a", "b c")}, "empty or holds a space: 'b c'"),
        ({"words": ("a", "")}, "empty or holds a space: ''"),
        ({"units": SpeechUnits(np.arange(25), np.zeros(0, int), np.zeros(1, int))}, "empty pitch or style"),
    ],
)
def test_invalid_records_name_the_problem(tmp_path, change, message):
    spans = np.array([[0, 100], [100, 1000]], np.int32)
    record = UnitRecord("clip-7", "A b.", ("a", "b"), spans, SpeechUnits(np.arange(25)), 1000)
    record.validate()
    bad = dataclasses.replace(record, **change)
    with pytest.raises(RecordError, match=f"record 'clip-7': .*{message}"):
        bad.validate()
    with RecordWriter(tmp_path, "train") as writer, pytest.raises(RecordError, match="clip-7"):
        writer.write(bad)


def test_truncated_or_missing_files_are_named(tmp_path, records):
    with RecordWriter(tmp_path, "train", 2) as writer:
        for record in records:
            writer.write(record)
    file = tmp_path / "train-00001-of-00002.array_record"
    data = file.read_bytes()
    file.write_bytes(data[:-1000])
    with pytest.raises(RecordError, match="train-00001-of-00002.*truncated"):
        RecordSource(tmp_path, "train")
    source, readable = RecordSource(tmp_path, "train", allow_damaged=True), []
    for index in range(len(records)):
        try:
            readable.append(source[index].id)
        except RecordError as error:
            assert re.search("train-00001-of-00002.*truncated", str(error))  # noqa: PT017 - some raise, some must not
    assert readable == [record.id for record in records[::2]]
    file.unlink()
    with pytest.raises(RecordError, match="train-00001-of-00002.*missing"):
        RecordSource(tmp_path, "train")
    file.write_bytes(b"x" * len(data))
    with pytest.raises(RecordError, match="train-00001-of-00002"):
        RecordSource(tmp_path, "train")[1 + len(records) // 2]
    (tmp_path / METADATA).write_text('{"splits"')
    with pytest.raises(RecordError, match="metadata.json: not JSON"):
        RecordSource(tmp_path, "train")
    (tmp_path / METADATA).write_text(json.dumps({"splits": {}}))
    with pytest.raises(RecordError, match="'splits' and 'files'"):
        RecordSource(tmp_path, "train")
    with pytest.raises(RecordError, match="not found; is .* a directory of unit records"):
        RecordSource(tmp_path / "elsewhere", "train")


def test_flipped_byte_is_noticed_or_harmless(tmp_path, records):
    """Every record either reads exactly as written or raises an error that names the file."""
    with RecordWriter(tmp_path, "train") as writer:
        for record in records:
            writer.write(record)
    file = tmp_path / "train-00000-of-00001.array_record"
    data, rng, noticed = file.read_bytes(), np.random.default_rng(0), 0
    (used,) = np.nonzero(np.frombuffer(data, np.uint8))  # most of a file this small is padding
    for position in rng.choice(used, 60):
        changed = bytearray(data)
        changed[position] ^= 1 << int(rng.integers(8))
        file.write_bytes(changed)
        source = RecordSource(tmp_path, "train")
        for index, record in enumerate(records):
            try:
                assert _same(source[index], record)
            except RecordError as error:
                noticed += "train-00000-of-00001" in str(error)
    assert noticed > 20


def test_bytes_that_are_not_a_record_are_refused(tmp_path, records):
    broken = records[0].to_bytes().replace(b"utterance-0", b"utterance-X")
    assert UnitRecord.from_bytes(broken).id == "utterance-X"
    for field, value in (("text", 7), ("words", ["a", 3]), ("ms", "long"), ("id", None), ("spans", b"12345")):
        fields = msgpack.unpackb(records[0].to_bytes()) | {field: value}
        with pytest.raises(RecordError, match="record "):
            UnitRecord.from_bytes(msgpack.packb(fields) or b"")
    with RecordWriter(tmp_path, "train") as writer:
        writer.write_bytes(b"\x93not msgpack")
    with pytest.raises(RecordError, match="train-00000-of-00001.array_record: record 0: not a unit record"):
        RecordSource(tmp_path, "train")[0]


def test_two_processes_add_different_splits_at_once(tmp_path):
    """Both splits are listed, whichever process closes its writer first."""
    writers = {split: RecordWriter(tmp_path, split) for split in ("train", "validation", "test")}
    for count, (split, writer) in enumerate(writers.items(), 1):
        for number in range(count):
            writer.write(UnitRecord(f"{split}-{number}", "some text"))
    for split in ("test", "train", "validation"):
        writers[split].close()
    assert read_metadata(tmp_path)["splits"] == {"train": 1, "validation": 2, "test": 3}
    assert {split: len(read_records(tmp_path, split)) for split in writers} == {"train": 1, "validation": 2, "test": 3}


@pytest.mark.parametrize(
    "name",
    [
        "train-/a-/b-/../../../../victim/notes.txt",
        "../victim/train-00000-of-00001.array_record",
        "/tmp/train-00000-of-00001.array_record",
        "train-notes-of-00001.array_record",
        "notes.txt",
        "",
    ],
)
def test_names_in_metadata_are_never_paths(tmp_path, name):
    records, victim = tmp_path / "records", tmp_path / "victim"
    records.mkdir()
    victim.mkdir()
    (victim / "notes.txt").write_text("precious")
    (records / "train-").mkdir()
    metadata = {"name": "x", "units": "", "splits": {"train": 1}, "files": {name: {"records": 1, "bytes": 9}}}
    (records / METADATA).write_text(json.dumps(metadata))
    for use in (lambda: RecordWriter(records, "train"), lambda: RecordSource(records, "train")):
        with pytest.raises(RecordError, match="metadata.json: .*is not the name of a file"):
            use()
    assert (victim / "notes.txt").read_text() == "precious"


@pytest.mark.parametrize("shards", [7, 40])
def test_more_shards_than_open_files(tmp_path, shards, monkeypatch):
    """The files are byte for byte those of a process that may open enough files, and all can be read."""
    records = [UnitRecord(f"page-{number}", f"text {number}") for number in range(101)]

    def write(directory):
        with RecordWriter(directory, "train", shards, name="pages") as writer:
            for record in records:
                writer.write(record)
        return {path.name: path.read_bytes() for path in directory.iterdir()}

    expected = write(tmp_path / "many")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(limit[0], opened + 20), limit[1]))
    monkeypatch.setattr("spirit_jax.data.records._max_open_files", lambda: 4)
    try:
        assert write(tmp_path / "few") == expected
        assert sorted(record.id for record in read_records(tmp_path / "few", "train")) == sorted(r.id for r in records)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def test_open_files_are_a_share_of_what_the_system_allows(monkeypatch):
    for allowed, expected in ((64, 16), (1024, 256), (8, 4)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, allowed=allowed: (allowed, allowed))
        assert records_module._max_open_files() == expected


@pytest.mark.parametrize(("before", "after"), [(1, 4), (3, 2), (4, 1)])
def test_resharding_keeps_the_records_and_their_order(tmp_path, before, after):
    def write(directory, shards):
        with RecordWriter(directory, "train", shards, name="pages", units="abc") as writer:
            for number in range(10):
                writer.write(UnitRecord(f"page-{number}", f"text {number}"))

    write(tmp_path / "changed", before)
    reshard(tmp_path / "changed", "train", after)
    write(tmp_path / "expected", after)
    contents = [
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("changed", "expected")
    ]
    assert contents[0] == contents[1]


def test_half_surrogates_are_refused():
    for field in ("id", "text", "speaker"):
        with pytest.raises(RecordError, match="half of a surrogate pair"):
            dataclasses.replace(UnitRecord("page", "text"), **{field: "a\ud800"}).validate()


def test_mutated_metadata_never_raises_another_exception(tmp_path):
    """Thousands of damaged files are read as records or refused with a message that names the file."""
    with RecordWriter(tmp_path, "train", 2, name="pages", units="abc") as writer:
        writer.write(UnitRecord("page", "text"))
    content, rng = (tmp_path / METADATA).read_text(), random.Random(0)
    values = [
        "null",
        "-1",
        "1e9",
        "true",
        '"x"',
        "[]",
        "{}",
        "1" * 400,
        '"../x"',
        "1" * 5000,
        "[" * 200,
        "NaN",
        '"\\ud800"',
    ]
    tokens = re.findall(r'"[^"]*"|\d+|[{}:,]|\s+', content)
    refused = 0
    for _ in range(1000):
        changed = list(tokens)
        for _ in range(rng.randint(1, 2)):
            changed[rng.randrange(len(changed))] = rng.choice(values)
        (tmp_path / METADATA).write_text("".join(changed))
        try:
            RecordSource(tmp_path, "train")
        except RecordError as error:
            refused += 1
            assert str(tmp_path) in str(error)  # noqa: PT017 - some of them are harmless
    assert refused > 500
