"""Import, export and verify of whole trees. Conversion moves bytes, so everything is compared for equality."""

import collections
import json
import pathlib
import pickle
import runpy
import shutil
import sys
import types

import jax
import numpy as np
import pytest
import torch
import transformers
from orbax.checkpoint import v1 as ocp

from spirit_jax import checkpoint, config
from spirit_jax.convert import jobs, parts
from spirit_jax.convert.components import hubert, llama
from spirit_jax.convert.formats import orbax_file
from spirit_jax.convert.formats.files import ConversionError
from spirit_jax.convert.formats.torch_file import load_torch, save_torch
from spirit_jax.convert.table import same_bits, to_ours
from spirit_jax.models.llama import abstract_params
from spirit_jax.vocabulary import Vocabulary
from tests.support.goldens import golden
from tests.support.trees import LLAMAS, SPEECH, check_equal, check_tree, run_export, run_import

main = runpy.run_path(str(pathlib.Path(__file__).parents[2] / "tools/convert_torch_weights.py"))["main"]


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A released tree with both language models and every part; FCPE's small weights in the place of the package's."""
    root = tmp_path_factory.mktemp("released")
    shutil.copytree(SPEECH, root / "speech_tokenizer")
    (root / "speech_tokenizer/fcpe").mkdir()
    shutil.copy(golden("variants/fcpe_tiny/fcpe_tiny.pt"), root / "speech_tokenizer/fcpe/fcpe_c_v001.pt")
    for variant, halves in LLAMAS.items():
        for half in halves:
            shutil.copytree(half, root / "spiritlm_model" / jobs.MODELS[variant], dirs_exist_ok=True)
    return root


@pytest.fixture(scope="module")
def ours(released, tmp_path_factory):
    return run_import(released, tmp_path_factory.mktemp("ours") / "checkpoint", model="expressive")


def test_import_then_export_gives_the_released_tree_back(released, ours, tmp_path):
    back = run_export(ours, tmp_path / "back")
    check_tree(back, released, but=["spiritlm_model/spirit-lm-base-7b"])


@pytest.mark.parametrize(
    ("variant", "folder"),
    [
        ("llama_small_expressive_bin_sharded", "spiritlm_model/spirit-lm"),  # it comes without a tokenizer
        ("hubert_25hz_batch_norm", "speech_tokenizer/hubert_25hz"),
        ("vqvae_f0_quantizer_raw", "speech_tokenizer/vqvae_f0_quantizer"),
    ],
)
def test_variants_come_back(variant, folder, tmp_path):
    source = tmp_path / "released" / pathlib.Path(folder).name
    shutil.copytree(golden(f"variants/{variant}"), source)
    (source.parent / "fcpe").mkdir()  # the small one, in the place of the installed package's
    shutil.copy(golden("variants/fcpe_tiny/fcpe_tiny.pt"), source.parent / "fcpe/fcpe_c_v001.pt")
    back = run_export(run_import(source, tmp_path / "ours"), tmp_path / "back")
    check_tree(back / folder, golden(f"variants/{variant}"))


def test_fcpe_comes_from_the_installed_package(tmp_path):
    (tmp_path / "vqvae_f0_quantizer").mkdir()
    for path in (SPEECH / "vqvae_f0_quantizer").iterdir():
        shutil.copy(path, tmp_path / "vqvae_f0_quantizer")
    found = parts.read_released(parts.PARTS[1], tmp_path / "vqvae_f0_quantizer")
    installed = parts._installed_fcpe()
    if installed is None:
        pytest.skip("torchfcpe (test extra) is not installed")
    table = load_torch(installed)["model"]["cent_table"]
    np.testing.assert_array_equal(found.arrays["fcpe/cent_table"], table)
    assert found.config["fcpe"] == {"hidden_size": 512, "num_layers": 6, "num_bins": 360}


def test_weight_norm_under_its_new_name_comes_back(tmp_path):
    folder = shutil.copytree(SPEECH / "style_encoder_w2v2", tmp_path / "style_encoder_w2v2")
    state = load_torch(folder / "pytorch_model.bin")
    names = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    renamed = {key.replace(old := key.rsplit(".", 1)[-1], names.get(old, old)): state[key] for key in state}
    save_torch(folder / "pytorch_model.bin", renamed)
    before = torch.load(folder / "pytorch_model.bin", weights_only=True)
    assert any("original0" in key for key in before)
    back = run_export(run_import(folder, tmp_path / "ours"), tmp_path / "back")
    check_equal(torch.load(back / "speech_tokenizer/style_encoder_w2v2/pytorch_model.bin"), before, "style")


def test_fairseq_layout_gives_what_the_converted_layout_gives(tmp_path):
    folder = shutil.copytree(SPEECH / "hubert_25hz", tmp_path / "hubert_25hz")
    converted = torch.load(folder / "mhubert_base_25hz.pt")
    module = types.ModuleType("fairseq.data.dictionary")
    module.Dictionary = type("Dictionary", (), {"__module__": module.__name__})
    dictionary = module.Dictionary()
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
    found = parts.read_released(parts.PARTS[0], folder)
    expected = parts.read_released(parts.PARTS[0], SPEECH / "hubert_25hz")
    assert found.config == expected.config
    assert all(same_bits(found.arrays[path], expected.arrays[path]) for path in expected.arrays)
    assert "exported in the released layout, without args, extra_state" in found.notes[0]
    back = run_export(run_import(folder, tmp_path / "ours"), tmp_path / "back") / "speech_tokenizer/hubert_25hz"
    exported = torch.load(back / "mhubert_base_25hz.pt", weights_only=True)
    expected = {key: converted[key] for key in ("task_cfg", "model_cfg", "model_weight")}
    check_equal(exported, expected | {"dictionaries_symbols": [["0", "1"]]}, "fairseq")


def test_statistics_of_speakers_are_read_where_they_lie_beside_the_config(tmp_path):
    folder = shutil.copytree(SPEECH / "vqvae_f0_quantizer", tmp_path / "vqvae_f0_quantizer")
    (tmp_path / "fcpe").mkdir()
    shutil.copy(golden("variants/fcpe_tiny/fcpe_tiny.pt"), tmp_path / "fcpe/fcpe_c_v001.pt")
    found = parts.read_released(parts.PARTS[1], folder)  # config.yaml names /not/there/f0_stats.pt
    assert "speaker_f0_mean" not in found.config
    assert "f0_stats.pt is not there, though the config names it" in found.notes[0]
    torch.save({"ann": {"f0_mean": torch.tensor(200.5)}, "bob": {"f0_mean": 110.0}}, folder / "f0_stats.pt")
    ours = run_import(folder, tmp_path / "ours")
    config = json.loads((ours / "speech_tokenizer/pitch/config.json").read_text())
    assert config["speaker_f0_mean"] == {"ann": 200.5, "bob": 110.0}
    back = run_export(ours, tmp_path / "back") / "speech_tokenizer/vqvae_f0_quantizer"
    assert (back / "f0_stats.pt").read_bytes() == (folder / "f0_stats.pt").read_bytes()
    torch.save({"ann": {"f0_std": 1.0}}, folder / "f0_stats.pt")
    with pytest.raises(ConversionError, match="an f0_mean in Hz expected for each speaker"):
        parts.read_released(parts.PARTS[1], folder)


def test_a_training_step_exports(ours, tmp_path):
    """Orbax's own way of saving sharded jax arrays, as a training run does it; no `released/` beside it."""
    run = tmp_path / "run"
    settings = checkpoint.read_config(ours)
    model = config.from_dict(jobs.LlamaConfig, settings["model"])
    params = jax.tree.map(lambda x: jax.random.normal(jax.random.key(1), x.shape), abstract_params(model))
    ocp.save_checkpointables(run / "checkpoints/3", {"llm": params, "optimizer": {"count": np.zeros(3)}})
    shutil.copytree(ours / "tokenizer", run / "tokenizer")
    (run / "config.json").write_text(json.dumps(settings))
    (run / "speech_tokenizer/phonetic").mkdir(
        parents=True
    )  # a part trained from scratch: nothing released looks like it
    assert "phonetic is left behind" in jobs.plan_export(run / "checkpoints/3")[-1].notes[0]
    with pytest.raises(ConversionError, match="not imported from a released checkpoint"):
        jobs.plan_export(run / "checkpoints/3", ["llm", "hubert"])
    with pytest.raises(checkpoint.CheckpointError, match="name one of its steps"):
        jobs.plan_export(run)
    folder = run_export(run / "checkpoints/3", tmp_path / "back") / "spiritlm_model/spirit-lm-expressive-7b"
    loaded = transformers.LlamaForCausalLM.from_pretrained(folder).state_dict()
    q = np.asarray(params["layers"]["self_attn"]["q_proj"][2]).reshape(64, 64).T
    np.testing.assert_array_equal(loaded["model.layers.2.self_attn.q_proj.weight"].numpy(), q)
    assert Vocabulary.load(folder).fingerprint == Vocabulary.load(ours / "tokenizer").fingerprint
    again = run_import(folder, tmp_path / "again")
    stored = checkpoint.open_arrays(again, llama.shapes(model))
    assert all(same_bits(np.asarray(stored[p]), np.asarray(a)) for p, a in checkpoint.flatten(params).items())


def test_large_arrays_are_written_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(orbax_file, "CHUNK_BYTES", 256)
    rng = np.random.default_rng(0)
    arrays = {
        "a/wide": rng.standard_normal((37, 20), np.float32),
        "a/flat": rng.standard_normal(500),
        "b": np.float32(3),
    }
    seen = []
    orbax_file.save_llm(tmp_path / "c", arrays, seen.append)
    assert sum(seen) == sum(array.nbytes for array in arrays.values())
    assert max(seen) <= 256
    stored = checkpoint.open_arrays(tmp_path / "c", arrays)
    assert all(same_bits(np.asarray(stored[path]), np.asarray(arrays[path])) for path in arrays)


def test_a_flipped_byte_in_our_llm_is_noticed(tmp_path):
    array = np.arange(4096, dtype=np.float32)
    orbax_file.save_llm(tmp_path / "c", {"x": array})
    hit = 0
    for path in (tmp_path / "c/llm/d").iterdir():
        content = path.read_bytes()
        at = content.find(array[1000:1010].tobytes())
        if at >= 0:
            path.write_bytes(content[:at] + b"\xff" + content[at + 1 :])
            hit += 1
    assert hit == 1
    with pytest.raises(ValueError, match="mismatch"):
        np.asarray(checkpoint.open_arrays(tmp_path / "c", {"x": None})["x"])
    with pytest.raises(ValueError, match="mismatch"):
        ocp.load(tmp_path / "c", checkpointable_name="llm")


# ---------------------------------------------------------------- what stops a conversion


def test_missing_unused_and_misshaped_tensors_stop_the_run(tmp_path, capsys):
    folder = shutil.copytree(SPEECH / "hifigan_spiritlm_base", tmp_path / "hifigan_spiritlm_base")
    content = load_torch(folder / "generator.pt")
    state = collections.OrderedDict(content["generator"])
    state["conv_pre.bias"] = state["conv_pre.bias"][:-1]
    state["conv_pre.extra"] = state.pop("conv_post.bias")
    save_torch(folder / "generator.pt", {"generator": state})
    with pytest.raises(SystemExit) as exit_:
        main(["import", "--source", str(folder), "--target", str(tmp_path / "ours")])
    assert exit_.value.code == 1
    message = capsys.readouterr().err
    assert "mis-shaped conv_pre.bias: expected [64], found [63]" in message
    assert "missing  conv_post.bias: expected [1]" in message
    assert "unused conv_pre.extra: [1]" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hifigan_spiritlm_base"]


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/passwd", "sub/x.bin", "..", "", 7, "a\\b"])
def test_an_index_does_not_lead_outside(name, tmp_path):
    folder = shutil.copytree(golden("variants/llama_small_expressive_bin_sharded"), tmp_path / "llama")
    (tmp_path / "outside.bin").write_bytes((folder / "pytorch_model-00001-of-00003.bin").read_bytes())
    index = json.loads((folder / "pytorch_model.bin.index.json").read_text())
    index["weight_map"]["lm_head.weight"] = name
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ConversionError, match="is not the name of a file beside it"):
        jobs.plan_import(folder)


def test_an_index_must_fit_its_shards(tmp_path):
    folder = shutil.copytree(golden("variants/llama_small_expressive_bin_sharded"), tmp_path / "llama")
    index = folder / "pytorch_model.bin.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.embed_tokens.weight"] = "pytorch_model-00003-of-00003.bin"
    index.write_text(json.dumps(content))
    with pytest.raises(ConversionError, match=r"embed_tokens.weight: index says .*00003.*, found in .*00001"):
        jobs.plan_import(folder)
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(ConversionError, match="shard pytorch_model-00002-of-00003.bin is missing"):
        jobs.plan_import(folder)


def test_our_own_checkpoint_does_not_lead_outside(ours, tmp_path):
    copy = shutil.copytree(ours / "speech_tokenizer", tmp_path / "c/speech_tokenizer")
    listing = copy / "vocoder_base/released/weights.json"
    listing.write_text(listing.read_text().replace('"generator.pt"', '"../../escaped.pt"'))
    with pytest.raises(ConversionError, match=r"'../../escaped.pt' is not the name of a file beside it"):
        jobs.plan_export(tmp_path / "c")


@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupted_conversion_leaves_nothing(existing, released, ours, tmp_path):
    target = tmp_path / "target"
    if existing:
        shutil.copytree(ours / "speech_tokenizer", target / "speech_tokenizer")
    before = sorted(str(path) for path in tmp_path.rglob("*"))

    def interrupt(size, total=[0]):  # noqa: B006 - a counter
        total[0] += size
        if total[0] > 10**6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.run(jobs.plan_import(released, model="base"), target, existing, interrupt)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def run(capsys, *arguments, code=None):
    """What the command prints; `code` is the exit code if it is to fail."""
    if code is None:
        main([*map(str, arguments)])
    else:
        with pytest.raises(SystemExit) as exit_:
            main([*map(str, arguments)])
        assert exit_.value.code == code
    return capsys.readouterr()


def test_the_command(released, tmp_path, capsys):
    target = tmp_path / "target"
    assert "two language models" in run(capsys, "import", "--source", released, "--target", target, code=2).err
    assert "no such directory" in run(capsys, "import", "--source", released / "x", "--target", target, code=2).err
    assert (
        "--only huberts: choose among llm,hubert"
        in run(capsys, "import", "--source", released, "--target", target, "--only", "huberts", code=2).err
    )
    run(capsys, "convert", code=2)
    listing = run(capsys, "import", "--source", released, "--target", target, "--only", "style,pitch", "--dry-run").out
    assert "style_encoder_w2v2" in listing
    assert "dry run: nothing written" in listing
    assert not target.exists()

    run(capsys, "import", "--source", released, "--target", target, "--only", "style")
    (target / "mine.txt").write_text("kept")
    assert "exists" in run(capsys, "import", "--source", released, "--target", target, "--only", "hubert", code=2).err
    run(capsys, "import", "--source", released, "--target", target, "--only", "hubert,style", "--overwrite")
    assert sorted(path.name for path in target.iterdir()) == ["mine.txt", "speech_tokenizer"]
    assert sorted(path.name for path in (target / "speech_tokenizer").iterdir()) == ["phonetic", "style"]


def test_verify_runs_every_part_through_torch(released, ours, tmp_path, capsys):
    arguments = ("verify", "--source", released, "--target", ours, "--model", "expressive")
    rows = run(capsys, *arguments).out
    lines = {line.split()[0]: line.split() for line in rows.splitlines()[1:]}
    assert list(lines) == ["llm", *(part.name for part in parts.PARTS)]
    for line in lines.values():
        assert line[3] == "yes"
        assert float(line[5]) < 1e-5  # float32 in another order of summation
    # The tensors are the same, but what is done with them is not.
    other = shutil.copytree(ours / "speech_tokenizer/phonetic", tmp_path / "other/speech_tokenizer/phonetic")
    (other / "config.json").write_text((other / "config.json").read_text().replace('"layer": 11', '"layer": 10'))
    arguments = ("verify", "--source", released, "--target", tmp_path / "other", "--only", "hubert")
    assert "phonetic: the networks of" in run(capsys, *arguments, code=1).err

    state = load_torch(released / "speech_tokenizer/hifigan_spiritlm_base/generator.pt")
    changed = tmp_path / "changed/hifigan_spiritlm_base"
    shutil.copytree(released / "speech_tokenizer/hifigan_spiritlm_base", changed)
    state["generator"]["conv_pre.bias"] = state["generator"]["conv_pre.bias"] + np.float32(1e-6)
    save_torch(changed / "generator.pt", state)
    found = run(capsys, "verify", "--source", tmp_path / "changed", "--target", ours, "--only", "vocoder", code=1)
    assert "no: generator.pt:conv_pre.bias" in found.out


FULL_SIZE = json.loads(golden("FULL_SIZE.json").read_text())


@pytest.mark.parametrize("name", [name for name, entry in FULL_SIZE.items() if "state" in entry])
def test_full_size_keys_and_shapes_are_those_of_the_tables(name):
    """FULL_SIZE.json lists every key of the parts at their published sizes: the tables take all of them and miss none."""
    entry = FULL_SIZE[name]
    layers = entry["config"]["num_hidden_layers"] if name.startswith("spirit-lm") else 1  # it lists the first of them
    tensors = {
        key.replace("layers.0.", f"layers.{i}.") if layers > 1 else key: np.broadcast_to(np.float32(0), shape)
        for key, shape in entry["state"].items()
        for i in range(layers)
    }
    if name.startswith("spirit-lm"):
        model = llama.from_hf_config(entry["config"])
        rows, shapes = llama.rows(model), llama.shapes(model)
    else:
        part = next(part for part in parts.PARTS if part.folder == name.split("/")[0])
        file = next(file for file in part.files if file.name in ("", name.split("/")[-1]))
        ours = {
            "phonetic": lambda: hubert.part_config(
                *(FULL_SIZE["hubert_25hz/mhubert_base_25hz.pt"][cfg] for cfg in ("model_cfg", "task_cfg")),
                FULL_SIZE["hubert_25hz/L11_quantizer_500.pt"]["model_cfg"],
            ),
            "pitch": lambda: part.config({"config.yaml": entry["config"]}),
            "style": lambda: part.config({"config.json": {"num_labels": 100}}),
        }.get(part.name, lambda: part.config({"config.json": entry["config"]}))
        rows, shapes = file.table(ours())
    arrays, kept = to_ours(rows, tensors, shapes, name)
    count = sum(np.prod(array.shape, dtype=np.int64) for array in [*arrays.values(), *kept.values()])
    assert count == entry.get("params_with_codebook_buffer", entry["params"])


def test_voices_keep_their_names(released, tmp_path):
    ours = run_import(released, tmp_path / "ours", only=["vocoder"])
    part = json.loads((ours / "speech_tokenizer/vocoder_base" / checkpoint.CONFIG).read_text())
    folder = released / "speech_tokenizer/hifigan_spiritlm_base"
    assert part["speakers"] == (folder / "speakers.txt").read_text().splitlines()
    assert part["styles"] == (folder / "styles.txt").read_text().splitlines()


def test_a_target_that_exists_is_left_alone_unless_told_otherwise(tmp_path):
    """The library refuses as the command does; other parts of the target stay when it may be overwritten."""

    def write(staged: pathlib.Path, progress) -> None:
        (staged / "config.json").write_text("new")

    job = jobs.Job("llm", tmp_path, "config.json", 0, 0, (), write)
    target = tmp_path / "target"
    target.mkdir()
    (target / "config.json").write_text("old")
    (target / "other").write_text("stays")
    with pytest.raises(FileExistsError, match="target exists; choose another, or say --overwrite"):
        jobs.run([job], target, overwrite=False)
    assert (target / "config.json").read_text() == "old"
    jobs.run([job], target, overwrite=True)
    assert {path.name: path.read_text() for path in target.iterdir()} == {"config.json": "new", "other": "stays"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["target"]
