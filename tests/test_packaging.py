"""pyproject.toml declares what the package imports and names."""

import ast
import importlib.metadata
import pathlib
import re
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from tools import check_image, lock

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def distribution(requirement: str) -> str:
    """The normalized name of a requirement: `spirit_jax[test]>=1` is `spirit-jax`."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


DECLARED = {distribution(requirement) for requirement in PROJECT["dependencies"]}
SERVING = ROOT / "spirit_jax" / "serving"  # the command serve imports it inside a function: it needs an extra
OPTIONAL = {distribution(entry) for extra in PROJECT["optional-dependencies"].values() for entry in extra}


def imported_modules(*, inside_functions: bool) -> set[str]:
    """Top-level modules that the package imports when it is loaded, or only inside functions; without Python's own."""
    found = set()
    for path in (ROOT / "spirit_jax").rglob("*.py"):
        tree = ast.parse(path.read_text())
        at_once = [] if SERVING in path.parents else tree.body
        nodes = set(ast.walk(tree)) - set(at_once) if inside_functions else at_once
        for node in nodes:
            if isinstance(node, ast.Import):
                found |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    return found - {"spirit_jax"} - sys.stdlib_module_names


def test_modules_that_are_imported_at_once_are_dependencies():
    providers = importlib.metadata.packages_distributions()
    for module in imported_modules(inside_functions=False):
        assert {distribution(name) for name in providers[module]} & DECLARED, f"{module} is not in dependencies"


def test_modules_that_are_imported_late_are_dependencies_or_in_an_extra():
    providers = importlib.metadata.packages_distributions()
    for module in imported_modules(inside_functions=True) & providers.keys():
        names = {distribution(name) for name in providers[module]}
        assert names & (DECLARED | OPTIONAL | {"tokenizers"}), (
            f"{module} is in no extra"
        )  # transformers brings tokenizers


@pytest.mark.parametrize("folder", ["spirit_jax", "docs", "tools", "examples", "README.md", "CONTRIBUTING.md"])
def test_extras_that_the_text_names_exist(folder):
    files = (
        [ROOT / folder]
        if (ROOT / folder).is_file()
        else [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.md")]
    )
    for file in files:
        for names in re.findall(r"(?:spirit_jax|'\.)\[([\w,]+)\]", file.read_text()):
            assert set(names.split(",")) <= PROJECT["optional-dependencies"].keys(), f"{file}: {names}"


def test_the_console_script_is_the_command_line():
    assert PROJECT["scripts"] == {"spirit-jax": "spirit_jax.__main__:main"}


def test_license_files_exist_and_are_named_in_the_expression():
    assert all((ROOT / path).is_file() for path in PROJECT["license-files"])
    assert PROJECT["license"] == "Apache-2.0 AND CC-BY-SA-3.0"


PIN = re.compile(r"^([\w.-]+)(?:\[[\w,]+\])?==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE)


def test_the_lock_file_fits_the_bounds_and_names_hashes_alone():
    text = (ROOT / "requirements.lock").read_text()
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith(("#", "--hash"))]
    pins = {distribution(name): version for name, version, _ in PIN.findall(text)}
    assert len(pins) == len(lines) > 50
    assert not re.search(r"file:|://| @ |\+", text)
    extras = PROJECT["optional-dependencies"]
    for entry in (*PROJECT["dependencies"], *(each for extra in lock.EXTRAS for each in extras[extra])):
        requirement = Requirement(entry)
        assert requirement.specifier.contains(pins[distribution(entry)]), (entry, pins[distribution(entry)])
    assert "libtpu" in pins
    assert "torch" not in pins


def test_the_image_is_built_from_the_lock_file():
    assert list(check_image.problems()) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("Dockerfile", "--require-hashes", "", "packages must come from a lock file"),
        ("Dockerfile", "COPY configs", "COPY config", "COPY config: does not exist"),
        ("Dockerfile", "python:3.11", "python:3.9", "expected python:VERSION-slim"),
        ("Dockerfile", "USER 1000", "USER root", "another user than root"),
        ("Dockerfile", "PYTHONUNBUFFERED", "HF_TOKEN", "a secret must not be in the image"),
        (".dockerignore", "!configs\n", "", "COPY configs: .dockerignore keeps it from Docker"),
        (".dockerignore", "*\n", "", "must begin with *"),
    ],
)
def test_faults_of_the_image_are_named(tmp_path, file, old, new, message):
    for name in ("Dockerfile", ".dockerignore", "pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    for name in ("requirements.lock", "requirements-build.lock", "configs", "spirit_jax"):
        (tmp_path / name).mkdir()
    assert list(check_image.problems(tmp_path)) == []
    content = (tmp_path / file).read_text()
    assert old in content
    (tmp_path / file).write_text(content.replace(old, new, 1))
    assert any(message in problem for problem in check_image.problems(tmp_path))
