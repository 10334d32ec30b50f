"""Import and export of released trees. A conversion moves bytes, so everything is compared for equality."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import torch
import transformers
from orbax.checkpoint import v1 as ocp

from spirit_jax import checkpoint, config
from spirit_jax.convert.components import llama
from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.formats.arrays import same_bits
from spirit_jax.convert.formats.torch_file import load_torch, save_torch
from spirit_jax.convert.plans import plan_export
from spirit_jax.models.llama import LlamaConfig, abstract_params
from spirit_jax.vocabulary import Vocabulary
from tests.support.goldens import golden
from tests.support.trees import SPEECH, check_equal, check_tree, run_export, run_import


def test_import_then_export_restores_the_released_tree(released, converted, tmp_path):
    back = run_export(converted, tmp_path / "back")
    check_tree(back, released, but=["spiritlm_model/spirit-lm-base-7b"])


@pytest.mark.parametrize(
    ("variant", "folder"),
    [
        ("llama_small_expressive_bin_sharded", "spiritlm_model/spirit-lm"),  # the golden folder has no tokenizer
        ("hubert_25hz_batch_norm", "speech_tokenizer/hubert_25hz"),
        ("vqvae_f0_quantizer_raw", "speech_tokenizer/vqvae_f0_quantizer"),
    ],
)
def test_import_then_export_restores_variants_of_a_part(variant, folder, tmp_path):
    source = tmp_path / "released" / pathlib.Path(folder).name
    shutil.copytree(golden(f"variants/{variant}"), source)
    (source.parent / "fcpe").mkdir()  # small weights, so that those of the installed package are not used
    shutil.copy(golden("variants/fcpe_tiny/fcpe_tiny.pt"), source.parent / "fcpe/fcpe_c_v001.pt")
    back = run_export(run_import(source, tmp_path / "converted"), tmp_path / "back")
    check_tree(back / folder, golden(f"variants/{variant}"))


def test_export_keeps_the_newer_names_of_weight_norm(tmp_path):
    folder = shutil.copytree(SPEECH / "style_encoder_w2v2", tmp_path / "style_encoder_w2v2")
    state = load_torch(folder / "pytorch_model.bin")
    names = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    renamed = {key.replace(old := key.rsplit(".", 1)[-1], names.get(old, old)): state[key] for key in state}
    save_torch(folder / "pytorch_model.bin", renamed)
    before = torch.load(folder / "pytorch_model.bin", weights_only=True)
    assert any("original0" in key for key in before)
    back = run_export(run_import(folder, tmp_path / "converted"), tmp_path / "back")
    check_equal(torch.load(back / "speech_tokenizer/style_encoder_w2v2/pytorch_model.bin"), before, "style")


def test_a_training_step_exports(converted, tmp_path):
    """The step is saved as a training run does, by Orbax, and has no `released/` beside it."""
    run = tmp_path / "run"
    settings = checkpoint.read_config(converted)
    model = config.from_dict(LlamaConfig, settings["model"])
    params = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape), abstract_params(model))
    ocp.save_checkpointables(run / "checkpoints/3", {"llm": params, "optimizer": {"count": np.zeros(3)}})
    shutil.copytree(converted / "tokenizer", run / "tokenizer")
    (run / "config.json").write_text(json.dumps(settings))
    # A part that was trained from scratch has no released form.
    (run / "speech_tokenizer/phonetic").mkdir(parents=True)
    assert "phonetic is left behind" in plan_export(run / "checkpoints/3")[-1].notes[0]
    with pytest.raises(ConversionError, match="not imported from a released checkpoint"):
        plan_export(run / "checkpoints/3", ["llm", "hubert"])
    with pytest.raises(checkpoint.CheckpointError, match="name one of its steps"):
        plan_export(run)
    folder = run_export(run / "checkpoints/3", tmp_path / "back") / "spiritlm_model/spirit-lm-expressive-7b"
    loaded = transformers.LlamaForCausalLM.from_pretrained(folder).state_dict()
    q = np.asarray(params["layers"]["self_attn"]["q_proj"][2]).reshape(64, 64).T
    np.testing.assert_array_equal(loaded["model.layers.2.self_attn.q_proj.weight"].numpy(), q)
    assert Vocabulary.load(folder).fingerprint == Vocabulary.load(converted / "tokenizer").fingerprint
    again = run_import(folder, tmp_path / "again")
    stored = checkpoint.open_arrays(again, llama.shapes(model))
    assert all(same_bits(np.asarray(stored[p]), np.asarray(a)) for p, a in checkpoint.flatten(params).items())
