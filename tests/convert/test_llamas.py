"""Import and export of Hugging Face Llamas, compared with transformers."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from spirit_jax import checkpoint, config
from spirit_jax.convert import extend_vocabulary
from spirit_jax.convert.components import llama
from spirit_jax.convert.errors import ConversionError, UsageError
from spirit_jax.convert.formats import hf_weights
from spirit_jax.convert.formats.arrays import same_bits
from spirit_jax.convert.formats.torch_file import save_torch
from spirit_jax.convert.plans import plan_import
from spirit_jax.convert.verification.verify import verify
from spirit_jax.models.llama import Llama, LlamaConfig, abstract_params
from spirit_jax.models.llama_config import RopeScaling
from spirit_jax.vocabulary import Vocabulary
from tests.support.tokenizers import plain_byte_level, plain_sentencepiece
from tests.support.trees import LLAMAS, check_tree, run_export, run_import


def hf_llama(folder, **fields: Any):
    sizes: dict[str, Any] = {
        "vocab_size": 120,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | fields))
    model.save_pretrained(folder, max_shard_size="60KB")
    return model.eval()


def jax_logits(directory, ids):
    model = config.from_dict(LlamaConfig, checkpoint.read_config(directory)["model"])
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract_params(model))
    params = {"params": checkpoint.load_llm(directory, abstract)}
    hidden, _ = Llama(model).apply(params, ids)
    return np.asarray(Llama(model).apply(params, hidden, method="logits"))


ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 500_000.0,
}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tie_word_embeddings": True, "head_dim": 12},
        {"rope_parameters": ROPE, "num_key_value_heads": 1},
    ],
    ids=["grouped", "tied", "llama3"],
)
def test_llamas_give_the_logits_of_transformers_and_are_exported_unchanged(fields, tmp_path):
    reference = hf_llama(tmp_path / "hf", **fields)
    converted = run_import(tmp_path / "hf", tmp_path / "converted")
    ids = np.random.default_rng(0).integers(0, 120, (2, 40))
    with torch.no_grad():
        expected = reference(torch.from_numpy(ids)).logits.numpy()
    # float32 sums of 32 to 48 terms in another order, three layers deep: logits here are about 0.1
    np.testing.assert_allclose(jax_logits(converted, ids), expected, atol=2e-6)
    back = run_export(converted, tmp_path / "back") / "spiritlm_model/spirit-lm"
    check_tree(back, tmp_path / "hf")
    with torch.no_grad():
        again = transformers.LlamaForCausalLM.from_pretrained(back)(torch.from_numpy(ids)).logits.numpy()
    np.testing.assert_array_equal(again, expected)


def test_a_repeated_tied_head_must_equal_the_embedding_and_is_exported(tmp_path):
    hf_llama(tmp_path / "hf", tie_word_embeddings=True)
    tensors, _ = hf_weights.load_weights(tmp_path / "hf")
    for name in tmp_path.glob("hf/model*"):
        name.unlink()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    save_torch(tmp_path / "hf/pytorch_model.bin", tensors)
    back = run_export(run_import(tmp_path / "hf", tmp_path / "converted"), tmp_path / "back")
    check_tree(back / "spiritlm_model/spirit-lm", tmp_path / "hf")
    tensors["lm_head.weight"] = -tensors["lm_head.weight"]
    save_torch(tmp_path / "hf/pytorch_model.bin", tensors)
    with pytest.raises(ConversionError, match=r"different lm_head.weight: should equal model\.embed_tokens\.weight"):
        plan_import(tmp_path / "hf")


@pytest.mark.parametrize(("make", "tied"), [(plain_sentencepiece, False), (plain_byte_level, True)])
def test_a_plain_llama_is_extended_by_the_speech_tokens(make, tied, tmp_path):
    source = tmp_path / "hf"
    source.mkdir()
    known = make(source)
    reference = hf_llama(source, vocab_size=known + 5, tie_word_embeddings=tied)  # five rows have no piece
    recommended = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [2, 7]}
    (source / "generation_config.json").write_text(json.dumps(recommended))
    with pytest.raises(UsageError, match="--model base or --model expressive"):
        plan_import(source)
    first = run_import(source, tmp_path / "one", model="expressive")
    vocabulary = Vocabulary.load(first / "tokenizer")
    assert (vocabulary.text_size, vocabulary.variant) == (known, "expressive")
    assert checkpoint.read_config(first)["model"]["vocab_size"] == vocabulary.padded_size
    old = reference.model.embed_tokens.weight.detach().numpy()[:known]
    arrays = {"embed_tokens": old} if tied else {"embed_tokens": old, "lm_head": None}
    stored = checkpoint.open_arrays(first, arrays)
    embedding = np.asarray(stored["embed_tokens"])
    np.testing.assert_array_equal(embedding[:known], old)
    new = embedding[known:]
    assert len(new) == vocabulary.padded_size - known
    # The mean of some 700 draws stays within five standard errors.
    error = old.std(0) * 5 / np.sqrt(len(new))
    assert (np.abs(new.mean(0) - old.mean(0)) < error).all()
    assert (np.abs(new.std(0) - old.std(0)) < error).all()
    assert same_bits(np.asarray(extend_vocabulary.extend_rows(old, 0, known, vocabulary.padded_size, 0)), embedding)
    if not tied:
        head = np.asarray(stored["lm_head"])
        np.testing.assert_array_equal(head[:, :known].T, reference.lm_head.weight.detach().numpy()[:known])
        assert not same_bits(np.ascontiguousarray(head[:, known:].T), new)
    exported = run_export(first, tmp_path / "back") / "spiritlm_model/spirit-lm-expressive-7b"
    # The authors' sampling settings are in the converted config and are exported again.
    recommended = json.loads((source / "generation_config.json").read_text())
    assert recommended["temperature"] == 0.6
    assert checkpoint.read_config(first)["generation"] == recommended
    assert recommended.items() <= json.loads((exported / "generation_config.json").read_text()).items()
    loaded = transformers.LlamaForCausalLM.from_pretrained(exported)
    np.testing.assert_array_equal(loaded.model.embed_tokens.weight.detach().numpy(), embedding)
    assert Vocabulary.load(exported).fingerprint == vocabulary.fingerprint
    assert [row[3] for row in verify(source, first, model="expressive")] == ["yes"]


def test_an_unsupported_llama_is_refused_with_the_field():
    base = json.loads((LLAMAS["base"][0] / "config.json").read_text())
    for change, message in (
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling of type 'linear'"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple"),
    ):
        with pytest.raises(ConversionError, match=message):
            llama.from_hf_config(base | change)
    with pytest.raises(ConversionError, match="hidden_size missing"):
        llama.from_hf_config({key: base[key] for key in base if key != "hidden_size"})


def test_exporting_and_importing_a_config_are_inverse():
    variants: list[dict[str, Any]] = [
        {},
        {"rope_scaling": RopeScaling()},
        {"tie_word_embeddings": True, "num_key_value_heads": 8},
    ]
    for fields in variants:
        network = LlamaConfig(head_dim=128, **fields)
        content = llama.to_hf_config(network, np.dtype(np.float32), 1, 2)
        assert llama.from_hf_config(content) == network
        assert transformers.LlamaConfig(**content).hidden_size == 4096


def test_shards_have_at_most_the_given_size_and_an_index(tmp_path):
    """A tensor that is larger alone has its own file. The index has the form of transformers, with a total in bytes."""
    sizes = [40, 40, 30, 90, 250, 10, 20]
    tensors = {f"t{i}": np.full(size, i, np.int8) for i, size in enumerate(sizes)}
    shards = hf_weights.default_shards(tensors, 100)
    assert list(shards.values()) == [["t0", "t1"], ["t2"], ["t3"], ["t4"], ["t5", "t6"]]
    assert list(shards)[1] == "model-00002-of-00005.safetensors"
    assert list(hf_weights.default_shards(tensors)) == ["model.safetensors"]
    hf_weights.save_weights(tmp_path, tensors, shards)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(sizes)}
    assert index["weight_map"] == {key: name for name, keys in shards.items() for key in keys}
    found, where = hf_weights.load_weights(tmp_path)
    assert where == shards
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scaled", [False, True])
def test_transformers_reads_an_exported_config(dtype, scaled):
    """It holds the type of the weights, the ids that begin and end a document, and every size."""
    scaling = RopeScaling(**{name: value for name, value in ROPE.items() if name not in ("rope_type", "rope_theta")})
    network = LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, rope_theta=5e5, rope_scaling=scaling if scaled else None, rms_norm_eps=1e-4,
        max_position_embeddings=77, tie_word_embeddings=True, initializer_range=0.3, dtype=dtype, param_dtype=dtype,
    )  # fmt: skip
    content = json.loads(json.dumps(llama.to_hf_config(network, jnp.dtype(dtype), 5, 6)))
    assert llama.from_hf_config(content) == network
    read = transformers.LlamaConfig.from_dict(content)
    assert (read.dtype, read.bos_token_id, read.eos_token_id) == (getattr(torch, dtype), 5, 6)
    for field in ("rms_norm_eps", "max_position_embeddings", "num_key_value_heads", "tie_word_embeddings"):
        assert getattr(read, field) == getattr(network, field), field
    assert (read.rope_parameters or {}).get("rope_theta") == 5e5


def test_float16_files_run_in_bfloat16():
    """The reference runs in bfloat16 (docs/formats.md, "Language model"), and Llama 2's files are float16."""
    sizes = llama.to_hf_config(LlamaConfig(), np.dtype(np.float16), 1, 2)
    network = llama.from_hf_config(sizes)
    assert sizes["torch_dtype"] == "float16"
    assert (network.dtype, network.param_dtype) == ("bfloat16", "bfloat16")


def test_missing_config_fields_have_the_defaults_of_transformers():
    sizes: dict[str, Any] = {
        "vocab_size": 99,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    network, expected = llama.from_hf_config(sizes), transformers.LlamaConfig(**sizes)
    for field in ("rms_norm_eps", "max_position_embeddings", "num_key_value_heads", "tie_word_embeddings"):
        assert getattr(network, field) == getattr(expected, field), field
    assert (network.initializer_range, network.head_size) == (expected.initializer_range, expected.head_dim)
    assert (network.rope_theta, network.dtype) == (10_000.0, "float32")
