"""python tools/lock.py

Writes requirements.lock and requirements-build.lock: one version of every package that the image for TPUs needs
(Dockerfile), or that builds one of them, with the hashes of its files. Run it after a change to `dependencies` or
`EXTRAS`; it needs uv (pip install uv). In any environment, `pip install -c requirements.lock -e .` takes the same
versions.
"""

import pathlib
import re
import subprocess
import tomllib

ROOT = pathlib.Path(__file__).parents[1]
LOCK, BUILD = ROOT / "requirements.lock", ROOT / "requirements-build.lock"
EXTRAS = ("gcs", "m4a", "tpu")
"""Extras that the image has: buckets, all audio files, TPUs."""
SOURCES = ("promise",)
"""Packages that are published as source code alone; setuptools builds them."""
PYTHON, PLATFORM = "3.11", "x86_64-manylinux_2_31"

_HEADER = "# Written by tools/lock.py for Python {python} on {platform}: {content}.\n"
_PLACES = re.compile(r"^.*(?:file:|://| @ |\+cpu|^-).*$", re.MULTILINE)


def lock(content: str, options: list[str], requirements: list[str]) -> str:
    """The content of a lock file.

    Args:
        content: what it is for.
        options: of `uv pip compile`.
        requirements: packages besides those that the options name.

    Raises:
        SystemExit: uv cannot resolve the packages, or names a place that other machines do not have.
    """
    words = ["--generate-hashes", "--no-header", "--no-emit-index-url", "--no-emit-find-links"]
    words += ["--index-strategy=unsafe-best-match", f"--python-version={PYTHON}", f"--python-platform={PLATFORM}"]
    words += ["--only-binary=:all:", *(f"--no-binary={name}" for name in SOURCES)]
    found = subprocess.run(
        ["uv", "pip", "compile", "--quiet", *words, *options, "-"],
        cwd=ROOT,
        input="\n".join(requirements),
        text=True,
        stdout=subprocess.PIPE,
    )
    if found.returncode:
        raise SystemExit(found.returncode)
    if place := _PLACES.search(found.stdout):
        raise SystemExit(f"the lock file names a place: {place[0]}")
    return _HEADER.format(python=PYTHON, platform=PLATFORM, content=content) + found.stdout


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = [f"--extra={extra}" for extra in EXTRAS]
    LOCK.write_text(lock(f"the package with its extras {', '.join(EXTRAS)}", ["pyproject.toml", *extras], []))
    BUILD.write_text(lock("what builds packages", [], [*project["build-system"]["requires"], "setuptools"]))


if __name__ == "__main__":
    main()
