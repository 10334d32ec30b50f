"""Typed configs: frozen dataclasses read from YAML files and dotted command-line options.

Each folder owns the dataclasses that configure it, with a docstring under every field; a command composes them.
Everything that is read is checked before anything runs: an unknown key, a wrong type or a refused value is one line and
exit code 2.

Every command accepts the same forms of an option: dashes or underscores in its name, `--name value` or `--name=value`,
no value for a yes-or-no field (`--overwrite`), and one string for each use of a list of strings
(`--stop a --stop b`).
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jsonargparse
import yaml

from spirit_jax import __version__
from spirit_jax.core.compilation_cache import OFF, use_compilation_cache
from spirit_jax.core.errors import SpiritError, fail, printable
from spirit_jax.core.files import is_encodable
from spirit_jax.core.yaml_text import read_yaml_text, with_text_keys

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)

if typing.TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")

_ABOUT_OPTIONS = (
    "Option names may be written with dashes or underscores. A yes-or-no option needs no value. An option of type "
    "list[str] may be repeated; it replaces the list of the config file."
)
_OWN_OPTIONS = ("compilation_cache", "config", "help", "print_config", "version")
_PACKAGE = pathlib.Path(__file__).parent
_BUNDLED = (_PACKAGE / "configs", _PACKAGE.parent / "configs")  # in an installed package, in a checkout
_LISTS_OF_STRINGS = (list[str], tuple[str, ...])
_WORDS_OF_BOOL = ("true", "false", "yes", "no", "null")


class ConfigError(SpiritError):
    """A config that cannot be used; the message is one line and names the key."""


def parse(cls: type[Config], arguments: Sequence[str] | None, prog: str, description: str | None) -> Config:
    """Read the command line of a command. A config that cannot be used ends the process in one line and exit code 2.

    Args:
        cls: the command's config, a frozen dataclass.
        arguments: the words after the command's name; None takes those of the process.
        prog: the command's name, printed before messages.
        description: the docstring of the command's module; its indented paragraphs are shown as examples.
    """
    built = _parser(cls, prog, description or "")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not arguments:
            built.print_help(sys.stderr)
            raise ConfigError("no arguments; the help above lists the options")
        return _instantiate(cls, built, lambda: _with_cache(built.parse_args(_canonical(cls, arguments))))
    except ConfigError as error:
        fail(prog, error, error.exit_code)


def _with_cache(values: Any) -> Any:
    """Turn on the cache of compiled programs that the command line asks for, before anything is compiled."""
    use_compilation_cache(values.compilation_cache)
    return values


def named_options(cls: type, arguments: Sequence[str] | None) -> set[str]:
    """Dotted names of the fields that a command line names, itself or in its config files.

    Args:
        cls: the command's config, a frozen dataclass.
        arguments: as for `parse`, which accepted them.
    """
    names: set[str] = set()
    for word in _canonical(cls, list(sys.argv[1:] if arguments is None else arguments)):
        name, _, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name not in _OWN_OPTIONS:
            names.add(name)
        if name == "config" or ("{" in value and _holds_names(_field(cls, name)[1])):
            names |= _names_in(yaml.safe_load(value), "" if name == "config" else f"{name}.")
    return names


def _names_in(value: Any, prefix: str) -> set[str]:
    """Dotted names of the entries of a mapping and of the mappings in it."""
    if not isinstance(value, dict):
        return set()
    return {f"{prefix}{key}" for key in value}.union(
        *(_names_in(child, f"{prefix}{key}.") for key, child in value.items())
    )


def load(cls: type[Config], path: str | os.PathLike, overrides: Sequence[str] = ()) -> Config:
    """Read a config file, with overrides as on the command line (`["--steps", "10"]`).

    Raises:
        ConfigError: the file or an override cannot be used.
    """
    built = _parser(cls, "config", "")
    arguments = _canonical(cls, ["--config", str(path), *overrides])
    return _instantiate(cls, built, lambda: built.parse_args(arguments))


def from_dict(cls: type[Config], values: dict[str, Any]) -> Config:
    """Build a config from plain values, as `to_dict` gives them.

    Raises:
        ConfigError: a key or value cannot be used.
    """
    built = _parser(cls, "config", "")
    return _instantiate(cls, built, lambda: built.parse_object(values))


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain values, as `config.json` holds it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_yaml(config: Any) -> str:
    """A config as the text of a file that `--config` reads back to an equal one."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def find_config(path: str) -> str:
    """The config file that `--config` names: `path`, or the bundled config where no such file exists.

    A wheel holds the files of configs/, so that `--config configs/tiny.yaml` and `--config tiny.yaml` work without a
    checkout.
    """
    asked = pathlib.Path(path)
    if not asked.exists() and not asked.is_absolute() and ".." not in asked.parts:
        name = asked.relative_to("configs") if asked.parts[:1] == ("configs",) else asked
        for directory in _BUNDLED:
            if (directory / name).is_file():
                return str(directory / name)
    return path


def _parser(cls: type, prog: str, description: str) -> jsonargparse.ArgumentParser:
    """A parser with `--config`, `--print_config`, `--version` and a dotted option for every field of a dataclass.

    The help text comes from the docstrings of the class and its fields.
    """
    about, examples = _split_examples(description)
    required = (
        f"--{field.name} {field.name.upper()} "
        for field in dataclasses.fields(cls)
        if field.default is field.default_factory is dataclasses.MISSING
    )
    built = jsonargparse.ArgumentParser(
        prog=prog,
        usage=f"%(prog)s [--config FILE] {''.join(required)}[options]",
        description=about,
        epilog=f"{examples}\n\n{_ABOUT_OPTIONS}" if examples else _ABOUT_OPTIONS,
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=_HelpFormatter,
    )
    built.add_argument(
        "--version", action="version", version=f"spirit_jax {__version__}", help="Show the version and exit."
    )
    built.add_argument(
        "--config",
        action="config",
        help="YAML file with any of the keys below; later options override it, as does a later file. A name such as "
        "tiny.yaml that is no file here means the config of that name which comes with the package.",
    )
    built.add_argument(
        "--compilation_cache",
        metavar=f"{OFF}|DIR",
        help="Directory of compiled programs, which later runs load instead of compiling them again; none: keep no "
        "programs. Default: JAX_COMPILATION_CACHE_DIR, else spirit_jax/compiled in the user's cache directory.",
    )
    built.add_class_arguments(cls)
    return built


def _split_examples(docstring: str) -> tuple[str, str]:
    """The prose of a module's docstring, and its indented paragraphs under the heading "Examples:"."""
    paragraphs = textwrap.dedent(docstring).strip().split("\n\n")
    prose = [text for text in paragraphs if not text.startswith("    ")]
    examples = [textwrap.indent(textwrap.dedent(text), "  ") for text in paragraphs if text.startswith("    ")]
    return "\n\n".join(prose), "\n\n".join(["Examples:", *examples]) if examples else ""


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Fills each paragraph of a text by itself, and keeps examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            paragraph
            if paragraph.startswith("  ")
            else super(_HelpFormatter, self)._fill_text(paragraph, width, indent)
            for paragraph in text.split("\n\n")
        )

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """Show options as `_canonical` takes them: yes-or-no ones without a value, lists of strings with one string."""
        kind = _without_none(getattr(action, "_typehint", None))
        if kind is bool:
            return action.option_strings[0]
        if kind in _LISTS_OF_STRINGS:
            return f"{action.option_strings[0]} {action.dest.split('.')[-1].upper()}"
        return super()._format_action_invocation(action)


def _instantiate(cls: type[Config], built: jsonargparse.ArgumentParser, read: Callable[[], Any]) -> Config:
    """The config that a parser reads."""
    try:
        values = built.instantiate(read())
        return cls(**{field.name: getattr(values, field.name) for field in dataclasses.fields(cls)})
    except (argparse.ArgumentError, ValueError, TypeError, OverflowError, yaml.YAMLError) as error:
        raise ConfigError(" ".join(str(error).split())) from error


def _canonical(cls: type, arguments: Sequence[str]) -> list[str]:
    """Rewrite a command line to the one form that the parser takes for every option."""
    lists: dict[str, list[str]] = {}
    words: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            words.append(word)
            continue
        given, separator, value = word[2:].partition("=")
        name, kind = _field(cls, given)
        if kind is None:  # the parser's own option, or one that it will refuse as the user wrote it
            own = given.replace("-", "_")
            name = own if own in _OWN_OPTIONS else given
        follows = bool(rest) and not rest[0].startswith("--")
        if name == "config" and (separator or follows):
            # The parser takes the text in place of a path. Read here, it is UTF-8 whatever the locale.
            text = read_yaml_text(find_config(value if separator else rest.pop(0)), ConfigError)
            words += [f"--config={text}"] if text else []
        elif kind is bool and not separator:
            word_of_bool = follows and rest[0].lower() in _WORDS_OF_BOOL
            words.append(f"--{name}={rest.pop(0) if word_of_bool else 'true'}")
        elif kind in _LISTS_OF_STRINGS and (separator or follows):
            lists.setdefault(name, []).append(value if separator else rest.pop(0))
            if not is_encodable(lists[name][-1]):
                raise ConfigError(f"--{name} {printable(lists[name][-1])}: is not UTF-8 text")
            option = f"--{name}="
            words = [*(other for other in words if not other.startswith(option)), option + json.dumps(lists[name])]
        elif _holds_names(kind) and (separator or follows):
            text = value if separator else rest.pop(0)
            words.append(f"--{name}={with_text_keys(text, f'--{given}', ConfigError) if '{' in text else text}")
        else:
            words.append(f"--{name}{separator}{value}")
    return words


def _holds_names(kind: Any) -> bool:
    """Whether a field has entries by name: a section of the config, or a dict."""
    return dataclasses.is_dataclass(kind) or typing.get_origin(kind) is dict


def _field(cls: type, option: str) -> tuple[str, Any]:
    """The dotted path of the field that an option names, and its type without None.

    The type of an option that names no field is None.
    """
    kind: Any = cls
    path: list[str] = []
    for part in option.split("."):
        if dataclasses.is_dataclass(kind):
            part = part.replace("-", "_")
            kind = _without_none(_hints(kind).get(part))
        elif typing.get_origin(kind) is dict:  # its keys are the user's, and may have dashes
            kind = _without_none(typing.get_args(kind)[1])
        else:
            kind = None
        path.append(part)
    return ".".join(path), kind


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _without_none(kind: Any) -> Any:
    """`X` for `X | None`, any other type as it is."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        others = [each for each in typing.get_args(kind) if each is not types.NoneType]
        return others[0] if len(others) == 1 else kind
    return kind
