"""`spirit-jax COMMAND` and `python -m spirit_jax COMMAND`."""

import importlib
import subprocess
import sys
import types

import pytest

import spirit_jax
from spirit_jax import __main__ as command_line


@pytest.mark.parametrize("name", command_line.COMMANDS)
def test_every_command_has_a_module_that_runs_it(name):
    module, summary = command_line.COMMANDS[name]
    assert callable(importlib.import_module(module).main)
    assert summary.endswith(".")


def test_a_command_gets_the_arguments_after_its_name(monkeypatch):
    seen = []
    monkeypatch.setitem(sys.modules, "spirit_jax.train", types.SimpleNamespace(main=seen.append))
    command_line.main(["train", "--config", "x.yaml"])
    assert seen == [["--config", "x.yaml"]]


def test_errors_of_a_command_are_one_line(monkeypatch, capsys):
    def fails(arguments):
        raise FileExistsError("out exists")

    monkeypatch.setitem(sys.modules, "spirit_jax.train", types.SimpleNamespace(main=fails))
    with pytest.raises(SystemExit) as stop:
        command_line.main(["train"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "spirit-jax train: error: out exists\n"


def test_help_lists_every_command_and_version_is_the_packages(capsys):
    command_line.main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in command_line.COMMANDS)
    command_line.main(["--version"])
    assert capsys.readouterr().out == f"spirit_jax {spirit_jax.__version__}\n"


def test_help_and_bad_arguments_need_no_jax():
    """They are there at once because nothing is imported that takes long."""
    heavy = ("jax", "flax", "optax", "orbax", "tensorstore")
    script = f"""
import contextlib, io, sys
from spirit_jax.__main__ import COMMANDS, main
for command in COMMANDS:
    for option in ("--help", "--nonsense"):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            try:
                main([command, option])
            except SystemExit:
                pass
    print(command, *(name for name in {heavy} if name in sys.modules))
"""
    shown = subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True).stdout
    assert shown.split() == list(command_line.COMMANDS)


@pytest.mark.parametrize(("arguments", "message"), [([], "name a command"), (["trian"], "'trian' is not a command")])
def test_an_unknown_command_is_exit_code_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        command_line.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
