"""Thousands of damaged records, record files and metadata: each gives valid values or a RecordError."""

import json
import shutil

import msgpack
import numpy as np
import pytest

from spirit_jax.core.files import write_file
from spirit_jax.data.records import METADATA, RecordSource, RecordWriter, read_metadata
from spirit_jax.data.unit_record import RecordError, UnitRecord
from tests.support.mutations import byte_mutations, json_mutations
from tests.support.synthetic import speech_record, text_record


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """A directory with two splits, one of two files."""
    directory, rng = tmp_path_factory.mktemp("hostile") / "records", np.random.default_rng(0)
    for split, shards in (("train", 2), ("dev", 1)):
        with RecordWriter(directory, split, shards) as writer:
            for number in range(4):
                writer.write(speech_record(rng, number, 5) if number % 2 else text_record(rng, number, 9))
    return directory


def _read_all(directory):
    """Read every record of every split; how many could be used."""
    used = 0
    for split in read_metadata(directory)["splits"]:
        source = RecordSource(directory, split)
        for index in range(min(len(source), 20)):
            try:
                source[index].validate()
                used += 1
            except RecordError:
                continue
    return used


def test_metadata_gives_its_records_or_an_error_with_the_name_of_the_file(records, tmp_path):
    directory, messages = tmp_path / "records", []
    shutil.copytree(records, directory)
    metadata = json.loads((records / METADATA).read_text())
    for changed in json_mutations(metadata, 1500, seed=0):
        try:
            (directory / METADATA).write_text(json.dumps(changed))
        except ValueError:  # an integer of 401 digits
            continue
        try:
            _read_all(directory)
        except RecordError as error:
            messages.append(str(error))
    assert len(messages) > 700
    assert all(str(directory) in message for message in messages)
    assert sorted(path.name for path in directory.iterdir()) == sorted(path.name for path in records.iterdir())


def test_bytes_of_metadata_give_its_records_or_an_error(records, tmp_path):
    directory, messages = tmp_path / "records", []
    shutil.copytree(records, directory)
    for changed in byte_mutations((records / METADATA).read_bytes(), 500, seed=1):
        write_file(directory / METADATA, changed)
        try:
            _read_all(directory)
        except RecordError as error:
            messages.append(str(error))
    assert len(messages) > 200
    assert all(str(directory) in message for message in messages)


def test_bytes_of_a_record_give_a_record_or_an_error():
    content, refused = speech_record(np.random.default_rng(1), 1, 6).to_bytes(), 0
    for changed in byte_mutations(content, 4000, seed=2):
        try:
            UnitRecord.from_bytes(changed).validate()
        except RecordError:
            refused += 1
    assert refused > 1000


def test_fields_of_a_record_give_a_record_or_an_error():
    fields = msgpack.unpackb(speech_record(np.random.default_rng(1), 1, 6).to_bytes())
    texts = {name: value for name, value in fields.items() if not isinstance(value, bytes)}
    for changed in json_mutations(texts, 3000, seed=3):
        if not isinstance(changed, dict):
            continue
        try:
            content = msgpack.packb({**fields, **changed}, unicode_errors="surrogatepass")
        except (OverflowError, ValueError):  # an integer that msgpack cannot hold
            continue
        assert content is not None
        try:
            record = UnitRecord.from_bytes(content)
            record.validate()
        except RecordError:
            continue
        assert isinstance(record.text, str)
        assert isinstance(record.duration_ms, int)
        record.to_bytes()


def test_record_files_give_their_records_or_an_error_with_the_name_of_the_file(records, tmp_path):
    directory, messages = tmp_path / "records", []
    shutil.copytree(records, directory)
    name = "train-00000-of-00002.array_record"
    whole, metadata = (records / name).read_bytes(), json.loads((records / METADATA).read_text())
    originals = {RecordSource(records, "train").read_bytes(index) for index in range(4)}
    for changed in byte_mutations(whole, 250, seed=4):
        (directory / name).write_bytes(changed)
        metadata["files"][name]["bytes"] = len(changed)  # as if the damage had been there when it was counted
        (directory / METADATA).write_text(json.dumps(metadata))
        source = RecordSource(directory, "train")
        for index in range(len(source)):
            try:
                content = source.read_bytes(index)
            except RecordError as error:
                messages.append(str(error))
            else:
                assert content in originals
    assert len(messages) > 100
    assert all(str(directory) in message for message in messages)
