"""What a compiled program does, read from its HLO text: how often each instruction runs, its FLOPs and bytes of memory.

`compiled.cost_analysis()` counts the body of a loop once, however often it runs, and sees nothing inside a kernel.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np

_BITS = {"pred": 8, "token": 0, "opaque": 0}  # of the types whose names do not say
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^{}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|called_computations|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array of a type."""

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""

    @property
    def size(self) -> float:
        """Bytes."""
        bits = _BITS[self.dtype] if self.dtype in _BITS else int(re.search(r"\d+", self.dtype)[0])
        return math.prod(self.dims) * bits / 8

    @property
    def in_memory(self) -> bool:
        """Whether it lies in the device's main memory, and not in a faster one that the compiler chose (`S(1)`)."""
        return "S(" not in self.layout


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO: `name = shapes opcode(operands), attributes`; a result that is a tuple has several shapes."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    """All that stands after the operands; of a constant, its value."""
    root: bool = False
    """Whether it is the result of its computation."""

    def called(self, role: str) -> str | None:
        """The computation that it runs in a role: calls (of a fusion), body, condition, to_apply."""
        return next((name.strip("{}%") for key, name in _CALLED.findall(self.attributes) if key == role), None)

    def attribute(self, name: str) -> str:
        """The value of an attribute, without its braces; empty where it has none."""
        found = re.search(rf"\b{name}=(?:\{{((?:[^{{}}]|\{{[^{{}}]*\}})*)\}}|([^\s,]+))", self.attributes)
        return "" if found is None else found[1] if found[1] is not None else found[2]


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: named computations (functions, loop bodies, the insides of fusions), one of which it begins with."""

    computations: Mapping[str, Computation]
    """By name; in a scheduled module the instructions stand in the order in which they run."""
    entry: str

    def runs(self) -> Iterator[tuple[Instruction, Computation, float]]:
        """Every instruction outside fusions, the computation that it is in, and how often it runs."""

        def walk(name, times):
            computation = self.computations[name]
            for instruction in computation.values():
                yield instruction, computation, times
                for inner, repeats in self.inner(instruction, computation):
                    yield from walk(inner, times * repeats)

        return walk(self.entry, 1.0)

    def inner(self, instruction: Instruction, computation: Computation) -> list[tuple[str, float]]:
        """The computations that an instruction which is no fusion runs, and how often each."""
        if instruction.opcode == "while":
            return [(instruction.called("body"), self.trips(instruction, computation))]
        if instruction.opcode == "conditional":  # the branches share one run
            names = re.findall(r"[\w.\-]+", instruction.attribute("branch_computations"))
            names = names or re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", instruction.attributes)
            return [(name, 1 / len(names)) for name in names]
        if instruction.opcode == "call":
            return [(instruction.called("to_apply"), 1.0)]
        return []

    def trips(self, loop: Instruction, computation: Computation) -> float:
        """How often a loop runs: what the compiler knows, or as its counter starts, advances and is compared; 1 if unknown."""
        known = re.search(r'"known_trip_count":\s*\{"n":"(\d+)"', loop.attributes)
        if known:
            return float(known[1])
        condition, body = (self.computations[loop.called(role)] for role in ("condition", "body"))
        start = computation[loop.operands[0]].operands  # of the tuple that the loop begins with

        def number(name: str, inside: Computation) -> int | None:
            """The integer that a name stands for, through copies and the loop's unchanging values."""
            instruction = _behind_copies(name, inside)
            if instruction is None:
                return None
            if instruction.opcode == "get-tuple-element" and inside is not computation:
                index = int(instruction.attribute("index"))
                return number(start[index], computation) if index < len(start) else None
            whole = instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.attributes)
            return int(instruction.attributes) if whole else None

        compare = _root(condition)
        counter = condition.get(compare.operands[0]) if compare.opcode == "compare" else None
        limit = number(compare.operands[1], condition) if counter is not None else None
        if limit is None or counter.opcode != "get-tuple-element":
            return 1.0
        index = int(counter.attribute("index"))
        advance = _behind_copies(_root(body).operands[index], body)
        steps = [1]
        if advance is not None and advance.opcode == "add":
            others = [name for name in advance.operands if body[name].attribute("index") != str(index)]
            steps = [number(name, body) or 1 for name in others] or [1]
        return max(float(-(-(limit - (number(start[index], computation) or 0)) // steps[0])), 1.0)

    def flops(
        self, instruction: Instruction, computation: Computation, kernel: Callable[..., float | None] | None = None
    ) -> float:
        """Of its matrix products and convolutions, those inside a fusion included; elementwise work is not counted.

        Args:
            kernel: FLOPs of a custom call (name, shapes of its operands), which XLA knows nothing of.
        """
        if instruction.opcode in ("fusion", "async-start"):
            inner = self.computations[instruction.called("calls")]
            return sum(self.flops(each, inner, kernel) for each in inner.values())
        operands = [shape for name in instruction.operands if name in computation for shape in computation[name].shapes]
        if instruction.opcode == "dot":
            contracted = [int(i) for i in instruction.attribute("lhs_contracting_dims").split(",") if i]
            return 2.0 * math.prod(instruction.shapes[0].dims) * math.prod(operands[0].dims[i] for i in contracted)
        if instruction.opcode == "convolution":
            return _convolution_flops(instruction, *operands[:2])
        if instruction.opcode == "custom-call" and kernel is not None:
            return kernel(instruction.name + instruction.attributes, [shape.dims for shape in operands]) or 0.0
        return 0.0

    def bytes(self, instruction: Instruction, computation: Computation) -> float:
        """Read from and written to main memory, as if nothing stayed in a faster one but what the compiler put there.

        Of an array that is only sliced, the slices count; of one that is updated in place, the update.
        """
        if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
            return 0.0
        read = [shape.size if shape.in_memory else 0.0 for shape in _operand_shapes(instruction, computation)]
        written = sum(shape.size for shape in instruction.shapes if shape.in_memory)
        if instruction.opcode in ("copy-start", "slice-start"):  # (result, operand, context), either order
            moved = (
                min(shape.size for shape in instruction.shapes if math.prod(shape.dims) > 1)
                if instruction.shapes
                else 0.0
            )
            return moved * sum(shape.in_memory for shape in instruction.shapes[:2])
        if instruction.opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * written
        if instruction.opcode in _UPDATES:
            return 2 * computation[instruction.operands[_UPDATES[instruction.opcode]]].shapes[0].size
        if instruction.opcode == "fusion":
            inner = self.computations[instruction.called("calls")]
            root = _root(inner)
            if root.opcode == "tuple":  # what is handed through is not written
                handed = [inner[name].opcode == "parameter" for name in root.operands]
                written = sum(
                    s.size for s, same in zip(instruction.shapes, handed, strict=True) if s.in_memory and not same
                )
            for index, name in _parameters(inner).items():
                touched = self._touched(name, inner)
                if touched is not None and index < len(read) and read[index]:
                    whole, read[index] = read[index], min(read[index], touched[0])
                    if touched[1]:
                        written -= min(written, whole) - touched[0]
        return sum(read) + max(written, 0.0)

    def _touched(self, name: str, computation: Computation) -> tuple[float, bool] | None:
        """Of a parameter that is only sliced or updated in place: (bytes touched, whether it is updated); None for others."""
        size, updated = 0.0, False
        for user in computation.values():
            if name not in user.operands:
                continue
            first = user.operands[0] == name and name not in user.operands[1:]
            if user.opcode == "tuple":
                continue
            if user.opcode in ("dynamic-slice", "slice", "gather") and first:
                part = (user.shapes[0].size, False)
            elif user.opcode in _UPDATES and first:
                part = (computation[user.operands[_UPDATES[user.opcode]]].shapes[0].size, True)
            elif user.opcode == "bitcast":
                part = self._touched(user.name, computation)
            elif user.opcode == "fusion":
                inner = self.computations[user.called("calls")]
                parts = [
                    self._touched(_parameters(inner)[i], inner)
                    for i, operand in enumerate(user.operands)
                    if operand == name
                ]
                part = None if None in parts else (sum(p[0] for p in parts), any(p[1] for p in parts))
            else:
                part = None
            if part is None:
                return None
            size, updated = size + part[0], updated or part[1]
        return size, updated


# these update their first operand in place; which operand is the update
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}

# they move nothing: names for what exists already, or counted by what they run
_FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "while",
    "conditional",
    "call",
    "after-all",
    "partition-id",
    "replica-id",
    "iota",
}


def _operand_shapes(instruction: Instruction, computation: Computation) -> list[Shape]:
    return [
        computation[name].shapes[0] for name in instruction.operands if name in computation and computation[name].shapes
    ]


def _root(computation: Computation) -> Instruction:
    return next(instruction for instruction in computation.values() if instruction.root)


def _behind_copies(name: str, computation: Computation) -> Instruction | None:
    """The instruction that a name stands for, copies looked through."""
    instruction = computation.get(name)
    while instruction is not None and instruction.opcode in ("copy", "bitcast", "convert"):
        instruction = computation.get(instruction.operands[0])
    return instruction


def _parameters(computation: Computation) -> dict[int, str]:
    """Names of a computation's parameters by their number."""
    return {int(i.operands[0]): name for name, i in computation.items() if i.opcode == "parameter"}


def _convolution_flops(instruction: Instruction, image: Shape, kernel: Shape) -> float:
    """2 for each pair of an input and a kernel element that meet; XLA:TPU writes matrix products as convolutions."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    image_labels, kernel_labels, out_labels = labels.groups()
    window = dict(re.findall(r"(\w+)=([\d_x\-]+)", instruction.attribute("window")))
    out = instruction.shapes[0]
    pairs = 1.0
    for axis, label in enumerate(sorted(label for label in out_labels if label.isdigit())):
        size, length = kernel.dims[kernel_labels.index(label)], image.dims[image_labels.index(label)]

        def at(name, default, axis=axis):
            return window[name].split("x")[axis] if name in window else default

        low = int(at("pad", "0_0").split("_")[0])
        place = (
            np.arange(out.dims[out_labels.index(label)])[:, None] * int(at("stride", "1"))
            - low
            + np.arange(size) * int(at("rhs_dilate", "1"))
        )
        spread = int(at("lhs_dilate", "1"))
        pairs *= np.sum((place >= 0) & (place <= (length - 1) * spread) & (place % spread == 0))
    features = kernel.dims[kernel_labels.index("i")]  # of one group already
    batches = out.dims[out_labels.index("b")] * out.dims[out_labels.index("f")]
    return 2.0 * batches * features * pairs / int(instruction.attribute("batch_group_count") or 1)


def parse(text: str) -> Module:
    """A module out of `compiled.as_text()`.

    Raises:
        ValueError: a text without an entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = None, None
    for line in re.sub(r'\n(?="|\}\})', " ", text).splitlines():  # kernels' metadata goes over several lines
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
    return Module(computations, entry)


def _instruction(line: str) -> Instruction:
    line = re.sub(r"/\*.*?\*/", "", line).strip()
    name, rest = line.removeprefix("ROOT ").split(" = ", 1)
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    shapes = tuple(
        Shape(dtype, tuple(int(size) for size in dims.split(",") if size), layout)
        for dtype, dims, layout in _ARRAY.findall(rest[:end])
    )
    opcode, after = rest[end:].strip().split("(", 1)
    close = _closing("(" + after, 0) - 2
    operands = after[:close]
    if opcode in ("parameter", "constant"):
        names, attributes = (operands.strip(),), operands.strip() if opcode == "constant" else after[close + 1 :]
    else:
        names, attributes = tuple(re.findall(r"%([\w.\-]+)", operands)), after[close + 1 :]
    return Instruction(name.lstrip("%"), shapes, opcode.strip(), names, attributes, line.startswith("ROOT "))


def _closing(text: str, start: int) -> int:
    """One past the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")
