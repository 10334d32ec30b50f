"""The notebooks of examples/ run from the first cell to the last. Those that train are marked slow."""

import os
import pathlib
import re

import pytest

from tests.support import checkpoints

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
ROOT = str(EXAMPLES.parent)


def run(name: str, **values: int) -> dict:
    """Run the cells of a notebook in one namespace, which is returned. `values` replace numbers of its first cell."""
    text = (EXAMPLES / f"{name}.md").read_text(encoding="utf-8")
    assert text.startswith("---\njupyter:\n  jupytext:"), "not a notebook of jupytext"
    namespace: dict = {}
    for cell in re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        for variable, value in values.items():
            cell = re.sub(rf"^{variable} = \d+$", f"{variable} = {value}", cell, flags=re.MULTILINE)
        exec(compile(cell, f"{name}.md", "exec"), namespace)
    return namespace


@pytest.fixture
def here(tmp_path, monkeypatch) -> pathlib.Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ROOT)
    return tmp_path


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> pathlib.Path:
    """The directory in which `train_and_listen` ran with few steps."""
    directory = tmp_path_factory.mktemp("notebooks")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setenv("PYTHONPATH", ROOT)
        run("train_and_listen", STEPS=20)
        os.rename("runs/tiny/checkpoints/20", "runs/tiny/checkpoints/500")
    return directory


def test_every_notebook_has_a_test():
    names = {path.stem for path in EXAMPLES.glob("*.md")}
    assert names == {"inference_tour", "train_and_listen", "fine_tune_your_voice", "look_inside"}


def test_inference_tour(here, capsys):
    step = here / "runs" / "tiny" / "checkpoints" / "500"
    step.parent.mkdir(parents=True)
    step.symlink_to(checkpoints.with_speech("small_base"))
    found = run("inference_tour")
    assert found["answer"][0].audio.size
    assert "nats a token: opened the door." in capsys.readouterr().out


@pytest.mark.slow
def test_train_and_listen(trained):
    assert (trained / "runs" / "tiny" / "checkpoints" / "500").is_dir()


@pytest.mark.slow
def test_fine_tune_your_voice(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    monkeypatch.setenv("PYTHONPATH", ROOT)
    run("fine_tune_your_voice", STEPS=30)
    base, adapted = (float(nats) for nats in re.findall(r"(-[\d.]+) nats a token", capsys.readouterr().out))
    assert adapted > base + 0.1


@pytest.mark.slow
def test_look_inside(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    run("look_inside")
    assert "similarity above the next word's" in capsys.readouterr().out
