"""Finds the collectives in HLO: kind, size, members, and how each runs beside the computation."""

import dataclasses
import math
import re
from typing import Literal

import numpy as np

from spirit_jax.costmodel.hlo import Computation, Instruction, Module, Shape

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

# Parts of an operation's path that JAX adds around the model's own.
_WRAPPERS = {"while", "body", "closed_call", "jit(train_step)", "checkpoint", "rematted_computation", "shard_map"}


@dataclasses.dataclass(frozen=True)
class FoundCollective:
    """A collective that an instruction is, starts or carries on."""

    kind: str
    size: float
    """Bytes of the whole array: gathered, or before it is reduced or scattered."""
    source: Instruction
    """The instruction that names the members."""
    in_fusion: bool
    """Whether a fusion computes beside it."""

    @property
    def crosses_slices(self) -> bool:
        """Whether it goes over the data center network, which joins slices."""
        return self.source.opcode == "send"

    @property
    def route(self) -> str:
        """Resource that it occupies: network, links, or one direction of them (opposite permutations run at once)."""
        return self.source.attribute("source_target_pairs") or ("network" if self.crosses_slices else "links")


def find_collectives(instruction: Instruction, computation: Computation, module: Module) -> list[FoundCollective]:
    """Return the collective that an instruction is or starts, or those inside the computation that it calls."""
    if instruction.opcode == "send" and "megascale" in instruction.attributes:  # A shard of each chip, between slices.
        kind = "all-reduce" if "_xla_megascale_reduce_operation" in instruction.attributes else "all-gather"
        return [FoundCollective(kind=kind, size=instruction.shapes[0].size, source=instruction, in_fusion=False)]
    sources, place, in_fusion, is_scatter = [instruction], computation, False, False
    if instruction.opcode in ("fusion", "async-start", "call-start"):  # The last runs on a SparseCore.
        called = instruction.called("calls", "to_apply")
        place = module.computations[called]
        sources = [inner for inner in place.values() if inner.opcode in KINDS]
        is_scatter = "all-reduce-scatter" in called  # XLA:TPU writes a reduce-scatter this way.
        in_fusion = instruction.opcode == "fusion" and not is_scatter
    found = []
    for source in sources:
        kind = source.opcode.removesuffix("-start")
        if kind in KINDS:
            size = sum(shape.size for shape in _whole_arrays(source, kind, place))
            kind = "reduce-scatter" if is_scatter else kind
            found.append(FoundCollective(kind=kind, size=size, source=source, in_fusion=in_fusion))
    return found


def _whole_arrays(source: Instruction, kind: str, computation: Computation) -> tuple[Shape, ...]:
    """The arrays that a collective works on: the results of a gather, the operands of the others."""
    if kind != "all-gather":
        return tuple(shape for name in source.operands if name in computation for shape in computation[name].shapes)
    if source.opcode.endswith("-start"):  # Its result is (operands, results).
        return source.shapes[len(source.shapes) // 2 :]
    return source.shapes


def rendezvous(instruction: Instruction) -> str:
    """The name that the start and the end of an asynchronous operation share; between slices, of both sides."""
    found = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', instruction.attributes)
    return found[1] if found else instruction.name


def fusion_edge(instruction: Instruction, module: Module) -> Literal["start", "done"] | None:
    """Whether a fusion only starts or ends a collective that the fusions in between carry on."""
    if instruction.opcode != "fusion":
        return None
    inner = module.computations[instruction.called("calls")].values()
    targets = " ".join(i.attributes for i in inner if i.opcode == "custom-call")
    found = re.search(r'custom_call_target="AsyncCollective(Start|Done)"', targets)
    if found is None:
        return None
    return "start" if found[1] == "Start" else "done"


def members(instruction: Instruction, devices: int) -> list[int]:
    """Return the numbers of the devices in a collective's first group; all `devices` if it names no groups."""
    pairs = instruction.attribute("source_target_pairs")
    if pairs:
        return [int(number) for number in re.findall(r"\d+", pairs)[:2]]
    text = re.search(r"replica_groups=(.*)", instruction.attributes)
    groups = text[1] if text else ""
    mesh = re.match(r"mesh\[([^\]]*)\]\s*\{([^}]*)\}", groups)
    if mesh:  # mesh['a'=4,'b'=2] {'a'}: over the axis a, for each place along b
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        over = re.findall(r"'(\w+)'", mesh[2])
        numbers = np.arange(math.prod(axes.values())).reshape(list(axes.values()))
        return numbers[tuple(slice(None) if name in over else 0 for name in axes)].ravel().tolist()
    iota = re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", groups)
    if iota:  # [groups,members]<=[shape]T(permutation)
        shape, dims = ([int(n) for n in part.split(",")] for part in iota.groups()[:2])
        numbers = np.arange(math.prod(dims)).reshape(dims)
        if iota[3]:
            numbers = numbers.transpose([int(n) for n in iota[3].split(",")])
        return numbers.reshape(shape)[0].tolist()
    explicit = re.match(r"\{\{([\d,]+)\}", groups)
    return [int(n) for n in explicit[1].split(",")] if explicit else list(range(devices))


def model_operation(instruction: Instruction) -> str:
    """The model's operation that an instruction belongs to, without the parts that JAX adds around it."""
    found = re.search(r'op_name="([^"]*)"', instruction.attributes)
    path = found[1] if found else instruction.name
    return "/".join(part for part in path.split("/") if part not in _WRAPPERS)
