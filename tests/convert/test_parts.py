"""Reading of the released parts, in every layout in which people have them."""

import json
import pickle
import shutil
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch

from spirit_jax import checkpoint
from spirit_jax.convert.components import hubert, llama
from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.formats.arrays import same_bits
from spirit_jax.convert.formats.torch_file import load_torch
from spirit_jax.convert.part_import import import_part
from spirit_jax.convert.parts import RELEASED_PARTS
from spirit_jax.convert.table import to_jax
from spirit_jax.convert.weight_files import installed_fcpe
from tests.support.goldens import golden
from tests.support.trees import SPEECH, check_equal, run_export, run_import

PHONETIC, PITCH = RELEASED_PARTS[:2]
FULL_SIZE = json.loads(golden("FULL_SIZE.json").read_text())


def test_fcpe_is_read_from_the_installed_package(tmp_path):
    (tmp_path / "vqvae_f0_quantizer").mkdir()
    for path in (SPEECH / "vqvae_f0_quantizer").iterdir():
        shutil.copy(path, tmp_path / "vqvae_f0_quantizer")
    found = import_part(PITCH, tmp_path / "vqvae_f0_quantizer")
    installed = installed_fcpe()
    if installed is None:
        pytest.skip("torchfcpe (test extra) is not installed")
    table = load_torch(installed)["model"]["cent_table"]
    np.testing.assert_array_equal(found.arrays["fcpe/cent_table"], table)
    assert found.config["fcpe"] == {"hidden_size": 512, "num_layers": 6, "num_bins": 360}


def test_a_checkpoint_of_fairseqs_trainer_gives_the_same_part_as_the_released_layout(tmp_path):
    folder = shutil.copytree(SPEECH / "hubert_25hz", tmp_path / "hubert_25hz")
    converted = torch.load(folder / "mhubert_base_25hz.pt")
    module: Any = types.ModuleType("fairseq.data.dictionary")
    module.Dictionary = type("Dictionary", (), {"__module__": module.__name__})
    dictionary: Any = module.Dictionary()
    dictionary.symbols = ["0", "1"]
    try:
        sys.modules |= {"fairseq": types.ModuleType("fairseq"), "fairseq.data": types.ModuleType("fairseq.data")}
        sys.modules[module.__name__] = module
        content = {
            "args": None,
            "cfg": {"model": converted["model_cfg"], "task": converted["task_cfg"]},
            "model": converted["model_weight"],
            "task_state": {"dictionaries": [dictionary]},
            "extra_state": {"best": np.float64(2.5), "epoch": 3},
        }
        torch.save(content, folder / "mhubert_base_25hz.pt", pickle_module=pickle)
    finally:
        for name in ("fairseq", "fairseq.data", module.__name__):
            sys.modules.pop(name, None)
    found = import_part(PHONETIC, folder)
    expected = import_part(PHONETIC, SPEECH / "hubert_25hz")
    assert found.config == expected.config
    assert all(same_bits(found.arrays[path], expected.arrays[path]) for path in expected.arrays)
    assert "exported in the released layout, without args, extra_state" in found.notes[0]
    back = run_export(run_import(folder, tmp_path / "converted"), tmp_path / "back") / "speech_tokenizer/hubert_25hz"
    exported = torch.load(back / "mhubert_base_25hz.pt", weights_only=True)
    expected = {key: converted[key] for key in ("task_cfg", "model_cfg", "model_weight")}
    check_equal(exported, expected | {"dictionaries_symbols": [["0", "1"]]}, "fairseq")


def test_speaker_statistics_beside_the_config_are_imported_and_exported(tmp_path):
    folder = shutil.copytree(SPEECH / "vqvae_f0_quantizer", tmp_path / "vqvae_f0_quantizer")
    (tmp_path / "fcpe").mkdir()
    shutil.copy(golden("variants/fcpe_tiny/fcpe_tiny.pt"), tmp_path / "fcpe/fcpe_c_v001.pt")
    found = import_part(PITCH, folder)  # config.yaml names /not/there/f0_stats.pt
    assert "speaker_f0_mean" not in found.config
    assert "f0_stats.pt is not there, though the config names it" in found.notes[0]
    torch.save({"ann": {"f0_mean": torch.tensor(200.5)}, "bob": {"f0_mean": 110.0}}, folder / "f0_stats.pt")
    converted = run_import(folder, tmp_path / "converted")
    config = json.loads((converted / "speech_tokenizer/pitch/config.json").read_text())
    assert config["speaker_f0_mean"] == {"ann": 200.5, "bob": 110.0}
    back = run_export(converted, tmp_path / "back") / "speech_tokenizer/vqvae_f0_quantizer"
    assert (back / "f0_stats.pt").read_bytes() == (folder / "f0_stats.pt").read_bytes()
    torch.save({"ann": {"f0_std": 1.0}}, folder / "f0_stats.pt")
    with pytest.raises(ConversionError, match="an f0_mean in Hz expected for each speaker"):
        import_part(PITCH, folder)


def test_voices_keep_their_names(released, tmp_path):
    converted = run_import(released, tmp_path / "converted", only=["vocoder"])
    part = json.loads((converted / "speech_tokenizer/vocoder_base" / checkpoint.CONFIG).read_text())
    folder = released / "speech_tokenizer/hifigan_spiritlm_base"
    assert part["speakers"] == (folder / "speakers.txt").read_text().splitlines()
    assert part["styles"] == (folder / "styles.txt").read_text().splitlines()


@pytest.mark.parametrize("name", [name for name, entry in FULL_SIZE.items() if "state" in entry])
def test_tables_map_every_tensor_of_the_published_sizes(name):
    """FULL_SIZE.json lists every key of the parts at their published sizes; a table must use each and lack none."""
    entry = FULL_SIZE[name]
    layers = entry["config"]["num_hidden_layers"] if name.startswith("spirit-lm") else 1
    # The file lists the first layer of a language model for all of them.
    tensors = {
        key.replace("layers.0.", f"layers.{i}.") if layers > 1 else key: np.broadcast_to(np.float32(0), shape)
        for key, shape in entry["state"].items()
        for i in range(layers)
    }
    if name.startswith("spirit-lm"):
        model = llama.from_hf_config(entry["config"])
        rows, shapes = llama.rows(model), llama.shapes(model)
    else:
        part = next(part for part in RELEASED_PARTS if part.folder == name.split("/")[0])
        file = next(file for file in part.files if file.name in (None, name.split("/")[-1]))
        config = {
            "phonetic": lambda: hubert.part_config(
                FULL_SIZE["hubert_25hz/mhubert_base_25hz.pt"]["model_cfg"],
                FULL_SIZE["hubert_25hz/mhubert_base_25hz.pt"]["task_cfg"],
                FULL_SIZE["hubert_25hz/L11_quantizer_500.pt"]["model_cfg"],
            ),
            "pitch": lambda: part.config({"config.yaml": entry["config"]}),
            "style": lambda: part.config({"config.json": {"num_labels": 100}}),
        }.get(part.name, lambda: part.config({"config.json": entry["config"]}))
        rows, shapes = file.table(config())
    arrays, kept = to_jax(rows, tensors, shapes, name)
    count = sum(np.prod(array.shape, dtype=np.int64) for array in [*arrays.values(), *kept.values()])
    assert count == entry.get("params_with_codebook_buffer", entry["params"])
