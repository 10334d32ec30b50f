"""Typed configs: frozen dataclasses read from YAML files and dotted command line overrides.

Each room owns the dataclasses that configure it, with a docstring under every field; a command composes them. What is
read is checked in full before anything runs: an unknown key, a wrong type or a refused value is one line and exit code 2.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import jsonargparse
import yaml

from spirit_jax.core.errors import SpiritError

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)

Config = TypeVar("Config")

BAD_ARGUMENT, FAILED_JOB = 2, 1
"""Exit codes of every command."""


class ConfigError(SpiritError):
    """A config that cannot be used; the message is one line and names the key."""


def parser(cls: type[Config], prog: str, description: str) -> jsonargparse.ArgumentParser:
    """A parser for a frozen dataclass: `--config FILE`, `--print_config`, and a dotted option for every field.

    The help text comes from the docstrings of the class and its fields.
    """
    built = jsonargparse.ArgumentParser(prog=prog, description=description, exit_on_error=False)
    built.add_argument(
        "--config", action="config", help="YAML file with any of the keys below; later options override it"
    )
    built.add_class_arguments(cls)
    return built


def load(cls: type[Config], path: str | os.PathLike, overrides: Sequence[str] = ()) -> Config:
    """Read a config file, with overrides as on the command line (`["--steps", "10"]`).

    Raises:
        ConfigError: in one line, what is wrong with it.
    """
    built = parser(cls, "config", "")
    return _instantiate(cls, built, lambda: built.parse_args(["--config", str(path), *overrides]))


def from_dict(cls: type[Config], values: dict[str, Any]) -> Config:
    """A config out of plain values, what `to_dict` gives.

    Raises:
        ConfigError: in one line, what is wrong with them.
    """
    built = parser(cls, "config", "")
    return _instantiate(cls, built, lambda: built.parse_object(values))


def parse(cls: type[Config], arguments: Sequence[str] | None, prog: str, description: str) -> Config:
    """What a command calls: the config of its command line, or one clear line on standard error and exit code 2."""
    built = parser(cls, prog, description)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments:
        built.print_help()
        sys.exit(BAD_ARGUMENT)
    try:
        return _instantiate(cls, built, lambda: built.parse_args(arguments))
    except ConfigError as error:
        fail(prog, error, BAD_ARGUMENT)


def fail(prog: str, error: Exception | str, code: int) -> NoReturn:
    """End a command with one line on standard error."""
    print(f"{prog}: error: {error}", file=sys.stderr)
    sys.exit(code)


def _instantiate(cls: type[Config], built: jsonargparse.ArgumentParser, read: Callable[[], Any]) -> Config:
    try:
        values = built.instantiate(read())
        return cls(**{field.name: getattr(values, field.name) for field in dataclasses.fields(cls)})
    except (jsonargparse.ArgumentError, ValueError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(" ".join(str(error).split())) from error


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain values, as `config.json` holds it."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def to_yaml(config: Any) -> str:
    """A config as a file that `--config` reads back to an equal one."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)
