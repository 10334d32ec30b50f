"""Sphinx configuration: `python -m sphinx -W -b html docs docs/_build` builds the site."""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import spirit_jax  # noqa: E402 (the line above finds it)

project = "spirit_jax"
author = "the spirit_jax authors"
release = spirit_jax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "spirit_jax"
html_static_path = ["audio"]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

suppress_warnings = ["ref.python"]  # attributes named as a builtin is: `bytes`, `size`
default_role = "literal"  # docstrings write code in single backticks
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_mock_imports = ["apache_beam"]  # an extra of its own, which does not install beside `docs`
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "special-members": "__call__", "show-inheritance": False}


def list_modules(app, docname: str, source: list[str]) -> None:
    """Replace a line `MODULES name ...` of a page by the reference of these modules and of all modules within them."""
    lines = []
    for line in source[0].split("\n"):
        first, *names = line.split(" ")
        lines += [_reference(path) for name in names for path in _files(name)] if first == "MODULES" else [line]
    source[0] = "\n".join(lines)


def _files(name: str) -> list[pathlib.Path]:
    """The file of a module, or of all modules of a package; the packages' own files come first."""
    path = ROOT.joinpath(*name.split("."))
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def _reference(path: pathlib.Path) -> str:
    """A heading and a module's docstrings; a package's file, which only collects names, gives its own docstring."""
    package = path.name == "__init__.py"
    module = ".".join((path.parent if package else path.with_suffix("")).relative_to(ROOT).parts)
    lines = ["```{eval-rst}", f".. automodule:: {module}", *(["   :no-members:"] if package else []), "```", ""]
    return "\n".join([f"## {module.removeprefix('spirit_jax.')}", "", *lines])


def markdown_to_rst(app, what, name, obj, options, lines: list[str]) -> None:
    """Turn the Markdown of docstrings into reStructuredText.

    That is: tables, indented code, lists without a blank line before them, and letters that follow a backtick.
    """
    result: list[str] = []
    in_table = in_code = False
    for line in _one_attribute_each(lines):
        text, indent = line.strip(), line[: len(line) - len(line.lstrip())]
        last = next((line for line in reversed(result) if line.strip()), "")
        after_blank = not result or not result[-1].strip()
        in_code = bool(in_code and (not text or line.startswith("    ")))
        if in_code:
            result.append(line)
            continue
        if text.startswith("| ") and text.endswith(" |"):
            if not in_table:
                result += ["", f"{indent}.. list-table::", f"{indent}   :header-rows: 1", ""]
            cells = [cell.strip() for cell in text[1:-1].split(" | ")]
            result += [f"{indent}   {'* -' if i == 0 else '  -'} {cell}" for i, cell in enumerate(cells)]
            in_table = True
            continue
        if text.startswith("|---"):
            continue
        if indent == "    " and after_blank and last and not last.startswith((" ", "- ", "* ")):
            result += ["::", ""]
            in_code = True
        elif text.startswith("- ") and not after_blank and not _continues_item(result, indent):
            result.append("")
        in_table = False
        result.append(line if in_code else re.sub(r"(`[^`]+`)(\w)", r"\1\\ \2", line))
    lines[:] = result
    if what in ("attribute", "data", "property"):
        _variables[name] = result


_variables: dict[str, list[str]] = {}


def restore_variable(app, what, name, obj, options, lines: list[str]) -> None:
    """Undo what napoleon did to a variable's docstring: it takes the words before a colon for a type."""
    lines[:] = _variables.pop(name, lines)


def _one_attribute_each(lines: list[str]) -> list[str]:
    """Repeat the description of `a, b: description` for each of the names, in sections "Attributes:"."""
    result, names, block = [], [], []
    for line in [*lines, ""]:
        attributes = re.match(r"(\s+)(\w+(?:, \w+)+)(: .*)", line)
        if names and not line.startswith(names[0][0] + "    "):
            result += [text for indent, name in names for text in (f"{indent}{name}{block[0]}", *block[1:])]
            names, block = [], []
        if attributes and "Attributes:" in map(str.strip, lines) and not names:
            names, block = [(attributes[1], name) for name in attributes[2].split(", ")], [attributes[3]]
        elif names:
            block.append(line)
        else:
            result.append(line)
    return result[:-1]


def _continues_item(lines: list[str], indent: str) -> bool:
    """Whether the last lines belong to a list item at the same indentation."""
    for line in reversed(lines):
        if not line.strip():
            return False
        if line.startswith(f"{indent}- "):
            return True
    return False


def setup(app) -> None:
    """Connect the hooks of this file."""
    app.connect("source-read", list_modules)
    app.connect("autodoc-process-docstring", markdown_to_rst, priority=100)  # before napoleon
    app.connect("autodoc-process-docstring", restore_variable, priority=900)  # after napoleon
