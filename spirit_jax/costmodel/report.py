"""What a program will cost on chips that need not be owned: memory, FLOPs, collectives, and the least time it can take.

The expected time walks the compiled schedule with two clocks, one of the chip and one of its links. An instruction takes as
long as its FLOPs at the peak rate or its bytes at the memory's full bandwidth, whichever is more. A collective occupies
the links from where it starts; the chip waits for it where its result is asked for, so it is hidden by what stands in between,
and only by that; one that fusions carry on, by those fusions alone. A synchronous collective hides behind nothing. What crosses
between slices goes over the data centre network, beside the links.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Sequence

import jax
import numpy as np

from spirit_jax.core.constants import GIB
from spirit_jax.costmodel.hlo import Computation, Instruction, Module, Shape, parse
from spirit_jax.costmodel.topology import Topology
from spirit_jax.parallel.mesh import slice_index

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_LARGE = 2**20  # bytes from which on a collective is worth a warning


@dataclasses.dataclass
class Collective:
    """One collective of the program, all its runs together."""

    kind: str
    where: str
    """The operation of the model that it serves."""
    size: float
    """Bytes of the whole array: gathered, or before it is reduced or scattered."""
    devices: int
    count: float
    overlapped: bool
    """Whether the chip computes while it runs."""
    seconds: float
    """On the links, of all runs."""
    exposed: float
    """Of those, how long the chip waits."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes a device."""

    arguments: float
    outputs: float
    temporaries: float
    aliased: float
    """Outputs that take the place of arguments."""
    limit: float

    @property
    def total(self) -> float:
        return self.arguments + self.outputs - self.aliased + self.temporaries

    @property
    def spare(self) -> float:
        """Fraction of the chip's memory that is left over."""
        return 1 - self.total / self.limit


@dataclasses.dataclass(frozen=True)
class Report:
    """What a compiled program costs on a device of a topology."""

    topology: Topology
    mesh: dict[str, int]
    memory: Memory
    flops: float
    """Executed by one device."""
    model_flops: float
    """That the model needs, a device's share."""
    bytes: float
    """Through the device's memory."""
    seconds: float
    """Expected, at the least."""
    collectives: list[Collective]
    compile_seconds: float = math.nan

    @property
    def recomputation(self) -> float:
        """Executed FLOPs for each of the model's."""
        return self.flops / self.model_flops

    @property
    def mfu(self) -> float:
        """Model FLOPs in the expected time, as a fraction of the chip's peak."""
        return self.model_flops / self.seconds / self.topology.chip.flops

    @property
    def terms(self) -> dict[str, float]:
        """Seconds that each resource is in use."""
        links = sum(collective.seconds for collective in self.collectives)
        return {
            "compute": self.flops / self.topology.chip.flops,
            "memory": self.bytes / self.topology.chip.hbm_bandwidth,
            "interconnect": links,
        }

    def warnings(self) -> list[str]:
        """What will hurt, a line each."""
        found = []
        if self.memory.total > self.memory.limit:
            found.append(f"does not fit: {self.memory.total / GIB:.1f} GiB a chip of {self.memory.limit / GIB:.1f}")
        elif self.memory.spare < 0.1:
            found.append(
                f"only {self.memory.spare:.0%} of the memory to spare: below 10 % fragmentation may end the run"
            )
        for collective in self.collectives:
            named = f"{collective.kind} of {collective.size / 2**20:.0f} MiB, {collective.count:.0f} x, in {collective.where}"
            gradient = collective.kind == "all-reduce" and "transpose" in collective.where
            if gradient and collective.size > _LARGE and not collective.overlapped:
                found.append(f"{named}: gradients are all-reduced, twice the bytes of a reduce-scatter")
            if not collective.overlapped and collective.exposed > 0.005 * self.seconds:
                found.append(f"{named}: synchronous, the chips wait {1e3 * collective.exposed:.1f} ms")
        if self.terms["memory"] > self.terms["compute"]:
            found.append("memory bandwidth bounds it, not arithmetic")
        if self.terms["interconnect"] > max(self.terms["compute"], self.terms["memory"]):
            found.append("the interconnect bounds it, not arithmetic: fewer, larger shards or more rows a chip help")
        return found

    def __str__(self) -> str:
        chip, memory = self.topology.chip, self.memory
        axes = " x ".join(f"{name} {size}" for name, size in self.mesh.items())
        lines = [
            f"{self.topology}: {self.topology.chips} chips, mesh {axes}, compiled in {self.compile_seconds:.0f} s",
            f"memory a chip   {memory.total / GIB:6.2f} of {memory.limit / GIB:.2f} GiB, {memory.spare:.0%} to spare: arguments {memory.arguments / GIB:.2f}, "
            f"outputs {(memory.outputs - memory.aliased) / GIB:.2f} besides, temporaries {memory.temporaries / GIB:.2f}",
            f"FLOPs a chip    {self.flops:.4g} executed, {self.model_flops:.4g} of the model (6ND + attention): {self.recomputation:.3f} x",
            "roofline        " + ", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in self.terms.items()),
            f"expected        {1e3 * self.seconds:.1f} ms, MFU {self.mfu:.1%} of {chip.flops / 1e12:.0f} TFLOP/s; "
            f"waiting for links {1e3 * sum(c.exposed for c in self.collectives):.1f} ms",
            f"{'collective':<20}{'MiB':>9}{'devices':>9}{'count':>7}  {'overlapped':<11}{'ms on links':>12}{'ms waited':>11}  in",
        ]
        for c in sorted(self.collectives, key=lambda c: -c.seconds):
            if c.seconds > 1e-3 * self.seconds:
                overlapped = "yes" if c.overlapped else "no"
                lines.append(
                    f"{c.kind:<20}{c.size / 2**20:>9.1f}{c.devices:>9}{c.count:>7.0f}  {overlapped:<11}{1e3 * c.seconds:>12.2f}{1e3 * c.exposed:>11.2f}  {c.where}"
                )
        small = [c for c in self.collectives if c.seconds <= 1e-3 * self.seconds]
        lines.append(
            f"and {sum(c.count for c in small):.0f} runs of smaller ones, {1e3 * sum(c.seconds for c in small):.2f} ms on links"
        )
        return "\n".join(lines + [f"warning: {warning}" for warning in self.warnings()])


def make_report(
    compiled: jax.stages.Compiled,
    topology: Topology,
    mesh: jax.sharding.Mesh,
    model_flops: float,
    kernel: Callable[..., float | None] | None = None,
    compile_seconds: float = math.nan,
) -> Report:
    """Read a compiled program.

    Args:
        model_flops: that the model needs, all devices together.
        kernel: FLOPs of a custom call, as for `Module.flops`.
    """
    stats = compiled.memory_analysis()
    memory = Memory(
        stats.argument_size_in_bytes,
        stats.output_size_in_bytes,
        stats.temp_size_in_bytes + stats.generated_code_size_in_bytes,
        stats.alias_size_in_bytes,
        topology.chip.hbm,
    )
    cost = walk(parse(compiled.as_text()), topology, list(mesh.devices.flat), kernel)
    return Report(
        topology,
        dict(mesh.shape),
        memory,
        cost.flops,
        model_flops / mesh.size,
        cost.bytes,
        cost.seconds,
        cost.collectives,
        compile_seconds,
    )


@dataclasses.dataclass
class Cost:
    """Of a module or of one of its computations."""

    flops: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0
    collectives: list[Collective] = dataclasses.field(default_factory=list)


def walk(
    module: Module, topology: Topology, devices: Sequence[jax.Device], kernel: Callable[..., float | None] | None = None
) -> Cost:
    """Simulate a scheduled module on one chip of a topology (see above).

    Args:
        devices: by the number that they have in the module, which is their order in the mesh.
    """
    chip, costs = topology.chip, {}
    firsts = list({slice_index(device): number for number, device in reversed(list(enumerate(devices)))}.values())

    def computation(name: str) -> Cost:
        if name in costs:
            return costs[name]
        body, cost, clock = module.computations[name], Cost(), 0.0
        links: dict[str, float] = collections.defaultdict(float)  # until when they are in use
        running: dict[str, tuple[Collective, float]] = {}  # by name of the start: the collective and when it ends
        chains: dict[str, list] = {}  # that go on from one fusion to the next, by channel: the collective, seconds left

        def end_chain(channel: str) -> float:
            collective, left = chains.pop(channel)
            collective.exposed, collective.overlapped = left, left < 0.5 * collective.seconds
            return left

        for instruction in body.values():
            for inner, repeats in module.inner(instruction, body):
                part = computation(inner)
                cost.flops, cost.bytes, clock = (
                    cost.flops + repeats * part.flops,
                    cost.bytes + repeats * part.bytes,
                    clock + repeats * part.seconds,
                )
                cost.collectives += [
                    dataclasses.replace(
                        c, count=c.count * repeats, seconds=c.seconds * repeats, exposed=c.exposed * repeats
                    )
                    for c in part.collectives
                ]
            flops, size = module.flops(instruction, body, kernel), module.bytes(instruction, body)
            found, edge = _collectives(instruction, body, module), _edge(instruction, module)
            # a copy, a collective or an exchange between slices beside what follows
            background = instruction.opcode.endswith("-start") or instruction.opcode in ("send", "recv")
            work = 0.0
            if edge is None and all(each.inside for each in found):
                cost.flops, cost.bytes = cost.flops + flops, cost.bytes + size
                work = 0.0 if background else max(flops / chip.flops, size / chip.hbm_bandwidth)
            clock += work
            begun = _exchange(body[instruction.operands[0]]) if instruction.opcode.endswith("-done") else ""
            if begun in running and instruction.opcode != "send-done":
                collective, end = running.pop(begun)
                collective.exposed = max(0.0, end - clock)
                collective.overlapped = collective.exposed < 0.5 * collective.seconds
                clock = max(clock, end)
            for each in found:
                channel = each.source.attribute("channel_id")
                if not (each.inside and channel in chains):  # else it goes on with one that has begun
                    members = firsts if each.source.opcode == "send" else _members(each.source, len(devices))
                    time = topology.seconds(each.kind, each.size, [devices[i] for i in members])
                    collective = Collective(
                        each.kind, _where(each.source), each.size, len(members), 1.0, False, time, time
                    )
                    cost.collectives.append(collective)
                    if each.inside:
                        chains[channel] = [collective, time]
                    else:
                        # opposite permutations run at once, and the network beside the links
                        direction = each.source.attribute("source_target_pairs") or each.source.opcode == "send"
                        end = links[direction] = max(clock, links[direction]) + time
                        if background:
                            running[_exchange(instruction)] = (collective, end)
                        else:
                            clock = end
                if each.inside:  # the links have this fusion's time, once
                    hidden = min(work, chains[channel][1])
                    chains[channel][1], work = chains[channel][1] - hidden, work - hidden
                    if edge == "Done":
                        clock += end_chain(channel)
        for channel in list(chains):
            clock += end_chain(channel)
        cost.seconds = clock
        return costs.setdefault(name, cost)

    cost = computation(module.entry)
    return dataclasses.replace(cost, collectives=_merged(cost.collectives))


@dataclasses.dataclass(frozen=True)
class _Found:
    kind: str
    size: float
    """Bytes of the whole array."""
    source: Instruction
    """That says who takes part."""
    inside: bool
    """Whether a fusion computes beside it."""


def _collectives(instruction: Instruction, body: Computation, module: Module) -> list[_Found]:
    """The collective that an instruction is or starts, or those that it has inside."""
    if instruction.opcode == "send" and "megascale" in instruction.attributes:  # between slices, a shard of each chip's
        kind = "all-reduce" if "_xla_megascale_reduce_operation" in instruction.attributes else "all-gather"
        return [_Found(kind, instruction.shapes[0].size, instruction, False)]
    sources, where, inside, scatter = [instruction], body, False, False
    if instruction.opcode in ("fusion", "async-start", "call-start"):  # the last on a SparseCore
        called = instruction.called("calls") or instruction.called("to_apply")
        where = module.computations[called]
        sources = [i for i in where.values() if i.opcode in _KINDS]
        scatter = "all-reduce-scatter" in called  # XLA:TPU's way to write a reduce-scatter
        inside = instruction.opcode == "fusion" and not scatter
    found = []
    for source in sources:
        if (kind := source.opcode.removesuffix("-start")) in _KINDS:
            shapes: Sequence[Shape] = [
                shape for name in source.operands if name in where for shape in where[name].shapes
            ]
            if kind == "all-gather":  # a start's result is (operands, results)
                shapes = source.shapes[len(source.shapes) // 2 :] if source.opcode.endswith("-start") else source.shapes
            size = sum(shape.size for shape in shapes)
            found.append(_Found("reduce-scatter" if scatter else kind, size, source, inside))
    return found


def _exchange(instruction: Instruction) -> str:
    """What an asynchronous operation is known by where it ends: its name, but that of both sides for one between slices."""
    found = re.search(r'_xla_host_transfer_rendezvous="([^"]*)"', instruction.attributes)
    return found[1] if found else instruction.name


def _edge(instruction: Instruction, module: Module) -> str | None:
    """Start or Done, of a fusion that does nothing but begin or end a collective which the fusions in between carry on."""
    if instruction.opcode != "fusion":
        return None
    targets = (
        i.attributes for i in module.computations[instruction.called("calls")].values() if i.opcode == "custom-call"
    )
    found = re.search(r'custom_call_target="AsyncCollective(Start|Done)"', " ".join(targets))
    return found[1] if found else None


def _members(instruction: Instruction, devices: int) -> list[int]:
    """Numbers of the devices in the first group that takes part."""
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


def _where(instruction: Instruction) -> str:
    """The operation of the model that an instruction is part of, without what JAX wraps around it."""
    found = re.search(r'op_name="([^"]*)"', instruction.attributes)
    path = found[1] if found else instruction.name
    return "/".join(
        part
        for part in path.split("/")
        if part
        not in ("while", "body", "closed_call", "jit(train_step)", "checkpoint", "rematted_computation", "shard_map")
    )


def _merged(collectives: list[Collective]) -> list[Collective]:
    """Those of the same kind, size and place together."""
    groups = collections.defaultdict(list)
    for c in collectives:
        groups[c.kind, c.where, c.size, c.devices, c.overlapped].append(c)
    return [
        dataclasses.replace(
            group[0],
            count=sum(c.count for c in group),
            seconds=sum(c.seconds for c in group),
            exposed=sum(c.exposed for c in group),
        )
        for group in groups.values()
    ]
