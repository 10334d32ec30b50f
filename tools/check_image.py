"""python tools/check_image.py [--run]

Checks the Dockerfile: what it copies exists and reaches Docker, packages come from requirements.lock with their hashes,
its Python is one that the package supports, and it ends as a user without rights. With --run, also runs its `pip` steps
in a fresh virtual environment and starts the command of the image.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[1]
_SECRET = re.compile(r"(?i)(token|secret|password|api_?key|credential)")


def instructions(root: pathlib.Path = ROOT) -> list[tuple[str, str]]:
    """Each instruction of the Dockerfile with its arguments; continued lines are joined."""
    text = re.sub(r"\\\n\s*", "", (root / "Dockerfile").read_text())
    lines = (line.strip() for line in text.splitlines())
    return [(line.split()[0].upper(), line.split(maxsplit=1)[1]) for line in lines if line and line[0] != "#"]


def problems(root: pathlib.Path = ROOT) -> Iterator[str]:
    """What is wrong with the Dockerfile, a line each."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    ignore = (root / ".dockerignore").read_text().split()
    found = instructions(root)
    for word, rest in found:
        if word == "FROM":
            python = re.fullmatch(r"python:(\d+\.\d+)-slim(-\w+)?", rest)
            supported = f"Programming Language :: Python :: {python[1]}" if python else ""
            if supported not in project["classifiers"]:
                yield f"FROM {rest}: expected python:VERSION-slim with a version that pyproject.toml lists"
        if word in ("COPY", "ADD"):
            *sources, _ = rest.split()
            for source in sources:
                if not (root / source).exists():
                    yield f"{word} {source}: does not exist"
                if f"!{source.strip('./')}" not in ignore:
                    yield f"{word} {source}: .dockerignore keeps it from Docker; add the line !{source.strip('./')}"
        for command in rest.split(" && ") if word == "RUN" and "pip install" in rest else ():
            words = command.split()
            locked = "--require-hashes" in words and words[-2] == "-r" and words[-1].endswith(".lock")
            if not locked and not ("--no-deps" in words and words[-1] == "."):
                yield f"RUN {command}: packages must come from a lock file with --require-hashes"
        if word in ("ENV", "ARG") and _SECRET.search(rest):
            yield f"{word} {rest}: a secret must not be in the image"
    users = [rest for word, rest in found if word == "USER"]
    if not users or users[-1] in ("root", "0"):
        yield "USER: the image must end as another user than root"
    if ignore[0] != "*":
        yield ".dockerignore: must begin with *, so that nothing reaches Docker that is not named"


def run_steps(root: pathlib.Path = ROOT) -> None:
    """Run the `pip` steps of the Dockerfile in a fresh virtual environment, and then its command.

    Raises:
        SystemExit: this Python is another than the image's, or a step failed.
    """
    found = instructions(root)
    image = next(rest for word, rest in found if word == "FROM")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if f"python:{version}-" not in image:
        raise SystemExit(f"the image is {image}: run this with its Python, not {version}")
    with tempfile.TemporaryDirectory() as name:
        place, app = pathlib.Path(name), pathlib.Path(name, "app")
        app.mkdir()
        venv.create(place / "venv", with_pip=True)
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment["PATH"] = f"{place / 'venv' / 'bin'}{os.pathsep}{environment['PATH']}"

        def run(words: list[str] | str, folder: pathlib.Path) -> None:
            print(f"+ {words if isinstance(words, str) else ' '.join(words)}", flush=True)
            done = subprocess.run(words, cwd=folder, env=environment, shell=isinstance(words, str))
            if done.returncode:
                raise SystemExit(f"exit code {done.returncode}")

        for word, rest in found:
            if word == "COPY":
                *sources, target = rest.split()
                for source in sources:
                    if (root / source).is_dir():
                        shutil.copytree(root / source, app / target, ignore=shutil.ignore_patterns("__pycache__"))
                    else:
                        shutil.copy(root / source, app / target)
            if word == "RUN" and "pip install" in rest:
                run(rest, app)
            if word == "CMD":
                shutil.rmtree(app)
                command = json.loads(rest)
                run(command, place)
                run([*command[:2], "spirit_jax.train", "--help"], place)
                run(["pip", "check"], place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="run the steps in a virtual environment")
    arguments = parser.parse_args()
    if found := list(problems()):
        sys.exit("\n".join(found))
    if arguments.run:
        run_steps()


if __name__ == "__main__":
    main()
