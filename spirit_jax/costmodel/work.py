"""The work of one HLO instruction: FLOPs and bytes of main memory."""

import math
import re
from collections.abc import Callable, Sequence

import numpy as np

from spirit_jax.costmodel.collectives import KINDS
from spirit_jax.costmodel.hlo import Computation, Instruction, Module, Shape, parameters, root

KernelFlops = Callable[[str, Sequence[tuple[int, ...]]], float | None]
"""FLOPs of a custom call, which XLA knows nothing of: name and attributes, shapes of its operands -> FLOPs, or None."""

# Instructions that update their first operand in place, and the number of the operand that holds the update.
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}

# Instructions whose elements each need one element of the operands. In a fusion, only those that are used are computed.
_ELEMENTWISE = {"copy", "convert", "multiply", "add", "subtract", "and", "or", "shift-left", "shift-right-arithmetic"}

# Instructions without traffic: they only name existing arrays, or the instructions that they run are counted.
_NO_TRAFFIC = {
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


def count_flops(
    module: Module, instruction: Instruction, computation: Computation, kernel: KernelFlops | None = None
) -> float:
    """Count the FLOPs of matrix products and convolutions, also inside a fusion; elementwise work is not counted."""
    if instruction.opcode in ("fusion", "async-start"):
        inner = module.computations[instruction.called("calls")]
        return sum(count_flops(module, each, inner, kernel) for each in inner.values())
    operands = [shape for name in instruction.operands if name in computation for shape in computation[name].shapes]
    if instruction.opcode == "dot":
        contracted = [int(i) for i in instruction.attribute("lhs_contracting_dims").split(",") if i]
        return 2.0 * math.prod(instruction.shapes[0].dims) * math.prod(operands[0].dims[i] for i in contracted)
    if instruction.opcode == "convolution":
        return _convolution_flops(instruction, image=operands[0], kernel=operands[1])
    if instruction.opcode == "custom-call" and kernel is not None:
        return kernel(instruction.name + instruction.attributes, [shape.dims for shape in operands]) or 0.0
    return 0.0


def count_bytes(module: Module, instruction: Instruction, computation: Computation) -> float:
    """Count the bytes read from and written to main memory.

    Only arrays that the compiler placed in a faster memory count as staying there. If an array is only sliced, its
    slices count; if it is updated in place, the update counts. The arrays of a collective that a fusion carries on do
    not count: the links move them.
    """
    if instruction.opcode in _NO_TRAFFIC or instruction.opcode.endswith("-done"):
        return 0.0
    read = [shape.size if shape.in_memory else 0.0 for shape in _operand_shapes(instruction, computation)]
    written = sum(shape.size for shape in instruction.shapes if shape.in_memory)
    if instruction.opcode in ("copy-start", "slice-start"):  # (result, operand, context), either order
        if not instruction.shapes:
            return 0.0
        moved = min(shape.size for shape in instruction.shapes if math.prod(shape.dims) > 1)
        return moved * sum(shape.in_memory for shape in instruction.shapes[:2])
    if instruction.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * written
    if instruction.opcode in _UPDATES:
        return 2 * _update_size(instruction, computation)
    if instruction.opcode == "fusion":
        inner = module.computations[instruction.called("calls")]
        result = root(inner)
        if result.opcode == "tuple":  # Parameters that the fusion passes on are not written.
            passed_on = [inner[name].opcode in ("parameter", *KINDS) for name in result.operands]
            written = sum(
                shape.size
                for shape, passed in zip(instruction.shapes, passed_on, strict=True)
                if shape.in_memory and not passed
            )
        for index, name in parameters(inner).items():
            touched = _touched(module, name, inner)
            if touched is not None and index < len(read) and read[index]:
                size, updated = touched
                whole, read[index] = read[index], min(read[index], size)
                if updated:
                    written -= min(written, whole) - size
    return sum(read) + max(written, 0.0)


def _touched(module: Module, name: str, computation: Computation) -> tuple[float, bool] | None:
    """Bytes touched of an array that is only sliced or updated in place, and whether it is updated; None for others.

    A copy inside a fusion gives the array another layout while it is read, and only what is read of it is copied.
    """
    size, updated = 0.0, False
    result = root(computation)
    for user in computation.values():
        if name not in user.operands or user.opcode in ("tuple", *KINDS):
            continue
        is_first = user.operands[0] == name and name not in user.operands[1:]
        if user.opcode in ("dynamic-slice", "slice", "gather") and is_first:
            parts = [(user.shapes[0].size, False)]
        elif user.opcode in _UPDATES and is_first:
            parts = [(_update_size(user, computation), True)]
        elif user.opcode == "bitcast":
            parts = [_touched(module, user.name, computation)]
        elif _is_elementwise(module, user):
            is_result = user is result or (result.opcode == "tuple" and user.name in result.operands)
            parts = [None if is_result else _touched_elements(module, name, user, computation)]
        elif user.opcode == "fusion":
            inner = module.computations[user.called("calls")]
            numbers = [i for i, operand in enumerate(user.operands) if operand == name]
            parts = [_touched(module, parameters(inner)[i], inner) for i in numbers]
        else:
            return None
        for part in parts:
            if part is None:
                return None
            size, updated = size + part[0], updated or part[1]
    return size, updated


def _touched_elements(
    module: Module, name: str, user: Instruction, computation: Computation
) -> tuple[float, bool] | None:
    """`_touched` of an array by what is touched of a result of its elements, such as weights that become floats."""
    array, found = computation[name].shapes[0], _touched(module, user.name, computation)
    if found is None or array.dims != user.shapes[0].dims or (found[1] and array.dtype != user.shapes[0].dtype):
        return None
    return found[0] * array.size / user.shapes[0].size, found[1]


def _is_elementwise(module: Module, instruction: Instruction) -> bool:
    """Whether each element of an instruction comes from one of its operand, also in a fusion of nothing else."""
    if instruction.opcode != "fusion":
        return instruction.opcode in _ELEMENTWISE
    inner = module.computations[instruction.called("calls")]
    return len(inner) == 2 and root(inner).opcode in _ELEMENTWISE


def _update_size(instruction: Instruction, computation: Computation) -> float:
    return computation[instruction.operands[_UPDATES[instruction.opcode]]].shapes[0].size


def _operand_shapes(instruction: Instruction, computation: Computation) -> list[Shape]:
    return [
        computation[name].shapes[0] for name in instruction.operands if name in computation and computation[name].shapes
    ]


def _convolution_flops(instruction: Instruction, *, image: Shape, kernel: Shape) -> float:
    """Two FLOPs for each pair of an input and a kernel element that meet; XLA:TPU writes matrix products this way."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        raise ValueError(f"convolution {instruction.name}: no dim_labels")
    image_labels, kernel_labels, out_labels = labels.groups()
    window = dict(re.findall(r"(\w+)=([\d_x\-]+)", instruction.attribute("window")))
    out = instruction.shapes[0]
    pairs = 1.0
    for axis, label in enumerate(sorted(label for label in out_labels if label.isdigit())):
        size, length = kernel.dims[kernel_labels.index(label)], image.dims[image_labels.index(label)]

        def along(name: str, default: str, axis: int = axis) -> str:
            return window[name].split("x")[axis] if name in window else default

        low = int(along("pad", "0_0").split("_")[0])
        place = (
            np.arange(out.dims[out_labels.index(label)])[:, None] * int(along("stride", "1"))
            - low
            + np.arange(size) * int(along("rhs_dilate", "1"))
        )
        spread = int(along("lhs_dilate", "1"))
        pairs *= np.sum((place >= 0) & (place <= (length - 1) * spread) & (place % spread == 0))
    features = kernel.dims[kernel_labels.index("i")]  # of one group
    batches = out.dims[out_labels.index("b")] * out.dims[out_labels.index("f")]
    return 2.0 * batches * features * pairs / int(instruction.attribute("batch_group_count") or 1)
