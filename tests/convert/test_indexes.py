"""File names inside checkpoints are checked before they are used."""

import json
import shutil

import pytest

from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.plans import plan_export, plan_import
from spirit_jax.core.checksums import write_checksums
from tests.support.goldens import golden


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/passwd", "sub/x.bin", "..", "", 7, "a\\b"])
def test_an_index_that_names_a_file_elsewhere_is_refused(name, tmp_path):
    folder = shutil.copytree(golden("variants/llama_small_expressive_bin_sharded"), tmp_path / "llama")
    (tmp_path / "outside.bin").write_bytes((folder / "pytorch_model-00001-of-00003.bin").read_bytes())
    index = json.loads((folder / "pytorch_model.bin.index.json").read_text())
    index["weight_map"]["lm_head.weight"] = name
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ConversionError, match="is not the name of a file beside it"):
        plan_import(folder)


def test_an_index_that_differs_from_its_shards_is_refused(tmp_path):
    folder = shutil.copytree(golden("variants/llama_small_expressive_bin_sharded"), tmp_path / "llama")
    index = folder / "pytorch_model.bin.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.embed_tokens.weight"] = "pytorch_model-00003-of-00003.bin"
    index.write_text(json.dumps(content))
    with pytest.raises(ConversionError, match=r"embed_tokens.weight: index says .*00003.*, found in .*00001"):
        plan_import(folder)
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(ConversionError, match="shard pytorch_model-00002-of-00003.bin is missing"):
        plan_import(folder)


def test_a_converted_part_that_names_a_file_elsewhere_is_refused(converted, tmp_path):
    copy = shutil.copytree(converted / "speech_tokenizer", tmp_path / "c/speech_tokenizer")
    listing = copy / "vocoder_base/released/weights.json"
    listing.write_text(listing.read_text().replace('"generator.pt"', '"../../escaped.pt"'))
    write_checksums(copy / "vocoder_base")
    with pytest.raises(ConversionError, match=r"'../../escaped.pt' is not the name of a file beside it"):
        plan_export(tmp_path / "c")
