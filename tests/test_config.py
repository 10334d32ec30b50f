"""Configs: every shipped one resolves, and what cannot be used is one clear line."""

import dataclasses
import importlib
import os
import pathlib
import subprocess
import sys

import jax
import pytest

import spirit_jax
from spirit_jax import config
from spirit_jax.generate import GenerateConfig
from spirit_jax.models import llama
from spirit_jax.parallel.mesh_config import MeshConfig
from spirit_jax.run.config import TrainConfig
from spirit_jax.train import main

CONFIGS = [
    path
    for path in sorted((pathlib.Path(__file__).parents[1] / "configs").rglob("*.yaml"))
    # prompts of evaluation and parts of ablations are no runs; tests/speech_training has the runs of train_speech
    if path.parent.name not in ("evaluation", "ablations", "speech")
]
TINY = str(pathlib.Path(__file__).parents[1] / "configs" / "tiny.yaml")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_resolves_and_its_model_has_a_shape(path):
    settings = config.load(TrainConfig, path)
    shapes = llama.abstract_params(settings.model)
    assert shapes["embed_tokens"].shape == (settings.model.vocab_size, settings.model.hidden_size)
    assert config.from_dict(TrainConfig, config.to_dict(settings)) == settings


def test_yaml_reads_back_to_an_equal_config(tmp_path):
    settings = config.load(TrainConfig, TINY, ["--data.sources.text.weight", "0.5", "--model.rope_scaling.factor", "2"])
    assert settings.data.sources["text"].weight == 0.5
    assert settings.model.rope_scaling is not None
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


def test_help_explains_every_field_and_ends_with_examples():
    help_text = _output("spirit_jax.train", "--help")
    words = " ".join(help_text.split())
    for cls in (TrainConfig, llama.LlamaConfig):
        for field in dataclasses.fields(cls):
            assert field.name in words
    assert "Base of the rotary position embedding" in words
    _, _, examples = help_text.partition("Examples:\n\n")
    assert examples.startswith("  python -m spirit_jax.train --config configs/tiny.yaml ")


def test_print_config_shows_the_values_of_the_file():
    assert "rope_theta: 100000" in _output("spirit_jax.train", "--config", TINY, "--print-config")


def _output(module, *arguments):
    """Standard output of a module when it is run."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "120"}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def generate_config(*options):
    """The config that `generate` reads from a command line."""
    return config.parse(GenerateConfig, ["--checkpoint", "dir", *options], "generate", "")


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        (["--output-modality", "speech"], "output_modality", "speech"),
        (["--output_modality", "speech"], "output_modality", "speech"),
        (["--max-new-tokens=7"], "max_new_tokens", 7),
        (["--overwrite"], "overwrite", True),
        (["--overwrite", "true"], "overwrite", True),
        (["--overwrite", "false"], "overwrite", False),
        (["--overwrite=false"], "overwrite", False),
        (["--grammar", "--overwrite"], "grammar", True),
        (["--quantize", "int4"], "quantize", "int4"),
        (["--mesh.tensor", "2"], "mesh", MeshConfig(1, 1, 2)),
        (["--stop", "[the]"], "stop", ["[the]"]),
        (["--stop", '["a", "b"]'], "stop", ['["a", "b"]']),
        (["--stop=null", "--stop", "1", "--stop", "- x"], "stop", ["null", "1", "- x"]),
        (["--input", "units:[Hu1]", "--grammar", "--input=text: {a: b}"], "input", ["units:[Hu1]", "text: {a: b}"]),
        (["--prompts", "[a]"], "prompts", "[a]"),
        (["--prompts", "null"], "prompts", None),
        (["--speaker", "ex01"], "speaker", "ex01"),
        (["--speaker", "1"], "speaker", 1),
    ],
)
def test_forms_of_options(options, field, value):
    assert getattr(generate_config(*options), field) == value


def test_dashes_in_nested_names_but_not_in_the_names_of_sources():
    options = ["--optimizer.learning-rate", "0.5", "--data.sources.my-source.path", "here"]
    settings = config.load(TrainConfig, TINY, [*options, "--data.sources.my-source.recipe", "text"])
    assert settings.optimizer.learning_rate == 0.5
    assert settings.data.sources["my-source"].path == "here"


def test_a_list_on_the_command_line_replaces_the_list_of_the_file():
    settings = config.load(TrainConfig, TINY, ["--prepare.corpora", "one", "--prepare.corpora", "[two]"])
    assert settings.prepare is not None
    assert settings.prepare.corpora == ["one", "[two]"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--overwrote"], "unrecognized arguments: --overwrote"),
        (["--over-write"], "unrecognized arguments: --over-write"),
        (["--overwrite", "maybe"], "unrecognized arguments: maybe"),
        (["--overwrite=maybe"], "overwrite"),
        (["--over"], "unrecognized arguments: --over"),
        (["--stop"], "argument --stop"),
        (["--stop", "--grammar"], "argument --stop"),
    ],
)
def test_options_that_cannot_be_used_are_named(options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        generate_config(*options)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_every_command_says_its_version(capsys):
    with pytest.raises(SystemExit) as stop:
        generate_config("--version")
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"spirit_jax {spirit_jax.__version__}\n"


def test_a_command_without_arguments_shows_its_help(capsys):
    with pytest.raises(SystemExit) as stop:
        config.parse(GenerateConfig, [], "generate", "Continue prompts.")
    assert stop.value.code == 2
    assert "Continue prompts." in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tiny.yaml", "configs/tiny.yaml"])
def test_bundled_configs_are_found_by_name_where_no_such_file_exists(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.load(TrainConfig, name) == config.load(TrainConfig, TINY)
    (tmp_path / "tiny.yaml").write_text("seed: 9\n")
    if name == "tiny.yaml":
        assert config.find_config(name) == name


def test_eval_shape_needs_no_memory_for_7b():
    model = llama.LlamaConfig(vocab_size=32768)
    assert llama.parameter_count(model) == 6_744_707_072  # as tests/golden/FULL_SIZE.json has it
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(llama.abstract_params(model)))


def test_named_options_are_those_of_the_file_and_of_the_command_line(tmp_path):
    (tmp_path / "some.yaml").write_text("loop: {steps: 3}\nseed: 1\n")
    words = [
        "--config",
        str(tmp_path / "some.yaml"),
        "--data.sources.2024.path",
        "{run}/x",
        "--model",
        "{head_size: 8}",
    ]
    assert config.named_options(TrainConfig, [*words, "--mesh.fsdp=2"]) == {
        "loop", "loop.steps", "seed", "data.sources.2024.path", "model", "model.head_size", "mesh.fsdp",
    }  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [
        "align --input x --output y",
        "evaluate --checkpoint x --tasks mini --output y",
        "rank --checkpoint x --prompts y --output z",
        "train --config configs/tiny.yaml",
        "train_speech --config configs/speech/tiny.yaml",
        "train_tokenizers --input spirit_mini --output y",
    ],
)
def test_negative_seeds_are_refused(command, monkeypatch, capsys):
    """NumPy's generators take none."""
    monkeypatch.chdir(pathlib.Path(__file__).parents[1])
    name, *arguments = command.split()
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"spirit_jax.{name}").main([*arguments, "--seed", "-1"])
    assert end.value.code == 2
    assert "seed must be 0 or more, found -1" in capsys.readouterr().err
