"""The rooms of DESIGN.md: what each part of the package may import, read from the sources."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "spirit_jax"

LEAVES = {"config", "vocabulary", "units", "audio", "checkpoint"}
ROOMS = {
    # room: the rooms that it may import besides the leaves
    "models": set(),
    "parallel": set(),
    "data": set(),
    "speech": {"models"},
    "convert": {"models"},
    "encoding": {"speech", "data", "models", "parallel"},
    "training": {"data", "models", "parallel"},
    "inference": {"speech", "models", "parallel"},
}
NO_LEAVES = {"models"}  # pure networks: arrays in, arrays out
LEAF_OF_LEAF = {("vocabulary", "units")}  # ids are counted off the units' streams
COMMANDS = {"train", "encode", "decode", "generate", "evaluate"}
HEAVY = {"torch", "tensorflow", "wandb", "gradio", "apache_beam"}


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


def _room(parts):
    return parts[0] if parts else ""


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    here = parts[0]
    ours = {tuple(name.split(".")[1:]) for name in _imports(path) if name.split(".")[0] == "spirit_jax"}
    for target in ours:
        there = _room(target)
        if there in ("", here, "__init__"):
            continue
        if here in ROOMS:
            allowed = ROOMS[here] | (set() if here in NO_LEAVES else LEAVES)
            if there not in ROOMS and there not in LEAVES and there not in COMMANDS:
                continue  # `from spirit_jax import name` of a name that is checked by its own module
            assert there in allowed, f"{path}: {here} must not import spirit_jax.{'.'.join(target)}"
        elif here in LEAVES:
            assert (here, there) in LEAF_OF_LEAF, f"{path}: a leaf must not import spirit_jax.{'.'.join(target)}"
        else:
            assert there not in COMMANDS, f"{path}: a command must not import another"


def test_every_room_has_a_rule():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms <= set(ROOMS)


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_data_never_starts_jax_and_nothing_needs_torch(path):
    assert not {name.split(".")[0] for name in _imports(path, when_loaded=True)} & HEAVY
    roots = {name.split(".")[0] for name in _imports(path)}
    if path.relative_to(PACKAGE).parts[0] in ("data", "units.py", "vocabulary.py", "audio.py"):
        assert not roots & {"jax", "flax", "optax", "orbax"}


def test_importing_the_package_starts_nothing():
    script = (
        "import sys, spirit_jax; "
        "heavy = {'torch', 'tensorflow', 'wandb'} & set(sys.modules); assert not heavy, heavy; "
        "bridge = sys.modules.get('jax._src.xla_bridge'); assert bridge is None or not bridge._backends"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
