"""Every file of a checkpoint directory has a checksum, and whoever reads a damaged file says so in one line."""

import json
import pathlib
import shutil

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from spirit_jax import checkpoint
from spirit_jax.convert.plans import plan_export
from spirit_jax.core.checksums import CHECKSUMS, read_checksums, write_checksums
from spirit_jax.core.errors import SpiritError
from spirit_jax.speech.loading import load_phonetic_encoder, load_style_encoder
from spirit_jax.vocabulary import Vocabulary, VocabularyError


@pytest.fixture
def copy(converted, tmp_path):
    """A copy of the converted checkpoint, in a directory with characters that mean something in a URL."""
    return shutil.copytree(converted, tmp_path / "a#b %41?")


def flip(path: pathlib.Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def sealed_files(directory):
    """Every file that the seals of a checkpoint directory list, and every file in it."""
    seals = directory.rglob("checksums-*")
    listed = {seal.parent / name for seal in seals for name in read_checksums(seal.parent) or ()}
    return listed, {path for path in directory.rglob("*") if path.is_file() and not path.name.startswith("checksums-")}


def test_every_file_of_a_converted_checkpoint_has_a_checksum(converted):
    listed, files = sealed_files(converted)
    assert files == listed


def test_the_files_of_a_tokenizer_and_of_a_part_that_are_saved_here_have_checksums(tmp_path):
    from spirit_jax.speech.scratch.kmeans import KMeansEncoder
    from spirit_jax.speech.storage import save_part

    Vocabulary.train(["the cat sat on the mat"] * 20, size=280).save(tmp_path / "tokenizer")
    save_part(tmp_path / "part", KMeansEncoder(np.zeros((3, 4), np.float32)))
    listed, files = sealed_files(tmp_path)
    assert files == listed
    assert len(files) == 4


def test_every_flipped_bit_is_found_by_an_export(copy):
    """Metadata and arrays of the language model, tokenizer, parts and what is carried for the export."""
    assert plan_export(copy)
    files = [path for path in sorted(copy.rglob("*")) if path.is_file() and not path.name.startswith("checksums-")]
    by_place = {(path.parent, path.suffix): path for path in files if path.stat().st_size}
    for path in [copy / "_CHECKPOINT_METADATA", *by_place.values()]:
        before = path.read_bytes()
        flip(path)
        with pytest.raises(SpiritError, match=r"is not as it was written|cannot be read|not JSON|not UTF-8") as caught:
            plan_export(copy)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)
        path.write_bytes(before)


@pytest.mark.parametrize("name", ["llm", "optimizer"])
def test_export_refuses_a_damaged_training_step(name, converted, tmp_path):
    step = tmp_path / "run/checkpoints/3"
    tree = {"weight": np.arange(1000, dtype=np.float32)}
    ocp.save_checkpointables(step, {"llm": tree, "optimizer": tree})
    shutil.copytree(converted / "tokenizer", tmp_path / "run/tokenizer")
    shutil.copy(converted / "config.json", tmp_path / "run")
    write_checksums(step)
    flip(max((step / name).rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0))
    with pytest.raises(SpiritError) as caught:
        plan_export(step)
    assert ("is not as it was written" in str(caught.value)) == (name == "llm")  # the model is all that is exported


def test_readers_find_a_flipped_bit_in_what_they_read(copy):
    flip(copy / "speech_tokenizer/phonetic/params.safetensors")
    with pytest.raises(checkpoint.CheckpointError, match=r"params\.safetensors: is not as it was written"):
        load_phonetic_encoder(copy)
    flip(copy / "speech_tokenizer/style/released/weights.json")
    with pytest.raises(checkpoint.CheckpointError, match=r"weights\.json: is not as it was written"):
        load_style_encoder(copy)
    flip(copy / "tokenizer/tokenizer.model")
    with pytest.raises(VocabularyError, match=r"tokenizer\.model: is not as it was written"):
        Vocabulary.load(copy / "tokenizer")
    (copy / "config.json").write_text((copy / "config.json").read_text().replace("1", "2"))
    with pytest.raises(checkpoint.CheckpointError, match=r"config\.json: is not as it was written"):
        checkpoint.read_config(copy)


def test_a_missing_file_is_found(copy):
    (copy / "speech_tokenizer/phonetic/released/weights.json").unlink()
    with pytest.raises(SpiritError, match=r"weights\.json: is not as it was written"):
        plan_export(copy)


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"tree_metadata": null}', b"[" * 10**5])
@pytest.mark.parametrize("file", ["llm/_METADATA", "llm/manifest.ocdbt"])
def test_damaged_metadata_without_a_checksum_give_one_line(file, damage, copy):
    (copy / CHECKSUMS).unlink()
    (copy / file).write_bytes(damage)
    with pytest.raises(checkpoint.CheckpointError, match="cannot be read") as caught:
        checkpoint.open_arrays(copy, checkpoint.flatten(checkpoint.stored_tree(copy)))
    assert "\n" not in str(caught.value)
    assert str(copy) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "found a list"),
        ("{}", "found nothing"),
        ('{"variant": "base"}', "found variant"),
        ('{"model": 3}', "found model"),
        ('{"model": {"hidden_size": "x"}}', "config.json|hidden_size"),
        ('{"model": {"nonsense": 1}}', "nonsense"),
        ("null", "found a NoneType"),
        ("", "not JSON"),
    ],
)
def test_a_config_that_is_none_is_refused_by_name(content, message, copy):
    (copy / CHECKSUMS).unlink()
    (copy / "config.json").write_text(content)
    with pytest.raises(SpiritError, match=message):
        plan_export(copy, ["llm"])


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "a\0b"])
def test_names_in_a_file_of_checksums_lead_nowhere_else(name, copy):
    (copy / CHECKSUMS).write_text(json.dumps({name: [0, "00000000"]}))
    with pytest.raises(SpiritError, match="leads outside the directory: refused"):
        plan_export(copy, ["llm"])


@pytest.mark.parametrize("content", [[], {"a": 3}, {"config.json": []}, {"config.json": None}])
def test_damaged_checksums_are_refused(content, copy):
    (copy / CHECKSUMS).write_text(json.dumps(content))
    with pytest.raises(SpiritError, match="no checksums|not as it was written"):
        plan_export(copy, ["llm"])
