"""Every document, heading, link, option and name that code and pages refer to exists."""

import ast
import importlib
import pathlib
import re
import shlex
import tomllib

import pytest

from spirit_jax.__main__ import COMMANDS
from spirit_jax.evaluation.tasks import TASKS

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "spirit_jax"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "api").glob("*.md")])
_FOLDERS = ("spirit_jax", "tests", "tools", "benchmarks", "examples", "configs", "docs", ".github", ".ci")
SOURCES = [
    path
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("*.toml"),
        *(file for name in _FOLDERS for file in (ROOT / name).rglob("*")),
    )
    if path.suffix in {".py", ".yaml", ".yml", ".toml", ".md", ""}
    and path.is_file()
    and path != pathlib.Path(__file__)
    and not {"_build", "goldens", "checkpoints"} & set(path.parts)
]

_CITATION = re.compile(r'docs/([\w/]+\.md)((?:(?:,| and|, and) \\?"[^"\\\n]+\\?")*)')
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^( *)```([a-z]*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_NOT_IN_REPOSITORY = re.compile(r"\b(DESIGN|FORMATS|PAPER|FIELD|STYLE)(\.md\b| section)|\.\./shared\b")


def _name(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def _joined(text: str) -> str:
    """The text with wrapped lines joined, comment signs left out, so that a citation over two lines is one."""
    return re.sub(r"\s*\n\s*(# ?)?", " ", text)


def _headings(page: pathlib.Path) -> list[str]:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return [re.sub(r"[`*]", "", line.lstrip("#").strip()) for line in text.split("\n") if re.match("#+ ", line)]


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_cited_documents_and_headings_exist():
    problems = []
    for path in SOURCES:
        for name, cited in _CITATION.findall(_joined(path.read_text(encoding="utf-8"))):
            page = ROOT / "docs" / name
            headings = _headings(page) if page.is_file() else []
            missing = [heading for heading in re.findall(r'"([^"\\]+)\\?"', cited) if heading not in headings]
            if missing or not page.is_file():
                problems.append(f"{_name(path)}: docs/{name} {missing or 'does not exist'}")
    assert not problems, "citations of pages or headings that do not exist:\n" + "\n".join(problems)


def test_only_documents_of_the_repository_are_cited():
    found = [(path, _NOT_IN_REPOSITORY.search(path.read_text(encoding="utf-8"))) for path in SOURCES]
    problems = [f"{_name(path)}: {match[0]}" for path, match in found if match]
    assert not problems, "cite a page under docs/ in place of\n" + "\n".join(problems)


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_within_the_repository_lead_somewhere(page):
    for link in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        path = (page.parent / target).resolve() if target else page
        assert path.is_file(), f"{_name(page)} links to {link}, which does not exist"
        if anchor:
            assert anchor in map(_anchor, _headings(path)), f"{_name(page)} links to {link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_files_and_extras_named_in_pages_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(
        r"\b(?:benchmarks|configs|examples|spirit_jax|tests|tools)/[\w/]+\.(?:py|yaml|json)\b", text
    ):
        assert (ROOT / name).is_file(), f"{_name(page)} names {name}, which does not exist"
    named = re.findall(r"`([\w/]+\.py)`", text) + re.findall(r"^\| `(\w+/)`", text, re.MULTILINE)
    for name in named if page.name == "architecture.md" else []:
        places = (ROOT / name, *(folder / name for folder in (PACKAGE, *PACKAGE.iterdir())))
        assert any(place.exists() for place in places), f"{_name(page)} names {name}, which does not exist"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for extra in re.findall(r"'(?:\.|spirit_jax)\[(\w+)\]'", text):
        assert extra in extras, f"{_name(page)} names the extra {extra!r}, which pyproject.toml does not have"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_python_in_pages_parses_and_imports_exist(page):
    for indent, language, code in _FENCE.findall(page.read_text(encoding="utf-8")):
        if language != "python":
            continue
        code = re.sub(f"^{indent}", "", code, flags=re.MULTILINE)
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("spirit_jax"):
                module = importlib.import_module(str(node.module))
                missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
                assert not missing, f"{_name(page)}: {node.module} has no {missing}"


def test_api_reference_covers_the_package():
    listed = {
        name.split(".")[1]
        for page in (ROOT / "docs" / "api").glob("*.md")
        for line in page.read_text(encoding="utf-8").split("\n")
        if line.startswith("MODULES ")
        for name in line.split(" ")[1:]
    }
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    files = [path for path in PACKAGE.glob("*.py") if not path.name.startswith("_")]
    commands = {path.stem for path in files if "\ndef main(" in path.read_text(encoding="utf-8")}
    assert listed == folders | ({path.stem for path in files} - commands)


_NAMED_BY_USERS = ("data.sources.", *(f"data.{name}" for name in [*TASKS, "TASK"]), "prompts.")
"""Options whose last part is a name of the user's, or of a task."""


def _options_of(command: str, capsys, *arguments: str, help_option: str = "--help") -> set[str]:
    main = importlib.import_module(COMMANDS[command][0]).main
    with pytest.raises(SystemExit) as end:
        main([*arguments, help_option])
    assert end.value.code == 0
    return {option.replace("-", "_") for option in re.findall(r"--([a-z][\w.-]*)", capsys.readouterr().out)}


@pytest.fixture
def options(capsys) -> dict[str, set[str]]:
    """The options of every command, and of every job of the converter, with underscores."""
    found = {command: _options_of(command, capsys) for command in COMMANDS if command != "convert"}
    for job in ("import", "export", "verify", "merge", "export-adapter"):
        found[f"convert {job}"] = _options_of("convert", capsys, job)
    # sections that may be left out
    found["train"] |= _options_of("train", capsys, help_option="--lora.help")
    for section in ("hubert_1", "hubert_2", "vocoder_expressive"):
        found["train_speech"] |= _options_of("train_speech", capsys, help_option=f"--{section}.help")
    return found


def _command_lines() -> list[tuple[str, list[str]]]:
    """(page, words) of every command of this package in a shell block of a page, comments left out."""
    lines = []
    for page in PAGES:
        for _, language, code in _FENCE.findall(page.read_text(encoding="utf-8")):
            if language == "bash":
                for line in re.sub(r"\\\n", " ", code).split("\n"):
                    lines += [(_name(page), words) for words in _commands(line)]
    return lines


def _commands(line: str) -> list[list[str]]:
    """The words after `python -m spirit_jax.` or `spirit-jax`, of each command in a line; single quotes are ignored."""
    lexer = shlex.shlex(line.replace("'", " "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    found, words = [], None
    for word in lexer:
        if set(word) <= set("();<>|&"):
            words = None
        elif word.startswith("spirit_jax.") or word == "spirit-jax":
            words = [word.removeprefix("spirit_jax.")] if word != "spirit-jax" else []
            found.append(words)
        elif words is not None:
            words.append(word)
    return found


def test_command_lines_in_pages_use_options_that_exist(options):
    lines = _command_lines()
    assert len(lines) > 20
    for page, words in lines:
        command = " ".join(words[:2]) if words[0] == "convert" else words[0]
        assert command in options, f"{page}: no command {command!r}"
        for word in words[1:]:
            if word.startswith("--"):
                option = word[2:].split("=")[0].replace("-", "_")
                known = option in options[command] or option.startswith(_NAMED_BY_USERS)
                assert known, f"{page}: {command} has no option {word}"


def test_options_named_in_pages_and_configs_exist(options):
    """Options in single backticks with a dot or an underscore, and those in the comments of configuration files."""
    known = set().union(*options.values())
    named = [
        (page, option)
        for page in PAGES
        for code in re.findall(r"`([^`\n]+)`", _FENCE.sub("", page.read_text(encoding="utf-8")))
        for option in re.findall(r"--([a-z]+[._][\w.]*)", code)
    ]
    named += [
        (path, option)
        for path in sorted((ROOT / "configs").rglob("*.yaml"))
        for option in re.findall(r"--([a-z][\w.]*)", path.read_text(encoding="utf-8"))
    ]
    assert len(named) > 20
    for path, option in named:
        assert option in known or option.startswith(_NAMED_BY_USERS), f"{_name(path)}: no option --{option}"
