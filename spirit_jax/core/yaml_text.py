"""YAML as people write it in config files: checked, bounded, and with names that stay as they are written.

YAML takes a plain `2024`, `no` or `2024-01-31` for a number, a truth value or a date. As the key of an entry, each is a
name, so keys are quoted before anything else reads the text.
"""

import os
from typing import Any

import yaml

from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import read_text

MAX_DEPTH = 50
"""Lists and mappings inside each other."""
MAX_NODES = 100_000
"""Values of a text, each counted as often as its aliases repeat it."""

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STRING = "tag:yaml.org,2002:str"
_MERGE = "tag:yaml.org,2002:merge"


def read_yaml_text(path: str | os.PathLike, error: type[SpiritError]) -> str:
    """The text of a YAML file that holds a mapping, with every key as a string.

    Raises:
        error: the file cannot be read, is not UTF-8 or YAML, is too deep or too large, repeats a key or holds something
            else than a mapping; the message names the file and the line.
    """
    return with_text_keys(read_text(path, error), path, error)


def with_text_keys(text: str, where: Any, error: type[SpiritError]) -> str:
    """A YAML mapping with every key as a string; "" for an empty text.

    Raises:
        error: as `read_yaml_text`; the message begins with `where`.
    """
    _check_depth(text, where, error)
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as problem:
        raise error(f"{where}{_line(problem)}: not YAML ({_reason(problem)})") from problem
    if node is None:
        return ""
    if not isinstance(node, yaml.MappingNode):
        found = "a list" if isinstance(node, yaml.SequenceNode) else repr(node.value[:40])
        raise error(f"{where}: expected entries `name: value`, found {found}")
    sizes: dict[int, int] = {}
    _quote_keys(node, where, error, sizes)
    if sizes[id(node)] > MAX_NODES:
        raise error(f"{where}: holds more than {MAX_NODES} values, aliases included")
    return yaml.serialize(node, allow_unicode=True, width=1 << 20)


def _check_depth(text: str, where: Any, error: type[SpiritError]) -> None:
    """Refuse nesting that later readers, which recurse, do not survive."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    line = event.start_mark.line + 1
                    raise error(f"{where}, line {line}: values are nested more than {MAX_DEPTH} deep")
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
    except yaml.YAMLError as problem:
        raise error(f"{where}{_line(problem)}: not YAML ({_reason(problem)})") from problem


def _quote_keys(node: yaml.Node, where: Any, error: type[SpiritError], sizes: dict[int, int]) -> None:
    """Make strings of all keys in a tree, and count its values; an aliased part is visited once."""
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise error(f"{where}, line {node.start_mark.line + 1}: an alias to a part that holds it")
        return
    sizes[id(node)] = 0  # not known yet
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise error(f"{where}, line {line}: a list or mapping is no name of an entry")
            if key.tag != _MERGE:
                key.tag = _STRING
                if key.value in seen:
                    raise error(f"{where}, line {line}: {key.value!r} is there twice")
                seen.add(key.value)
            children.append(value)
    for child in children:
        _quote_keys(child, where, error, sizes)
    sizes[id(node)] = 1 + sum(sizes[id(child)] for child in children)


def _line(problem: yaml.YAMLError) -> str:
    mark = getattr(problem, "problem_mark", None)
    return "" if mark is None else f", line {mark.line + 1}"


def _reason(problem: yaml.YAMLError) -> str:
    return str(getattr(problem, "problem", None) or problem).splitlines()[0][:200]
