"""Unsupported models are refused with the reason and with a list of what is supported."""

import json
import shutil

import numpy as np
import pytest
import torch

from spirit_jax.convert.components import hubert, llama
from spirit_jax.convert.errors import ConversionError, UsageError
from spirit_jax.convert.formats.torch_file import load_torch, save_torch
from spirit_jax.convert.part_import import import_part
from spirit_jax.convert.parts import RELEASED_PARTS
from spirit_jax.convert.plans import plan_import
from tests.support.goldens import golden
from tests.support.trees import LLAMAS, SPEECH

RELEASED_LAYERS = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 3"
QUANTIZER = {"vocab_size": 500, "dim": 768, "upstream_dim": 768}


@pytest.mark.parametrize(
    ("layers", "sample_rate", "message"),
    [
        ("[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2", 16000, "a unit every 320 samples at 16000 Hz"),
        ("[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 4", 16000, "a unit every 1280 samples at 16000 Hz"),
        ("[(512,10,5)] + [(512,8,4)] + [(512,4,2)] * 2", 16000, "a unit every 80 samples"),
        (RELEASED_LAYERS, 8000, "a unit every 640 samples at 8000 Hz"),
        (None, 16000, "a unit every 320 samples"),
    ],
)
def test_a_hubert_of_another_rate_is_refused(layers, sample_rate, message):
    model_cfg = {} if layers is None else {"conv_feature_layers": layers}
    with pytest.raises(ConversionError, match=f"{message}.*Spirit LM has 25 units a second.*use a 25 Hz HuBERT"):
        hubert.part_config(model_cfg, {"sample_rate": sample_rate}, QUANTIZER)
    assert hubert.part_config({"conv_feature_layers": RELEASED_LAYERS}, {"sample_rate": 16000}, QUANTIZER)


@pytest.mark.parametrize("kind", ["qwen2", "mistral", "gpt2", "wav2vec2", ["llama"]])
def test_a_language_model_of_another_kind_is_refused_by_name(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "hidden_size": 8}))
    with pytest.raises(ConversionError, match=r"model_type .* is not supported: .*Llamas .model_type 'llama'"):
        plan_import(tmp_path, model="base")


@pytest.mark.parametrize("content", ['[{"model_type": "llama"}]', "null", '{"hidden_size": 8, "num_hidden_layers": 1}'])
def test_a_config_that_is_none_or_lacks_the_kind_is_named(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConversionError, match=r"config\.json: .*(the fields of a model expected|model_type '' is not)"):
        plan_import(tmp_path, model="base")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.module."])
def test_names_with_the_prefix_of_a_wrapper_are_refused_in_a_line(prefix, tmp_path):
    for name in ("config.json", "pytorch_model.bin"):
        shutil.copy(LLAMAS["base"][0] / name, tmp_path)
    state = load_torch(tmp_path / "pytorch_model.bin")
    save_torch(tmp_path / "pytorch_model.bin", {prefix + name: tensor for name, tensor in state.items()})
    with pytest.raises(ConversionError, match=f"begin with '{prefix}', as a wrapper .* save the wrapped") as caught:
        plan_import(tmp_path)
    assert not caught.value.details
    style = shutil.copytree(SPEECH / "style_encoder_w2v2", tmp_path / "style_encoder_w2v2")
    state = load_torch(style / "pytorch_model.bin")
    save_torch(style / "pytorch_model.bin", {prefix + name: tensor for name, tensor in state.items()})
    with pytest.raises(ConversionError, match=f"begin with '{prefix}'"):
        import_part(RELEASED_PARTS[2], style)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_weights_of_eight_bits_are_refused_with_advice(dtype, tmp_path):
    torch.save({"weight": torch.zeros(4).to(getattr(torch, dtype))}, tmp_path / "weights.pt")
    with pytest.raises(ConversionError, match="a type that is not supported .8-bit float.*save it as bfloat16"):
        load_torch(tmp_path / "weights.pt")


def test_a_pickled_network_and_quantized_tensors_are_refused_with_advice(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "network.pt")
    with pytest.raises(ConversionError, match=r"torch\.nn\..*a whole network; save its weights alone"):
        load_torch(tmp_path / "network.pt")
    with pytest.warns(UserWarning, match="quantized tensor creation"):
        quantized = torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)
    torch.save(quantized, tmp_path / "quantized.pt")
    with pytest.raises(ConversionError, match="not supported .8-bit float, quantized"):
        load_torch(tmp_path / "quantized.pt")
    base = json.loads(golden("variants/llama_small_base/config.json").read_text())
    with pytest.raises(ConversionError, match="quantized weights are not supported; use the model"):
        llama.from_hf_config(base | {"quantization_config": {"quant_method": "fp8"}})


def test_a_plain_tokenizer_needs_a_variant_and_a_damaged_one_is_named(tmp_path):
    for name in ("config.json", "pytorch_model.bin"):
        shutil.copy(LLAMAS["base"][0] / name, tmp_path)
    shutil.copy(golden("tokenizers/small_base_added/tokenizer.model"), tmp_path)
    with pytest.raises(UsageError, match="on this command line: --model base or --model expressive"):
        plan_import(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(np.arange(99, dtype=np.uint8).tobytes())
    with pytest.raises(ValueError, match=r"tokenizer\.model is damaged") as caught:
        plan_import(tmp_path, model="base")
    assert not isinstance(caught.value, UsageError)
