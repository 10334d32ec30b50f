"""Fine-tuning runs from pairs and preferences to adapters that generate; resumed runs end like uninterrupted ones."""

import json
import pathlib

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from spirit_jax import SpiritLM
from spirit_jax.adapters import AdapterError, base_fingerprint, read_adapter
from spirit_jax.checkpoint import CheckpointError
from spirit_jax.config import from_dict
from spirit_jax.convert.command import main as convert
from spirit_jax.core.errors import SpiritError
from spirit_jax.data.config import DataConfig, SourceConfig
from spirit_jax.data.preference_config import PreferenceData
from spirit_jax.data.unit_record import RecordError
from spirit_jax.models import quantized
from spirit_jax.models.llama import Llama, LlamaConfig
from spirit_jax.models.lora_config import TARGETS, LoraConfig
from spirit_jax.parallel.mesh import make_mesh
from spirit_jax.parallel.mesh_config import MeshConfig
from spirit_jax.run import job
from spirit_jax.run.config import TrainConfig
from spirit_jax.training import lora
from spirit_jax.training.checks import RunError, check_units
from tests.support import checkpoints
from tests.support.runs import newest_step

STEPS = 4
SMALL = {"rank": 2, "quantize": "int8"}  # the base in 8 bits
IDS = [1, 40, 7, 305, 12]
QUESTIONS = ("one", "two", "three", "four", "five")


@pytest.fixture(scope="module")
def base():
    return checkpoints.converted("small_expressive")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pairs of a word and its answer in units, and preferences between two answers."""
    directory = tmp_path_factory.mktemp("finetuning")
    pairs, preferences = [], []
    for number, word in enumerate(QUESTIONS * 4):
        good, bad = f"units:[Hu{number % 5}][Hu7]", "units:[Hu9][Hu9][Hu2]"
        pairs.append({"input": [f"text:{word}"], "output": [good]})
        preferences.append({"input": [f"text:{word}"], "chosen": [good], "rejected": [bad]})
    for name, lines in (("pairs", pairs), ("preferences", preferences)):
        (directory / name).mkdir()
        for split in ("train", "validation"):
            (directory / name / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return directory


def _config(run: pathlib.Path, base: pathlib.Path, files: pathlib.Path, **changes) -> TrainConfig:
    values = {
        "run_directory": str(run),
        "init_from": str(base),
        "lora": {"rank": 4, "dropout": 0.1, "rows_from": 300},
        "sequence_length": 64,
        "global_batch_size": 2,
        "data": {
            "sources": {"pairs": {"path": str(files / "pairs"), "recipe": "pairs", "held_out_split": "validation"}}
        },
        "optimizer": {"learning_rate": 1e-2},
        "loop": {"steps": STEPS, "log_every": 1, "evaluate_every": STEPS, "sample_every": STEPS},
        "sample": {"prompts": [{"prompt": "[Text]one[Speech]"}], "max_new_tokens": 4},
        "checkpoint": {"every": 2},
    }
    return from_dict(TrainConfig, values | changes)


@pytest.fixture(scope="module")
def finished(base, data, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "pairs"
    job.run(_config(run, base, data))
    return run


def _adapter(run):
    return jax.tree.map(np.asarray, ocp.load_checkpointables(str(newest_step(run))))


def _losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}


def test_steps_hold_the_adapter_alone_and_generate_with_their_base(base, finished):
    step = newest_step(finished)
    assert sorted(path.name for path in step.iterdir() if path.is_dir()) == ["adapter", "optimizer"]
    found = SpiritLM.from_pretrained(base, dtype="float32", adapter=step).logits(IDS)
    plain = SpiritLM.from_pretrained(base, dtype="float32").logits(IDS)
    assert np.abs(np.asarray(found) - np.asarray(plain)).max() > 1e-2
    assert (finished / "samples" / str(STEPS) / "0.txt").is_file()
    described = json.loads((finished / "adapter.json").read_text())
    assert described["base"] == base_fingerprint(base)  # the base is as it was


def test_a_resumed_run_ends_like_an_uninterrupted_one(base, data, finished, tmp_path):
    """The adapter, the optimizer and the losses are equal bit for bit; dropout repeats too."""
    run = tmp_path / "run"
    loop = {"log_every": 1, "evaluate_every": 0, "sample_every": 0}
    job.run(_config(run, base, data, loop={"steps": 2, **loop}))
    job.run(_config(run, base, data, loop={"steps": STEPS, **loop}))
    jax.tree.map(np.testing.assert_array_equal, _adapter(run), _adapter(finished))
    assert _losses(run) == _losses(finished)


def test_a_run_that_is_resumed_with_another_base_is_refused(base, data, finished, tmp_path):
    merged = tmp_path / "merged"
    convert(["merge", "--source", str(base), "--adapter", str(newest_step(finished)), "--target", str(merged)])
    with pytest.raises(SpiritError, match="holds adapters of other weights"):
        job.run(_config(finished, merged, data))
    with pytest.raises(AdapterError, match="belongs to other weights"):
        SpiritLM.from_pretrained(merged, adapter=newest_step(finished))


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_the_base_is_quantized_as_it_is_read(base, kind):
    opened = lora.open_base(base, LlamaConfig())
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    found, plain = lora.load_base(opened, mesh, kind), lora.load_base(opened, mesh)
    np.testing.assert_array_equal(found["lm_head"], plain["lm_head"])
    for group, weights in plain["layers"].items():
        for name, weight in weights.items():
            expected = (
                jax.jit(quantized.quantize, static_argnums=(0, 2))(name, weight, kind) if name in TARGETS else weight
            )
            jax.tree.map(np.testing.assert_array_equal, found["layers"][group][name], expected)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_an_adapter_is_trained_beside_the_quantized_base(base, kind):
    """It begins at the base as it is quantized, it alone has gradients, and merging adds it to the base in floats."""
    opened = lora.open_base(base, LlamaConfig(dtype="float32", param_dtype="float32"))
    mesh, config = make_mesh(MeshConfig(), jax.devices()[:1]), LoraConfig(rank=2, targets=["q_proj", "down_proj"])
    weights = lora.AdapterWeights(opened.model, config, lora.load_base(opened, mesh, kind))
    adapter = lora.first_adapter(weights, mesh, seed=0)
    ids = np.array([IDS], np.int32)
    dense = quantized.dequantize(weights.base, "float32")
    hidden, expected = (
        Llama(opened.model).apply(variables, ids)[0] for variables in (weights.variables(adapter), {"params": dense})
    )
    np.testing.assert_array_equal(hidden, expected)

    gradients = jax.grad(lambda adapter: Llama(opened.model).apply(weights.variables(adapter), ids)[0].sum())(adapter)
    assert jax.tree.structure(gradients) == jax.tree.structure(adapter)
    changed = {"layers": jax.tree.map(lambda value, gradient: value + gradient, adapter, gradients)["layers"]}
    merged = lora.merging(weights, lambda params, step: params)(changed, 1)
    for group, name in (("self_attn", "q_proj"), ("mlp", "down_proj"), ("mlp", "up_proj")):
        update = 0.0
        if name in config.targets:
            pair = changed["layers"][group][name]
            update = config.scale * np.einsum(
                "ldr,lr...->ld...", *(np.asarray(pair[side]) for side in ("lora_a", "lora_b"))
            )
            assert np.abs(update).max() > 1e-3
        np.testing.assert_allclose(merged["layers"][group][name], dense["layers"][group][name] + update, atol=1e-5)


def test_a_step_without_its_base_is_refused(finished):
    with pytest.raises(CheckpointError, match="it holds an adapter: name the adapter's base"):
        SpiritLM.from_pretrained(newest_step(finished))
    with pytest.raises(AdapterError, match="it is a training run: name one of its steps"):
        read_adapter(finished, LlamaConfig())


def test_a_step_is_exported_to_peft(base, finished, tmp_path):
    step, target = newest_step(finished), tmp_path / "peft"
    convert(["export-adapter", "--source", str(base), "--adapter", str(step), "--target", str(target)])
    found, expected = (
        np.asarray(SpiritLM.from_pretrained(base, dtype="float32", adapter=path).logits(IDS)) for path in (target, step)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_preferences_begin_at_log_2_and_are_learned(base, data, tmp_path):
    """A fresh adapter equals its reference, so that both answers are as likely as before."""
    preferences = {"data": {"path": str(data / "preferences"), "held_out_split": "validation"}, "beta": 0.5}
    run = tmp_path / "run"
    job.run(_config(run, base, data, data={}, preferences=preferences, lora={"rank": 4}, sample={}))
    losses = _losses(run)
    np.testing.assert_allclose(losses[1], np.log(2), atol=1e-5)
    assert losses[STEPS] < losses[1] - 0.05
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in lines if "validation/loss" in line]
    np.testing.assert_allclose(evaluated[0]["validation/loss"], np.log(2), atol=1e-5)
    assert evaluated[-1]["validation/accuracy"] > 0.9


def test_an_answer_that_is_cut_by_the_row_is_refused_or_counted(base, data, tmp_path, capsys):
    long = {"input": ["text:five"], "output": [f"units:{'[Hu1][Hu2]' * 40}"]}
    directory = tmp_path / "long"
    directory.mkdir()
    (directory / "train.jsonl").write_text((data / "pairs" / "train.jsonl").read_text() + "\n" + json.dumps(long))
    sources = {"pairs": {"path": str(directory), "recipe": "pairs"}}
    loop = {"steps": 3, "evaluate_every": 0, "sample_every": 0}
    with pytest.raises(RecordError, match=r"pair 21: it takes \d+ tokens, a row has 65: the answer would be cut"):
        job.run(_config(tmp_path / "a", base, data, data={"sources": sources}, loop=loop))
    job.run(
        _config(
            tmp_path / "b",
            base,
            data,
            data={"sources": sources, "on_bad_record": "skip"},
            loop=loop,
            lora=SMALL,
            model={"remat": "dots"},
        )
    )
    assert "could not be used and left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": None}, "lora: name the weights to begin with as init_from"),
        ({"lora": {"rank": 0}}, "nothing to train"),
        ({"lora": {"targets": ["qkv"]}}, "qkv: no such weights"),
        ({"lora": {"quantize": "int4"}}, "name a model.remat, such as dots"),
    ],
)
def test_configs_that_train_nothing_are_refused(base, data, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        _config(tmp_path, base, data, **changes)


def test_rows_beyond_the_base_are_refused(base, data, tmp_path):
    with pytest.raises(SpiritError, match="rows_from 99999 lies beyond"):
        job.run(_config(tmp_path, base, data, lora={"rows_from": 99999}))


@pytest.mark.parametrize("recipe", ["pairs", "preferences"])
def test_held_out_units_of_another_speech_tokenizer_are_refused(recipe, tmp_path):
    for split, fingerprint in (("train", "abc"), ("validation", "xyz")):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"speech_tokenizer": fingerprint}) + "\n")
    sources = {"mine": SourceConfig(str(tmp_path), "pairs", held_out_split="validation")}
    pairs = recipe == "pairs"
    data = DataConfig(sources if pairs else {})
    preferences = None if pairs else PreferenceData(str(tmp_path), held_out_split="validation")
    with pytest.raises(RunError, match=r"split train\) and .*split validation\) hold units of different"):
        check_units(data, tmp_path, preferences)


def test_a_topology_is_refused_for_preferences(base, data, tmp_path):
    """The compiled program trains on documents, which would be reported as the cost of preferences."""
    preferences = {"data": {"path": str(data / "preferences")}}
    with pytest.raises(RunError, match="leave out preferences"):
        job.compile_run(
            _config(tmp_path / "run", base, data, data={}, preferences=preferences, compile_topology="v5e:4x4")
        )
