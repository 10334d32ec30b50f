"""Imports that each folder may have, by docs/architecture.md, compared with the sources."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

import spirit_jax

TESTS = pathlib.Path(__file__).parent
PACKAGE = TESTS.parent / "spirit_jax"

LEAVES = {"config", "vocabulary", "units", "audio", "checkpoint"}
FOLDERS = {
    # folder: the folders that it may import, besides itself and what those may import
    "core": set(),
    "kernels": {"core"},
    "parallel": {"core"},
    "models": {"kernels", "core"},
    "costmodel": {"parallel", "models"},
    "data": LEAVES,
    "adapters": {"models"} | LEAVES,
    "convert": {"adapters", "models"} | LEAVES,
    "speech": {"models"} | LEAVES,
    "corpora": {"speech", "data", "models"} | LEAVES,
    "inference": {"adapters", "speech", "models", "parallel", "costmodel"} | LEAVES,
    "speech_training": {"training", "corpora", "convert"},
    "ablations": {"run"},
    "run": {"training", "evaluation", "corpora", "convert"},
    "training": {"adapters", "inference", "data", "speech", "models", "parallel", "costmodel"} | LEAVES,
    "serving": {"inference", "speech"} | LEAVES,
    "evaluation": {"inference", "corpora", "convert", "data", "speech", "models", "parallel"} | LEAVES,
}
FOLDERS |= {leaf: {"core"} for leaf in LEAVES} | {"vocabulary": {"units", "core"}}
HEAVY = {"torch", "tensorflow", "wandb", "gradio", "apache_beam"}
WITHOUT_JAX = {"data", "units", "vocabulary", "audio"}


def allowed(folder):
    """Every folder that a folder may import: those of its rule, and those that these may import."""
    return {folder}.union(*(allowed(other) for other in FOLDERS[folder]))


def _imports(path, *, when_loaded=False):
    """Names that a file imports; `when_loaded` leaves out what functions import when they run."""
    nodes = ast.parse(path.read_text())
    for node in nodes.body if when_loaded else ast.walk(nodes):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def _sources():
    return sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    here = path.relative_to(PACKAGE).with_suffix("").parts[0]
    for name in _imports(path):
        package, *parts = name.split(".")
        if (
            package != "spirit_jax"
            or not parts
            or not ((PACKAGE / parts[0]).is_dir() or (PACKAGE / f"{parts[0]}.py").exists())
        ):
            continue
        if here in FOLDERS:
            assert parts[0] in allowed(here), f"{path}: {here} must not import {name}"
        else:
            assert parts[0] in FOLDERS or parts[0] == here, f"{path}: a command must not import the command {name}"


def test_the_architecture_page_states_these_rules():
    page = (TESTS.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)/` \|.*\| ([^|]*) \|$", page, re.MULTILINE)
    stated = {name: set(re.findall(r"`(\w+)`", cell)) | (LEAVES if "leaves" in cell else set()) for name, cell in rows}
    assert stated == {name: FOLDERS[name] for name in FOLDERS.keys() - LEAVES}


def test_every_folder_has_a_rule():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} <= set(FOLDERS)


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_data_never_starts_jax_and_nothing_needs_torch(path):
    heavy = {name.split(".")[0] for name in _imports(path, when_loaded=True)} & HEAVY
    assert heavy <= ({"apache_beam"} if path == PACKAGE / "corpora" / "beam.py" else set())
    roots = {name.split(".")[0] for name in _imports(path)}
    if path.relative_to(PACKAGE).with_suffix("").parts[0] in WITHOUT_JAX:
        assert not roots & {"jax", "flax", "optax", "orbax"}


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_a_test_imports_no_other_test(path):
    """Helpers that several test files need are in tests/support."""
    names = {name for name in _imports(path) if name.split(".")[0] == "tests"}
    assert all(name == "tests" or name.split(".")[1] == "support" for name in names), names


def test_importing_the_package_starts_nothing():
    script = (
        "import sys, spirit_jax; "
        "heavy = {'torch', 'tensorflow', 'wandb'} & set(sys.modules); assert not heavy, heavy; "
        "bridge = sys.modules.get('jax._src.xla_bridge'); assert bridge is None or not bridge._backends"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_public_names_are_there():
    assert {name: getattr(spirit_jax, name).__name__ for name in spirit_jax.__all__} == {
        name: name for name in spirit_jax.__all__
    }
    assert set(spirit_jax.__all__) <= set(dir(spirit_jax))
    with pytest.raises(AttributeError, match="no attribute 'SpiritML'"):
        _ = spirit_jax.SpiritML
