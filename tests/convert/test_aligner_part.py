"""Networks with a CTC head: the converter's layouts, and what the networks compute, against transformers."""

import json

import jax
import numpy as np
import pytest
import torch

from spirit_jax.checkpoint import load_arrays
from spirit_jax.convert.components import ctc
from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.part_import import import_part
from spirit_jax.convert.parts import ALIGNER_PART
from spirit_jax.convert.verification.verify import TOLERANCE, verify
from tests.support.ctc_networks import save_network, save_torchaudio
from tests.support.trees import check_equal, run_export, run_import


def logits_of(config, params, audio):
    with jax.default_matmul_precision("float32"):
        return np.asarray(jax.jit(ctc.network(config).apply)({"params": params}, audio)[0])


@pytest.mark.parametrize(("hubert", "stable"), [(False, False), (False, True), (True, False), (True, True)])
def test_a_network_computes_what_transformers_computes_and_comes_back_bit_for_bit(tmp_path, hubert, stable):
    released = tmp_path / "released/aligner"
    network = save_network(released, hubert, stable)
    converted = run_import(tmp_path / "released", tmp_path / "converted", only=["aligner"])
    config = json.loads((converted / "aligner/config.json").read_text())
    assert (config["encoder"]["pre_norm"], config["encoder"]["conv_norm"]) == (stable, "layer" if stable else "group")
    audio = np.random.default_rng(0).standard_normal((2, 8000), np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(audio)).logits.numpy()
    found = logits_of(config, load_arrays(converted / "aligner"), audio)
    # float32 rounding of seven convolutions and two transformer layers
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    back = run_export(converted, tmp_path / "back") / "aligner"
    names = sorted(path.name for path in released.iterdir())
    assert sorted(path.name for path in back.iterdir()) == names
    for name in names:
        if not name.endswith(".safetensors"):
            assert (back / name).read_bytes() == (released / name).read_bytes()
    (result,) = verify(tmp_path / "released", converted, ["aligner"])
    assert result.equal == "yes"
    assert result.network is not None
    assert result.network < TOLERANCE


def test_mms_fa_is_read_without_a_config(tmp_path):
    network = save_torchaudio(tmp_path)
    converted = run_import(tmp_path / "mms", tmp_path / "converted", only=["aligner"])
    config = json.loads((converted / "aligner/config.json").read_text())
    assert config["symbols"][:5] == ["-", "<pad>", "</s>", "<unk>", "a"]
    assert config["unused"] == [1, 2, 3]
    audio = np.random.default_rng(0).standard_normal((1, 8000), np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(audio)).logits.numpy()
    found = logits_of(config, load_arrays(converted / "aligner"), audio)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    back = run_export(converted, tmp_path / "back") / "aligner/model.pt"
    pair = [torch.load(path, weights_only=True) for path in (back, tmp_path / "mms/model.pt")]
    check_equal(*pair, "model.pt")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"model_type": "wavlm"}, "model_type is 'wavlm'"),
        ("config.json", {"adapter_attn_dim": 16}, "adapter_attn_dim is 16"),
        ("config.json", {"vocab_size": 10**15}, "vocab_size is 1000000000000000: expected 1 to"),
        ("config.json", {"pad_token_id": 99}, "pad_token_id, the blank, is 99"),
        ("vocab.json", {"é": 40}, "has the index 40: the network has 32"),
        ("vocab.json", {"eng": {"a": 1}}, "vocabularies of several languages, such as 'eng'"),
        ("vocab.json", None, "vocab.json is missing"),
    ],
)
def test_what_the_network_cannot_do_is_named(tmp_path, file, change, message):
    save_network(tmp_path)
    path = tmp_path / file
    if change is None:
        path.unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConversionError, match=message):
        import_part(ALIGNER_PART, tmp_path)


def test_other_files_of_torchaudio_are_refused_by_their_outputs(tmp_path):
    save_torchaudio(tmp_path)
    path = tmp_path / "mms/model.pt"
    state = torch.load(path)
    torch.save({**state, "aux.weight": state["aux.weight"][:28]}, path)
    with pytest.raises(ConversionError, match="aux.weight has 28 outputs"):
        import_part(ALIGNER_PART, tmp_path / "mms")
    torch.save({"something": state["aux.weight"]}, path)
    with pytest.raises(ConversionError, match="no wav2vec 2.0 network of torchaudio"):
        import_part(ALIGNER_PART, tmp_path / "mms")
