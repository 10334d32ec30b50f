"""The command line: its messages, exit codes and help."""

import collections
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from spirit_jax.convert.command import main
from spirit_jax.convert.formats.torch_file import load_torch, save_torch
from spirit_jax.convert.parts import RELEASED_PARTS
from spirit_jax.core.buckets import list_objects, write_object
from spirit_jax.core.checksums import write_checksums
from tests.support.trees import SPEECH

SCRIPT = pathlib.Path(__file__).parents[2] / "tools/convert_torch_weights.py"


def run(capsys, *arguments, code=None):
    """The output of the command, which must exit with `code`, or return if that is None."""
    if code is None:
        main([*map(str, arguments)])
    else:
        with pytest.raises(SystemExit) as exit_:
            main([*map(str, arguments)])
        assert exit_.value.code == code
    return capsys.readouterr()


def test_tensors_that_do_not_fit_are_listed_one_on_each_line(tmp_path, capsys):
    folder = shutil.copytree(SPEECH / "hifigan_spiritlm_base", tmp_path / "hifigan_spiritlm_base")
    content = load_torch(folder / "generator.pt")
    state = collections.OrderedDict(content["generator"])
    state["conv_pre.bias"] = state["conv_pre.bias"][:-1]
    state["conv_pre.extra"] = state.pop("conv_post.bias")
    save_torch(folder / "generator.pt", {"generator": state})
    message = run(capsys, "import", "--source", folder, "--target", tmp_path / "converted", code=1).err
    lines = [line.strip() for line in message.splitlines()]
    assert "mis-shaped conv_pre.bias: expected [64], found [63]" in lines
    assert "missing conv_post.bias: expected [1]" in lines
    assert "unused conv_pre.extra: [1] is in no row of the table" in lines
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hifigan_spiritlm_base"]


def test_arguments_that_cannot_be_used_exit_with_2(released, tmp_path, capsys):
    target = tmp_path / "target"
    assert "two language models" in run(capsys, "import", "--source", released, "--target", target, code=2).err
    assert "no such directory" in run(capsys, "import", "--source", released / "x", "--target", target, code=2).err
    assert (
        "--only huberts: choose among llm,hubert"
        in run(capsys, "import", "--source", released, "--target", target, "--only", "huberts", code=2).err
    )
    run(capsys, "convert", code=2)


@pytest.mark.parametrize("option", ["--dry-run", "--dry_run"])
def test_a_dry_run_lists_the_parts_and_writes_nothing(option, released, tmp_path, capsys):
    target = tmp_path / "target"
    listing = run(capsys, "import", "--source", released, "--target", target, "--only", "style,pitch", option).out
    assert "style_encoder_w2v2" in listing
    assert "dry run: nothing written" in listing
    assert not target.exists()


def test_values_of_options_keep_their_underscores(tmp_path, capsys):
    source = f"--source={tmp_path}/not_there"
    assert f"{tmp_path}/not_there: no such" in run(capsys, "import", source, "--target", tmp_path / "t", code=2).err


def test_a_target_in_a_bucket_holds_what_one_on_a_disk_holds(released, tmp_path, capsys, bucket):
    target = f"{bucket}/ckpt"
    options = ("import", "--source", released, "--only", "style", "--target")
    run(capsys, *options, tmp_path / "target")
    run(capsys, *options, target)
    files = {path.relative_to(tmp_path / "target").as_posix() for path in (tmp_path / "target").rglob("*.*")}
    files = {name for name in files if (tmp_path / "target" / name).is_file()}
    assert set(list_objects(target)) == files
    assert "exists" in run(capsys, *options, target, code=2).err
    write_object(f"{target}/speech_tokenizer/style/of_before", b"")
    write_object(f"{target}/mine.txt", b"kept")
    run(capsys, *options, target, "--overwrite")
    assert set(list_objects(target)) == {*files, "mine.txt"}


def test_parts_are_added_to_an_existing_target_only_with_overwrite(released, tmp_path, capsys):
    target = tmp_path / "target"
    run(capsys, "import", "--source", released, "--target", target, "--only", "style")
    (target / "mine.txt").write_text("kept")
    assert "exists" in run(capsys, "import", "--source", released, "--target", target, "--only", "hubert", code=2).err
    run(capsys, "import", "--source", released, "--target", target, "--only", "hubert,style", "--overwrite")
    assert sorted(path.name for path in target.iterdir()) == ["mine.txt", "speech_tokenizer"]
    assert sorted(path.name for path in (target / "speech_tokenizer").iterdir()) == ["phonetic", "style"]


def test_verify_runs_every_part_through_torch(released, converted, tmp_path, capsys):
    arguments = ("verify", "--source", released, "--target", converted, "--model", "expressive")
    rows = run(capsys, *arguments).out
    lines = {line.split()[0]: line.split() for line in rows.splitlines()[1:]}
    assert list(lines) == ["llm", *(part.name for part in RELEASED_PARTS)]
    for line in lines.values():
        assert line[3] == "yes"
        assert float(line[5]) < 1e-5  # float32 in another order of summation


def test_verify_fails_if_the_networks_differ_on_equal_tensors(released, converted, tmp_path, capsys):
    other = shutil.copytree(converted / "speech_tokenizer/phonetic", tmp_path / "other/speech_tokenizer/phonetic")
    (other / "config.json").write_text((other / "config.json").read_text().replace('"layer": 11', '"layer": 10'))
    write_checksums(other)
    arguments = ("verify", "--source", released, "--target", tmp_path / "other", "--only", "hubert")
    assert "phonetic: the networks of" in run(capsys, *arguments, code=1).err


def test_verify_fails_if_a_tensor_differs(released, converted, tmp_path, capsys):
    state = load_torch(released / "speech_tokenizer/hifigan_spiritlm_base/generator.pt")
    changed = tmp_path / "changed/hifigan_spiritlm_base"
    shutil.copytree(released / "speech_tokenizer/hifigan_spiritlm_base", changed)
    state["generator"]["conv_pre.bias"] = state["generator"]["conv_pre.bias"] + np.float32(1e-6)
    save_torch(changed / "generator.pt", state)
    arguments = ("verify", "--source", tmp_path / "changed", "--target", converted, "--only", "vocoder")
    assert "no: generator.pt:conv_pre.bias" in run(capsys, *arguments, code=1).out


@pytest.mark.parametrize("command", ["import", "export", "verify"])
def test_the_help_of_each_command_gives_an_example(command, capsys):
    assert f"python -m spirit_jax.convert {command} --source " in run(capsys, command, "--help", code=0).out


@pytest.mark.parametrize("command", [["-m", "spirit_jax.convert"], [str(SCRIPT)]], ids=["module", "script"])
def test_the_module_and_the_script_run_the_command(command, tmp_path):
    arguments = ["import", "--source", str(tmp_path / "none"), "--target", str(tmp_path / "target")]
    result = subprocess.run([sys.executable, *command, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.strip() == f"python -m spirit_jax.convert: error: --source {tmp_path}/none: no such directory"
