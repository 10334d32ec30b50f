"""Configs: every shipped one resolves, and what cannot be used is one clear line."""

import dataclasses
import pathlib
import subprocess
import sys

import jax
import pytest

from spirit_jax import config
from spirit_jax.models import llama
from spirit_jax.train import TrainConfig, main

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.yaml"))
TINY = str(pathlib.Path(__file__).parents[1] / "configs" / "tiny.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_resolves_and_its_model_has_a_shape(path):
    settings = config.load(TrainConfig, path)
    shapes = llama.abstract_params(settings.model)
    assert shapes["embed_tokens"].shape == (settings.model.vocab_size, settings.model.hidden_size)
    assert config.from_dict(TrainConfig, config.to_dict(settings)) == settings


def test_yaml_round_trip(tmp_path):
    settings = config.load(TrainConfig, TINY, ["--data.sources.text.weight", "0.5", "--model.rope_scaling.factor", "2"])
    assert settings.data.sources["text"].weight == 0.5
    assert settings.model.rope_scaling.factor == 2
    (tmp_path / "again.yaml").write_text(config.to_yaml(settings))
    assert config.load(TrainConfig, tmp_path / "again.yaml") == settings


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--model.hidden_sise", "8"], "model.hidden_sise"),
        (["--model.hidden_size", "wide"], 'Parser key "model.hidden_size"'),
        (["--model.hidden_size", "100"], "hidden_size 100 is not a multiple of num_attention_heads 3"),
        (["--optimizer.learning_rate", "-1"], "optimizer.learning_rate must be positive"),
        (["--data.sources.text.recipe", "sing"], "recipe"),
        (["--sequence_length", "4096"], "longer than the model's max_position_embeddings 1024"),
        (["--mesh.fsdp", "0"], "mesh axes must be positive"),
        (["--model.vocab_size", "1000"], "model.vocab_size 1000 is less than the 1179 tokens"),
        (["--mesh.data", "3", "--mesh.fsdp", "1"], "does not use 1 devices"),
        (["--accumulate", "5"], "global_batch_size 8 is not a multiple of accumulate 5"),
    ],
)
def test_bad_configs_end_in_one_line_and_exit_code_2(overrides, message, tmp_path, capsys):
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        main(["--config", TINY, "--run_directory", str(run), *overrides])
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert message in error
    assert len(error.splitlines()) == 1
    assert not run.exists()


def test_a_missing_file_is_named(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--config", "none.yaml"])
    assert stop.value.code == 2
    assert "none.yaml" in capsys.readouterr().err


def test_help_explains_every_field():
    result = subprocess.run(
        [sys.executable, "-m", "spirit_jax.train", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=_environment(),
    )
    words = " ".join(result.stdout.split())
    for cls in (TrainConfig, llama.LlamaConfig):
        for field in dataclasses.fields(cls):
            assert field.name in words
    assert "Base of the rotary position embedding" in words
    printed = subprocess.run(
        [sys.executable, "-m", "spirit_jax.train", "--config", TINY, "--print_config"],
        capture_output=True, text=True, check=True, env=_environment(),
    )  # fmt: skip
    assert "rope_theta: 100000" in printed.stdout


def _environment():
    import os

    return {**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "120"}


def test_eval_shape_needs_no_memory_for_7b():
    model = llama.LlamaConfig(vocab_size=32768)
    assert llama.parameter_count(model) == 6_744_707_072  # FULL_SIZE.json
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(llama.abstract_params(model)))
