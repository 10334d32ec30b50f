"""Adapters as files: PEFT loads what is written and the other way round; other bases, names and shapes are refused."""

import copy
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.numpy
import torch

from spirit_jax import SpiritLM, checkpoint
from spirit_jax.adapters import AdapterError, base_fingerprint, read_adapter, write_peft
from spirit_jax.adapters.peft_files import CONFIG, WEIGHTS
from spirit_jax.config import from_dict
from spirit_jax.convert.command import main as convert
from spirit_jax.convert.formats import orbax_file
from spirit_jax.models import llama
from spirit_jax.models.lora import LoraConfig
from tests.support import checkpoints
from tests.support.adapters import random_adapter
from tests.support.hugging_face import hugging_face_llama
from tests.support.mutations import json_mutations

IDS = [1, 40, 7, 305, 12, 88, 301]
LORA = LoraConfig(rank=3, alpha=6.0, dropout=0.1)
WITH_ROWS = LoraConfig(rank=2, alpha=2.0, targets=["v_proj", "o_proj"], rows_from=300)


@pytest.fixture(scope="module")
def base():
    return checkpoints.converted("small_expressive")


@pytest.fixture(scope="module")
def model(base):
    settings = checkpoint.read_config(base)["model"]
    return from_dict(llama.LlamaConfig, settings | {"dtype": "float32", "param_dtype": "float32"})


def _rows(base):
    stored = checkpoint.open_arrays(checkpoint.intact_llm(base), ("embed_tokens", "lm_head"))
    return {name: np.asarray(array) for name, array in stored.items()}


@pytest.fixture(scope="module")
def written(base, model, tmp_path_factory):
    """An adapter of every projection, in PEFT's format."""
    directory = tmp_path_factory.mktemp("adapters") / "written"
    arrays = random_adapter(model, LORA, size=0.05)
    write_peft(directory, model, LORA, arrays, base=base_fingerprint(base), base_name=str(base))
    return directory


def _torch_logits(network) -> np.ndarray:
    with torch.no_grad():
        return network(torch.tensor([IDS])).logits[0].numpy()


def _own_logits(base, adapter) -> np.ndarray:
    return np.asarray(SpiritLM.from_pretrained(base, dtype="float32", adapter=adapter).logits(IDS))[0]


def _peft_logits(directory) -> np.ndarray:
    network = copy.deepcopy(hugging_face_llama("small_expressive"))
    return _torch_logits(peft.PeftModel.from_pretrained(network, str(directory)).eval())


def test_peft_loads_what_is_written_and_computes_the_same_logits(base, written):
    found, expected = _own_logits(base, written), _peft_logits(written)
    np.testing.assert_allclose(found, expected, atol=2e-4)  # float32 noise of logits around 10
    plain = _torch_logits(hugging_face_llama("small_expressive"))
    assert np.abs(expected - plain).max() > 0.1  # the adapter is applied


def test_peft_loads_trained_rows(base, model, tmp_path):
    arrays = random_adapter(model, WITH_ROWS, size=0.05)
    write_peft(tmp_path / "rows", model, WITH_ROWS, arrays, base=None, base_name="base", base_rows=_rows(base))
    found = _own_logits(base, tmp_path / "rows")
    np.testing.assert_allclose(found, _peft_logits(tmp_path / "rows"), atol=2e-4)
    read = read_adapter(tmp_path / "rows", model)
    assert (read.base, read.config.rows_from, read.config.targets) == (None, 0, ["v_proj", "o_proj"])
    np.testing.assert_array_equal(read.arrays["rows"]["lm_head"][:, 300:], arrays["rows"]["lm_head"])
    np.testing.assert_array_equal(read.arrays["rows"]["embed_tokens"][:300], _rows(base)["embed_tokens"][:300])


@pytest.mark.parametrize("changes", [{"rank": 0}, {"targets": []}])
def test_peft_loads_an_adapter_of_rows_alone(base, model, tmp_path, changes):
    config = dataclasses.replace(WITH_ROWS, **changes)
    arrays = random_adapter(model, config, size=0.05)
    write_peft(tmp_path / "rows", model, config, arrays, base=None, base_name="base", base_rows=_rows(base))
    expected = _peft_logits(tmp_path / "rows")
    np.testing.assert_allclose(_own_logits(base, tmp_path / "rows"), expected, atol=2e-4)
    assert np.abs(expected - _torch_logits(hugging_face_llama("small_expressive"))).max() > 0.1


@pytest.mark.parametrize("rslora", [False, True])
def test_what_peft_writes_is_read(base, tmp_path, rslora):
    config = peft.LoraConfig(
        r=4, lora_alpha=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, use_rslora=rslora
    )
    network = peft.get_peft_model(copy.deepcopy(hugging_face_llama("small_expressive")), config).eval()
    network.save_pretrained(str(tmp_path))
    np.testing.assert_allclose(_own_logits(base, tmp_path), _torch_logits(network), atol=2e-4)


def test_reading_returns_what_was_written(base, model, written):
    read = read_adapter(written, model)
    assert read.config == LORA
    assert read.base == base_fingerprint(base)
    jax.tree.map(np.testing.assert_array_equal, read.arrays, random_adapter(model, LORA, size=0.05))


def _changed(written, directory, *, config=None, rename=None, tensor=None):
    """A copy of an adapter with other fields of its config, one tensor renamed or one replaced."""
    directory.mkdir()
    settings = json.loads((written / CONFIG).read_text()) | (config or {})
    (directory / CONFIG).write_text(json.dumps(settings))
    tensors = safetensors.numpy.load_file(written / WEIGHTS)
    for old, new in (rename or {}).items():
        tensors[new] = tensors.pop(old)
    tensors |= tensor or {}
    safetensors.numpy.save_file(tensors, directory / WEIGHTS)
    return directory


_Q0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"peft_type": "IA3"}}, "LORA. expected, found 'IA3'"),
        ({"config": {"use_dora": True}}, "use_dora is True: only plain LoRA"),
        ({"config": {"rank_pattern": {"q_proj": 8}}}, "rank_pattern is"),
        ({"config": {"r": 0}}, "r must be a whole number above 0, found 0"),
        ({"config": {"r": 10**400}}, "r must be a whole number above 0, found 10+...; at most"),
        ({"config": {"r": 65536}}, r"expects \[65536, "),
        ({"config": {"lora_alpha": 10**400}}, "adapter_config.json: .* too large"),
        ({"config": {"lora_alpha": 10**400, "use_rslora": True}}, "adapter_config.json: .* too large"),
        ({"config": {"r": 5}}, r"lora_A of q_proj of layer 0 has shape \[3, "),
        ({"rename": {_Q0: _Q0.replace("q_proj", "qkv_proj")}}, "qkv_proj.* matches no weight"),
        ({"rename": {_Q0: _Q0.replace("layers.0", "layers.70")}}, "q_proj of layer 0 has no lora_A"),
        ({"tensor": {_Q0: np.full((3, 8), np.nan, np.float32)}}, "not finite"),
        ({"tensor": {"base_model.model.lm_head.weight": np.zeros((4, 4), np.float32)}}, "holds lm_head in full"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_by_name(model, written, tmp_path, changes, message):
    with pytest.raises(AdapterError, match=message):
        read_adapter(_changed(written, tmp_path / "changed", **changes), model)


def test_a_mutated_config_is_read_or_refused_in_a_line(model, written, tmp_path):
    path = _changed(written, tmp_path / "changed") / CONFIG
    messages = []
    for settings in json_mutations(json.loads(path.read_text()), 150, seed=0):
        path.write_text(json.dumps(settings))
        try:
            read_adapter(path.parent, model)
        except AdapterError as error:
            messages.append(str(error))
    assert 30 < len(messages) < 150
    assert all(message.startswith(str(path.parent)) and "\n" not in message for message in messages)


def test_damaged_and_missing_files_are_refused(model, written, tmp_path):
    with pytest.raises(AdapterError, match="no such adapter directory"):
        read_adapter(tmp_path / "nothing", model)
    with pytest.raises(AdapterError, match="no adapter there: neither adapter_config.json"):
        read_adapter(tmp_path, model)
    broken = _changed(written, tmp_path / "broken")
    (broken / WEIGHTS).write_bytes((broken / WEIGHTS).read_bytes()[:-5])
    with pytest.raises(AdapterError, match="not a whole safetensors file"):
        read_adapter(broken, model)
    (broken / WEIGHTS).unlink()
    with pytest.raises(AdapterError, match="adapter_model.safetensors: no such file"):
        read_adapter(broken, model)


def test_another_base_is_refused(model, written):
    other = checkpoints.converted("full_expressive")
    with pytest.raises(AdapterError, match="belongs to other weights than those of .*full_expressive"):
        read_adapter(written, model).check_base(other)


def test_fingerprints_ignore_the_type_and_notice_any_small_weight(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"embed_tokens": rng.normal(size=(5, 4)), "layers/norm": rng.normal(size=(3, 4))}
    arrays = {name: value.astype(jnp.bfloat16) for name, value in arrays.items()}
    orbax_file.save_llm(tmp_path / "a", arrays)
    orbax_file.save_llm(tmp_path / "b", {name: value.astype(np.float32) for name, value in arrays.items()})
    changed = {name: value.copy() for name, value in arrays.items()}
    changed["layers/norm"][1, 2] += 1
    orbax_file.save_llm(tmp_path / "c", changed)
    first, same, other = (base_fingerprint(tmp_path / name) for name in "abc")
    assert first == same != other


def test_merge_writes_the_checkpoint_that_base_and_adapter_make(base, written, tmp_path, capsys):
    convert(["merge", "--source", str(base), "--adapter", str(written), "--target", str(tmp_path / "merged")])
    assert "with the updates of" in capsys.readouterr().out
    np.testing.assert_allclose(_own_logits(tmp_path / "merged", None), _own_logits(base, written), atol=2e-4)
    assert base_fingerprint(tmp_path / "merged") != base_fingerprint(base)
    again = ["merge", "--source", str(tmp_path / "merged"), "--adapter", str(written), "--target", str(tmp_path / "x")]
    with pytest.raises(SystemExit) as exit_:  # the merged checkpoint is another base
        convert(again)
    assert exit_.value.code == 2
    assert "belongs to other weights" in capsys.readouterr().err


def test_int8_quantizes_the_merged_weights(base, written, tmp_path):
    convert(["merge", "--source", str(base), "--adapter", str(written), "--target", str(tmp_path / "merged")])
    found = SpiritLM.from_pretrained(base, dtype="float32", quantize="int8", adapter=written).params
    expected = SpiritLM.from_pretrained(tmp_path / "merged", dtype="float32", quantize="int8").params
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
        assert np.mean(one != other) < 0.02  # the two orders of rounding
