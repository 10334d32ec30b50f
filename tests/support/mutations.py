"""Seeded damage for readers: the same hostile inputs at every run."""

import copy
import json
import math
import random
from collections.abc import Iterator
from typing import Any

HOSTILE: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    2**31,
    2**64,
    10**400,
    1.5,
    1e308,
    math.inf,
    math.nan,
    "",
    " ",
    "0",
    "../../x",
    "/etc/passwd",
    "a\0b",
    "x" * 5000,
    "\ud800",
    "\u202e\ufeff",
    [],
    {},
    [[]],
    {"": None},
    [1, 2, 3],
    {"path": {"path": {}}},
)
"""Values that a field may hold in place of its own."""


def json_mutations(value: Any, count: int, seed: int) -> Iterator[Any]:
    """Copies of a JSON value, each with one to three changes: a value replaced, removed, renamed or wrapped."""
    rng = random.Random(seed)
    for _ in range(count):
        changed = copy.deepcopy(value)
        for _ in range(rng.randint(1, 3)):
            places = [*_places(changed)]
            if not places:
                changed = copy.deepcopy(rng.choice(HOSTILE))
                continue
            holder, key = rng.choice(places)
            _change(holder, key, rng)
        yield changed


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every list or dict within a value, with each of its keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield value, key
        yield from _places(child)


def _change(holder: Any, key: Any, rng: random.Random) -> None:
    kind = rng.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(("", "x", "__class__", f"{key} ", "\ud800"))] = holder.pop(key)
    elif kind == 2:
        holder[key] = [holder[key]]
    elif kind == 3:
        holder[key] = {str(key): holder[key]}
    else:
        holder[key] = copy.deepcopy(rng.choice(HOSTILE))


def byte_mutations(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Copies of a file's content: flipped bits, cuts, insertions, repetitions, and runs of one byte."""
    rng = random.Random(seed)
    for _ in range(count):
        changed = bytearray(content)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(changed) + 1)
            kind = rng.randrange(5)
            if kind == 0 and at < len(changed):
                changed[at] ^= 1 << rng.randrange(8)
            elif kind == 1:
                del changed[at:]
            elif kind == 2:
                changed[at:at] = rng.randbytes(rng.randint(1, 9))
            elif kind == 3:
                changed[at : at + 8] = bytes([rng.choice((0, 0x7F, 0x80, 0xFF))]) * 8
            else:
                changed[at:at] = changed[max(0, at - 40) : at]
        yield bytes(changed)


def text_mutations(text: str, count: int, seed: int) -> Iterator[str]:
    """Copies of a text with changed lines: cut, repeated, indented, joined, or with a hostile value."""
    rng = random.Random(seed)
    scraps = ("[" * 30, "{" * 30, "- " * 40, "&a [*a]", "*a", "!!python/object:os.system x", "? [1]", "<<: *x", "\t")
    scraps += ("2024: 1", "no:", "~: ~", "'", '"', "|", "%YAML 9", "---", "...", "\u2028", "\x07", "é: ü", ":" * 9)
    for _ in range(count):
        lines = text.splitlines()
        for _ in range(rng.randint(1, 3)):
            at, kind = rng.randrange(len(lines)), rng.randrange(6)
            if kind == 0:
                lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]
            elif kind == 1:
                lines.insert(at, lines[at])
            elif kind == 2:
                lines[at] = " " * rng.randint(1, 3) + lines[at]
            elif kind == 3:
                lines[at] += " " + rng.choice(scraps)
            elif kind == 4:
                lines[at] = rng.choice(scraps)
            else:
                name = lines[at].split(":")[0]
                lines[at] = f"{name}: {json.dumps(rng.choice(HOSTILE))}"
        yield "\n".join(lines)
