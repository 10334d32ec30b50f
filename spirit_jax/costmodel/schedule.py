"""Simulates a compiled schedule on one chip with two clocks: one of the chip and one of its links.

An instruction takes as long as its FLOPs at the peak rate or its bytes at the memory's full bandwidth, whichever is
longer. A collective occupies the links from its start. The chip waits for it where its result is needed, so only the
instructions in between hide it. A collective that fusions carry on is hidden by those fusions only. Nothing hides a
synchronous collective. Traffic between slices goes over the data center network, which runs beside the links.
"""

import collections
import dataclasses
from collections.abc import Sequence

from spirit_jax.costmodel.collectives import (
    FoundCollective,
    find_collectives,
    fusion_edge,
    members,
    model_operation,
    rendezvous,
)
from spirit_jax.costmodel.hlo import Computation, Instruction, Module
from spirit_jax.costmodel.topology import Topology, TopologyDevice
from spirit_jax.costmodel.work import KernelFlops, count_bytes, count_flops
from spirit_jax.parallel.mesh import slice_index


@dataclasses.dataclass
class Collective:
    """One collective of the program, with all its runs."""

    kind: str
    where: str
    """The model's operation that it belongs to."""
    size: float
    """Bytes of the whole array: gathered, or before it is reduced or scattered."""
    devices: int
    count: float
    """Number of times that it runs."""
    overlapped: bool
    """Whether the chip computes during most of it."""
    seconds: float
    """Time on the links, for all runs."""
    exposed: float
    """Seconds the chip is stalled by this collective."""

    def repeated(self, times: float) -> "Collective":
        """The collective of a loop body, for all trips of the loop."""
        return dataclasses.replace(
            self, count=self.count * times, seconds=self.seconds * times, exposed=self.exposed * times
        )

    def expose(self, seconds: float) -> None:
        """Note that the chip is stalled for this long, out of the collective's time."""
        self.exposed, self.overlapped = seconds, seconds < 0.5 * self.seconds


@dataclasses.dataclass
class Cost:
    """The cost of a module, or of one of its computations, on one device."""

    flops: float = 0.0
    bytes: float = 0.0
    seconds: float = 0.0
    collectives: list[Collective] = dataclasses.field(default_factory=list)


def simulate(
    module: Module, topology: Topology, devices: Sequence[TopologyDevice], kernel: KernelFlops | None = None
) -> Cost:
    """Simulate a scheduled module on one chip of a topology.

    Args:
        module: the program.
        topology: the pod.
        devices: its devices by the number that they have in the module, which is their order in the mesh.
        kernel: FLOPs of custom calls.
    """
    cost = _Simulation(module, topology, devices, kernel).computation(module.entry)
    return dataclasses.replace(cost, collectives=_merged(cost.collectives))


@dataclasses.dataclass
class _Chain:
    """A collective that one fusion after the other carries on, and its seconds that no fusion has hidden yet."""

    collective: Collective
    left: float


class _Simulation:
    """Costs of a module's computations; each is simulated once."""

    def __init__(
        self, module: Module, topology: Topology, devices: Sequence[TopologyDevice], kernel: KernelFlops | None
    ):
        self.module, self.topology, self.devices, self.kernel = module, topology, devices, kernel
        first_of_slice = {slice_index(device): number for number, device in reversed(list(enumerate(devices)))}
        self.slice_leaders = list(first_of_slice.values())
        self._costs: dict[str, Cost] = {}

    def computation(self, name: str) -> Cost:
        if name not in self._costs:
            timeline = _Timeline(self, self.module.computations[name])
            self._costs[name] = timeline.run()
        return self._costs[name]

    def collective(self, found: FoundCollective) -> Collective:
        """One run of a collective, so far not overlapped."""
        numbers = self.slice_leaders if found.crosses_slices else members(found.source, len(self.devices))
        seconds = self.topology.seconds(found.kind, found.size, [self.devices[number] for number in numbers])
        return Collective(
            kind=found.kind,
            where=model_operation(found.source),
            size=found.size,
            devices=len(numbers),
            count=1.0,
            overlapped=False,
            seconds=seconds,
            exposed=seconds,
        )


class _Timeline:
    """One computation on the clock of the chip and the clocks of its links."""

    def __init__(self, simulation: _Simulation, body: Computation):
        self._simulation, self._module, self._body = simulation, simulation.module, body
        self._cost, self._clock = Cost(), 0.0
        self._occupied_until: dict[str, float] = collections.defaultdict(float)  # by route
        self._running: dict[str, tuple[Collective, float]] = {}  # asynchronous ones by rendezvous, and when they end
        self._chains: dict[str, _Chain] = {}  # by channel

    def run(self) -> Cost:
        """Run all instructions in order, and return their cost."""
        for instruction in self._body.values():
            for inner, repeats in self._module.inner(instruction, self._body):
                self._run_inner(self._simulation.computation(inner), repeats)
            self._run_instruction(instruction)
        for channel in list(self._chains):
            self._end_chain(channel)
        self._cost.seconds = self._clock
        return self._cost

    def _run_inner(self, part: Cost, repeats: float) -> None:
        self._cost.flops += repeats * part.flops
        self._cost.bytes += repeats * part.bytes
        self._cost.collectives += [collective.repeated(repeats) for collective in part.collectives]
        self._clock += repeats * part.seconds

    def _run_instruction(self, instruction: Instruction) -> None:
        found = find_collectives(instruction, self._body, self._module)
        edge = fusion_edge(instruction, self._module)
        # A copy, a collective or an exchange between slices that runs beside the instructions after it.
        is_background = instruction.opcode.endswith("-start") or instruction.opcode in ("send", "recv")
        work = 0.0
        if edge is None and all(each.in_fusion for each in found):
            work = self._compute(instruction, is_background)
        self._clock += work
        if instruction.opcode.endswith("-done"):
            self._wait_for(instruction)
        for each in found:
            if each.in_fusion:
                work = self._carry_on(each, work, is_last=edge == "done")
            else:
                self._start(each, rendezvous(instruction) if is_background else None)

    def _compute(self, instruction: Instruction, is_background: bool) -> float:
        """Add the work of an instruction to the cost, and return its seconds on the chip."""
        flops = count_flops(self._module, instruction, self._body, self._simulation.kernel)
        size = count_bytes(self._module, instruction, self._body)
        self._cost.flops += flops
        self._cost.bytes += size
        chip = self._simulation.topology.chip
        return 0.0 if is_background else max(flops / chip.flops, size / chip.hbm_bandwidth)

    def _wait_for(self, done: Instruction) -> None:
        """Stall the chip until the collective that an instruction waits for has ended."""
        name = rendezvous(self._body[done.operands[0]])
        if name not in self._running or done.opcode == "send-done":
            return
        collective, end = self._running.pop(name)
        collective.expose(max(0.0, end - self._clock))
        self._clock = max(self._clock, end)

    def _start(self, found: FoundCollective, background: str | None) -> None:
        """Put a collective on its route; without a rendezvous to run in the background, the chip waits for it."""
        collective = self._add(found)
        end = max(self._clock, self._occupied_until[found.route]) + collective.seconds
        self._occupied_until[found.route] = end
        if background is None:
            self._clock = end
        else:
            self._running[background] = (collective, end)

    def _carry_on(self, found: FoundCollective, work: float, is_last: bool) -> float:
        """Hide a collective behind a fusion of `work` seconds; return the seconds that are left to hide others."""
        channel = found.source.attribute("channel_id")
        if channel not in self._chains:
            collective = self._add(found)
            self._chains[channel] = _Chain(collective=collective, left=collective.seconds)
        chain = self._chains[channel]
        hidden = min(work, chain.left)
        chain.left -= hidden
        if is_last:
            self._end_chain(channel)
        return work - hidden

    def _end_chain(self, channel: str) -> None:
        """Stall the chip for the rest of a collective that fusions carried on."""
        chain = self._chains.pop(channel)
        chain.collective.expose(chain.left)
        self._clock += chain.left

    def _add(self, found: FoundCollective) -> Collective:
        collective = self._simulation.collective(found)
        self._cost.collectives.append(collective)
        return collective


def _merged(found: list[Collective]) -> list[Collective]:
    """Join the collectives of the same kind, size and place."""
    groups: dict[tuple, list[Collective]] = collections.defaultdict(list)
    for each in found:
        groups[each.kind, each.where, each.size, each.devices, each.overlapped].append(each)
    return [
        dataclasses.replace(
            group[0],
            count=sum(each.count for each in group),
            seconds=sum(each.seconds for each in group),
            exposed=sum(each.exposed for each in group),
        )
        for group in groups.values()
    ]
