"""Reads a compiled program from its HLO text: its computations, their instructions and how often each instruction runs.

`compiled.cost_analysis()` counts the body of a loop once, however often it runs, and nothing inside a kernel.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

_BITS = {"pred": 8, "token": 0, "opaque": 0}  # Bits of the types whose names hold no number.
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^{}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|called_computations|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """The type of one array."""

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""

    @property
    def size(self) -> float:
        """Bytes of the array."""
        digits = re.search(r"\d+", self.dtype)
        bits = _BITS[self.dtype] if digits is None else int(digits[0])
        return math.prod(self.dims) * bits / 8

    @property
    def in_memory(self) -> bool:
        """Whether it lies in the device's main memory, and not in a faster one that the compiler chose (`S(1)`)."""
        return "S(" not in self.layout


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO: `name = shapes opcode(operands), attributes`."""

    name: str
    shapes: tuple[Shape, ...]
    """Types of the result; several for a tuple."""
    opcode: str
    operands: tuple[str, ...]
    """Names of instructions; for a parameter, its number."""
    attributes: str
    """The text after the operands; for a constant, its value."""
    is_root: bool = False
    """Whether it is the result of its computation."""

    def called(self, *roles: str) -> str:
        """Return the computation that it runs in one of these roles: calls (for a fusion), body, condition, to_apply.

        Raises:
            ValueError: it runs none in these roles.
        """
        for role, name in _CALLED.findall(self.attributes):
            if role in roles:
                return name.strip("{}%")
        raise ValueError(f"{self.opcode} {self.name}: runs no computation as {' or '.join(roles)}")

    def attribute(self, name: str) -> str:
        """The value of an attribute without its braces; empty if it has none."""
        found = re.search(rf"\b{name}=(?:\{{((?:[^{{}}]|\{{[^{{}}]*\}})*)\}}|([^\s,]+))", self.attributes)
        return "" if found is None else found[1] if found[1] is not None else found[2]


Computation = dict[str, Instruction]
"""The instructions of a function, loop body or fusion by name."""


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: named computations, one of which is the entry."""

    computations: Mapping[str, Computation]
    """By name; in a scheduled module the instructions are in the order in which they run."""
    entry: str
    """Name of the computation that the program starts with."""

    def runs(self) -> Iterator[tuple[Instruction, Computation, float]]:
        """Yield every instruction outside fusions, its computation and how often it runs."""

        def visit(name: str, times: float) -> Iterator[tuple[Instruction, Computation, float]]:
            computation = self.computations[name]
            for instruction in computation.values():
                yield instruction, computation, times
                for inner, repeats in self.inner(instruction, computation):
                    yield from visit(inner, times * repeats)

        return visit(self.entry, 1.0)

    def inner(self, instruction: Instruction, computation: Computation) -> list[tuple[str, float]]:
        """Return the computations that an instruction other than a fusion runs, and how often it runs each of them."""
        if instruction.opcode == "while":
            return [(instruction.called("body"), self.trips(instruction, computation))]
        if instruction.opcode == "conditional":  # One branch runs; each counts by its share.
            names = re.findall(r"[\w.\-]+", instruction.attribute("branch_computations"))
            names = names or re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", instruction.attributes)
            return [(name, 1 / len(names)) for name in names]
        if instruction.opcode == "call":
            return [(instruction.called("to_apply"), 1.0)]
        return []

    def trips(self, loop: Instruction, computation: Computation) -> float:
        """Return how often a loop runs: as the compiler states, or by its counter's start, step and limit; else 1."""
        known = re.search(r'"known_trip_count":\s*\{"n":"(\d+)"', loop.attributes)
        if known:
            return float(known[1])
        condition, body = self.computations[loop.called("condition")], self.computations[loop.called("body")]
        start = computation[loop.operands[0]].operands  # the tuple that the loop starts with

        def number(name: str, inside: Computation) -> int | None:
            """The value of an integer constant, through copies and the loop's unchanging values; None for others."""
            instruction = behind_copies(name, inside)
            if instruction is None:
                return None
            if instruction.opcode == "get-tuple-element" and inside is not computation:
                index = int(instruction.attribute("index"))
                return number(start[index], computation) if index < len(start) else None
            is_integer = instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.attributes)
            return int(instruction.attributes) if is_integer else None

        compare = root(condition)
        if compare.opcode != "compare":
            return 1.0
        counter, limit = condition.get(compare.operands[0]), number(compare.operands[1], condition)
        if counter is None or counter.opcode != "get-tuple-element" or limit is None:
            return 1.0
        index = int(counter.attribute("index"))
        advance = behind_copies(root(body).operands[index], body)
        steps = [1]
        if advance is not None and advance.opcode == "add":
            others = [name for name in advance.operands if body[name].attribute("index") != str(index)]
            steps = [number(name, body) or 1 for name in others] or [1]
        return max(float(-(-(limit - (number(start[index], computation) or 0)) // steps[0])), 1.0)


def root(computation: Computation) -> Instruction:
    """The instruction whose result is the computation's."""
    return next(instruction for instruction in computation.values() if instruction.is_root)


def behind_copies(name: str, computation: Computation) -> Instruction | None:
    """The instruction of this name, or the one that it copies; None if the name is an operand from elsewhere."""
    instruction = computation.get(name)
    while instruction is not None and instruction.opcode in ("copy", "bitcast", "convert"):
        instruction = computation.get(instruction.operands[0])
    return instruction


def parameters(computation: Computation) -> dict[int, str]:
    """Names of a computation's parameters by their number."""
    return {int(i.operands[0]): name for name, i in computation.items() if i.opcode == "parameter"}


def parse(text: str) -> Module:
    """Parse the text of `compiled.as_text()`.

    Raises:
        ValueError: the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry: str | None = None
    current: Computation | None = None
    for line in re.sub(r'\n(?="|\}\})', " ", text).splitlines():  # The metadata of kernels span several lines.
        header = _HEADER.match(line)
        if header and " = " not in line.split("(")[0]:
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and " = " in line:
            instruction = _instruction(line)
            current[instruction.name] = instruction
    if entry is None:
        raise ValueError("no ENTRY computation: not the text of an HLO module")
    return Module(computations=computations, entry=entry)


def _instruction(line: str) -> Instruction:
    line = re.sub(r"/\*.*?\*/", "", line).strip()
    name, rest = line.removeprefix("ROOT ").split(" = ", 1)
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    shapes = tuple(
        Shape(dtype=dtype, dims=tuple(int(size) for size in dims.split(",") if size), layout=layout)
        for dtype, dims, layout in _ARRAY.findall(rest[:end])
    )
    opcode, after = rest[end:].strip().split("(", 1)
    close = _closing("(" + after) - 2
    inside, attributes = after[:close], after[close + 1 :]
    if opcode in ("parameter", "constant"):
        operands = (inside.strip(),)
        attributes = inside.strip() if opcode == "constant" else attributes
    else:
        operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(
        name=name.lstrip("%"),
        shapes=shapes,
        opcode=opcode.strip(),
        operands=operands,
        attributes=attributes,
        is_root=line.startswith("ROOT "),
    )


def _closing(text: str) -> int:
    """One past the parenthesis that closes the one at the start of a text."""
    depth = 0
    for place, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return place + 1
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")
