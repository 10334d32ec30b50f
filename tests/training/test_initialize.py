"""Starting from other weights: known rows stay bit for bit, new rows are drawn, misfits are errors."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from spirit_jax import checkpoint
from spirit_jax.config import named_options, parse, to_dict
from spirit_jax.convert.components.llama import to_hf_config
from spirit_jax.core.files import write_file
from spirit_jax.models import llama
from spirit_jax.parallel.mesh import make_mesh
from spirit_jax.parallel.mesh_config import MeshConfig
from spirit_jax.run import job
from spirit_jax.run.config import TrainConfig
from spirit_jax.training.checks import RunError
from spirit_jax.training.initialize import adopt_sizes, checkpoint_config, load_initial_params
from spirit_jax.training.language_model import param_shardings
from spirit_jax.vocabulary import Vocabulary, VocabularyError
from tests.support.compilation import fast_environment
from tests.support.steps import random_params
from tests.support.tokenizers import plain_sentencepiece

TEXTS = ["the cat sat on the mat and the dog ran after it", "a man, a plan: 12 canals!"] * 30
MODEL = llama.LlamaConfig(
    vocab_size=1024,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
)


def _checkpoint(directory, model, vocabulary=None):
    params = random_params(model, 7)
    ocp.save_checkpointables(directory, {checkpoint.LLM: params})
    write_file(directory / checkpoint.CONFIG, json.dumps({"model": to_dict(model), "variant": "base"}))
    if vocabulary is not None:
        vocabulary.save(directory / checkpoint.TOKENIZER)
    return params


def _load(directory, model, vocabulary, seed=0):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    shardings = param_shardings(model, mesh)
    return load_initial_params(directory, model, vocabulary, shardings=shardings, seed=seed)


@pytest.fixture(scope="module")
def vocabularies():
    return {variant: Vocabulary.train(TEXTS, 300, variant) for variant in ("base", "expressive")}


def test_a_base_model_becomes_an_expressive_one(tmp_path, vocabularies):
    base, expressive = vocabularies["base"], vocabularies["expressive"]
    old = _checkpoint(tmp_path / "base", dataclasses.replace(MODEL, vocab_size=base.padded_size), base)
    new = _load(tmp_path / "base", MODEL, expressive)
    # The ids of text and HuBERT units are the same. Rows that only padded the old vocabulary are not kept.
    known = base.size
    np.testing.assert_array_equal(new["embed_tokens"][:known], old["embed_tokens"][:known])
    np.testing.assert_array_equal(new["lm_head"][:, :known], old["lm_head"][:, :known])
    assert new["embed_tokens"].shape == (1024, 32)
    drawn = np.asarray(new["embed_tokens"][known:])
    np.testing.assert_allclose(drawn.std(), MODEL.initializer_range, rtol=0.1)
    assert not np.array_equal(drawn, np.asarray(new["lm_head"][:, known:]).T)
    jax.tree.map(np.testing.assert_array_equal, new["layers"], old["layers"])
    again, other = _load(tmp_path / "base", MODEL, expressive), _load(tmp_path / "base", MODEL, expressive, seed=1)
    np.testing.assert_array_equal(again["embed_tokens"], new["embed_tokens"])
    assert not np.array_equal(other["embed_tokens"], new["embed_tokens"])


def test_a_text_model_without_a_tokenizer(tmp_path, vocabularies):
    vocabulary = vocabularies["expressive"]
    old = _checkpoint(
        tmp_path / "text", dataclasses.replace(MODEL, vocab_size=vocabulary.text_size, tie_word_embeddings=True)
    )
    model = dataclasses.replace(MODEL, tie_word_embeddings=True)
    new = _load(tmp_path / "text", model, vocabulary)
    assert "lm_head" not in new
    np.testing.assert_array_equal(new["embed_tokens"][: vocabulary.text_size], old["embed_tokens"])


def test_the_same_vocabulary_keeps_every_row(tmp_path, vocabularies):
    vocabulary = vocabularies["expressive"]
    old = _checkpoint(tmp_path / "same", MODEL, vocabulary)
    jax.tree.map(np.testing.assert_array_equal, _load(tmp_path / "same", MODEL, vocabulary), old)


def test_weights_of_another_shape_or_vocabulary_are_errors(tmp_path, vocabularies):
    vocabulary = vocabularies["expressive"]
    _checkpoint(tmp_path / "llm", MODEL, vocabulary)
    with pytest.raises(checkpoint.CheckpointError, match="its hidden_size is 32, not 64, its head_size is 16, not 32"):
        _load(tmp_path / "llm", dataclasses.replace(MODEL, hidden_size=64), vocabulary)
    other = Vocabulary.train(["zebras quack in the quiet fjord by night, 7 wax jugs"] * 50, 300)
    with pytest.raises(VocabularyError, match="300 text pieces are not those of the run's tokenizer"):
        _load(tmp_path / "llm", MODEL, other)
    _checkpoint(tmp_path / "odd", dataclasses.replace(MODEL, vocab_size=999))
    with pytest.raises(VocabularyError, match="no tokenizer that names the 999 rows"):
        _load(tmp_path / "odd", MODEL, vocabulary)
    with pytest.raises(checkpoint.CheckpointError, match="no such checkpoint directory"):
        _load(tmp_path / "none", MODEL, vocabulary)


def test_weights_are_read_directly_into_the_shards_of_eight_devices(tmp_path):
    """From a converted checkpoint and from Hugging Face's files: bit for bit, and never two copies in memory."""
    command = [sys.executable, "-m", "tests.support.load_on_eight_devices", str(tmp_path)]
    root = pathlib.Path(__file__).parents[2]
    result = subprocess.run(
        command, env=fast_environment(devices=8), cwd=root, capture_output=True, text=True, timeout=290
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_a_run_with_a_plain_tokenizer_keeps_its_speech_rows(tmp_path):
    """The run's own directory holds the tokenizer that the user named, without the speech tokens."""
    plain_sentencepiece(tmp_path)
    base, expressive = (Vocabulary.load(tmp_path, variant) for variant in ("base", "expressive"))
    old = _checkpoint(tmp_path / "old", dataclasses.replace(MODEL, vocab_size=base.padded_size), base)
    assert Vocabulary.load(tmp_path / "old/tokenizer", "base").is_plain
    model = dataclasses.replace(MODEL, vocab_size=expressive.padded_size)
    new = _load(tmp_path / "old", model, expressive)
    np.testing.assert_array_equal(new["embed_tokens"][: base.size], old["embed_tokens"][: base.size])
    text = _checkpoint(tmp_path / "text", dataclasses.replace(MODEL, vocab_size=base.text_size), base)
    new = _load(tmp_path / "text", model, expressive)
    np.testing.assert_array_equal(new["embed_tokens"][: base.text_size], text["embed_tokens"])


def test_sizes_that_a_config_does_not_name_are_those_of_the_weights():
    found = dataclasses.replace(MODEL, vocab_size=700, head_dim=24, rope_theta=5e5, rms_norm_eps=1e-6, dtype="bfloat16")
    run = llama.LlamaConfig(hidden_size=64, remat="full")
    adopted = adopt_sizes(run, found, named={"hidden_size", "rms_norm_eps"}, vocabulary_size=503)
    expected = dataclasses.replace(
        found, hidden_size=64, rms_norm_eps=run.rms_norm_eps, remat="full", dtype="float32", vocab_size=700
    )
    assert adopted == expected
    grown = adopt_sizes(run, found, named={"hidden_size"}, vocabulary_size=901)
    assert grown.vocab_size == 1024
    assert adopt_sizes(run, found, named={"vocab_size"}, vocabulary_size=901).vocab_size == run.vocab_size


@pytest.mark.parametrize("source", ["checkpoint", "hugging_face"])
def test_the_command_takes_sizes_from_the_weights(source, tmp_path, vocabularies):
    vocabularies["base"].save(tmp_path / "tokenizer")
    network = dataclasses.replace(MODEL, vocab_size=vocabularies["base"].padded_size, max_position_embeddings=64)
    directory = tmp_path / source
    if source == "checkpoint":
        directory.mkdir()
        checkpoint.write_config(directory, {"model": to_dict(network), "variant": "base"})
    else:
        directory.mkdir()
        hf_config = to_hf_config(network, np.dtype(np.float32), 1, 2)
        write_file(directory / "config.json", json.dumps(hf_config))
        write_file(directory / "model.safetensors", b"")
    arguments = ["--run_directory", str(tmp_path / "run"), "--init_from", str(directory), "--variant", "base"]
    arguments += ["--tokenizer", str(tmp_path / "tokenizer"), "--sequence_length", "32", "--model.remat", "dots"]
    settings = parse(TrainConfig, arguments, "train", None)
    named = named_options(TrainConfig, arguments)
    assert "model.remat" in named
    assert "model.hidden_size" not in named
    model = job.with_sizes(settings, named).model
    assert model == dataclasses.replace(network, remat="dots", head_dim=model.head_dim)
    with pytest.raises(RunError, match="sequence_length 128 is longer than the model's max_position_embeddings 64"):
        job.with_sizes(dataclasses.replace(settings, sequence_length=128), named)


def test_rows_may_be_as_long_as_the_context_of_the_weights(tmp_path):
    """Longer than the 4096 of the default sizes, which the weights replace."""
    network = dataclasses.replace(MODEL, max_position_embeddings=8192)
    checkpoint.write_config(tmp_path, {"model": to_dict(network), "variant": "base"})
    arguments = ["--run_directory", str(tmp_path / "run"), "--init_from", str(tmp_path), "--tokenizer", "unread"]
    arguments += ["--sequence_length", "8192", "--model.vocab_size", str(network.vocab_size)]
    settings = parse(TrainConfig, arguments, "train", None)
    assert job.with_sizes(settings, named_options(TrainConfig, arguments)).model.max_position_embeddings == 8192


@pytest.mark.parametrize("content", ["[]", "{}", '{"variant": "base"}', '{"model": {}}', '{"model": []}', "3"])
def test_a_config_without_sizes_is_never_taken_for_a_7b(content, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(checkpoint.CheckpointError, match=r"config\.json: (not the config|model lacks vocab_size)"):
        checkpoint_config(tmp_path)
