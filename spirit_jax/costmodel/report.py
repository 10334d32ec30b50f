"""The report on a compiled program: memory, FLOPs, collectives, the least time that it can take, and warnings."""

import dataclasses
import math

import jax

from spirit_jax.core.constants import GIB
from spirit_jax.costmodel.hlo import parse
from spirit_jax.costmodel.schedule import Collective, simulate
from spirit_jax.costmodel.topology import Topology
from spirit_jax.costmodel.work import KernelFlops

_MIB = 2**20
_LARGE = _MIB  # Bytes from which on a collective is worth a warning.
_MINIMUM_SPARE = 0.1  # Fraction of the memory that should be left over.


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes per device."""

    arguments: float
    outputs: float
    temporaries: float
    aliased: float
    """Outputs that take the place of arguments."""
    limit: float
    """Memory that a program may use."""

    @property
    def total(self) -> float:
        """Bytes that the program needs."""
        return self.arguments + self.outputs - self.aliased + self.temporaries

    @property
    def spare(self) -> float:
        """Fraction of the chip's memory that is left over."""
        return 1 - self.total / self.limit


@dataclasses.dataclass(frozen=True)
class Report:
    """Cost of a compiled program on a device of a topology."""

    topology: Topology
    mesh: dict[str, int]
    """Size of each axis."""
    memory: Memory
    flops: float
    """FLOPs that one device executes."""
    model_flops: float
    """One device's share of the FLOPs that the model needs; or those that it executes."""
    bytes: float
    """Bytes from and to the device's memory."""
    seconds: float
    """Expected time, a lower bound."""
    collectives: list[Collective]
    compile_seconds: float = math.nan
    """Time that the compilation took."""

    @property
    def recomputation(self) -> float:
        """Executed FLOPs per FLOP of the model."""
        return self.flops / self.model_flops

    @property
    def mfu(self) -> float:
        """The model's FLOPs in the expected time, as a fraction of the chip's peak."""
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

    @property
    def waiting(self) -> float:
        """Seconds of the expected time in which the chip waits for collectives."""
        return sum(collective.exposed for collective in self.collectives)

    def warnings(self) -> list[str]:
        """Properties of the program that cost time or may end the run, one line each."""
        found = []
        if self.memory.total > self.memory.limit:
            found.append(f"does not fit: {self.memory.total / GIB:.1f} GiB a chip of {self.memory.limit / GIB:.1f}")
        elif self.memory.spare < _MINIMUM_SPARE:
            found.append(
                f"only {self.memory.spare:.0%} of the memory to spare: below {_MINIMUM_SPARE:.0%} "
                "fragmentation may end the run"
            )
        for collective in self.collectives:
            named = (
                f"{collective.kind} of {collective.size / _MIB:.0f} MiB, {collective.count:.0f} x, "
                f"in {collective.where}"
            )
            is_gradient = collective.kind == "all-reduce" and "transpose" in collective.where
            if is_gradient and collective.size > _LARGE and not collective.overlapped:
                found.append(f"{named}: gradients are all-reduced, twice the bytes of a reduce-scatter")
            if not collective.overlapped and collective.exposed > 0.005 * self.seconds:
                found.append(f"{named}: synchronous, the chips wait {1e3 * collective.exposed:.1f} ms")
        terms = self.terms
        if terms["memory"] > terms["compute"]:
            found.append("memory bandwidth limits it, not arithmetic")
        if terms["interconnect"] > max(terms["compute"], terms["memory"]):
            found.append("the interconnect limits it, not arithmetic: fewer, larger shards or more rows a chip help")
        return found

    def __str__(self) -> str:
        """The report as text, with a table of the collectives and the warnings."""
        return "\n".join([*self._summary(), *self._table(), *(f"warning: {warning}" for warning in self.warnings())])

    def _summary(self) -> list[str]:
        chip, memory = self.topology.chip, self.memory
        axes = " x ".join(f"{name} {size}" for name, size in self.mesh.items())
        devices = f" of {chip.devices} devices" if chip.devices > 1 else ""
        each = "device" if chip.devices > 1 else "chip"
        return [
            f"{self.topology}: {self.topology.chips} chips{devices}, mesh {axes}, "
            f"compiled in {self.compile_seconds:.0f} s",
            f"memory a {each:8}{memory.total / GIB:6.2f} of {memory.limit / GIB:.2f} GiB, {memory.spare:.0%} to spare: "
            f"arguments {memory.arguments / GIB:.2f}, other outputs {(memory.outputs - memory.aliased) / GIB:.2f}, "
            f"temporaries {memory.temporaries / GIB:.2f}",
            f"FLOPs a chip    {self.flops:.4g} executed"
            + (
                f", {self.model_flops:.4g} of the model (6ND + attention): {self.recomputation:.3f} x"
                if self.model_flops != self.flops
                else ""
            ),
            "roofline        " + ", ".join(f"{name} {1e3 * seconds:.1f} ms" for name, seconds in self.terms.items()),
            f"expected        {1e3 * self.seconds:.1f} ms, MFU {self.mfu:.1%} of {chip.flops / 1e12:.0f} TFLOP/s; "
            f"waiting for links {1e3 * self.waiting:.1f} ms",
        ]

    def _table(self) -> list[str]:
        """A line for each collective that takes more than a thousandth of the step, longest first."""
        lines = [
            f"{'collective':<20}{'MiB':>9}{'devices':>9}{'count':>7}  {'overlapped':<11}"
            f"{'ms on links':>12}{'ms waited':>11}  in"
        ]
        small = [c for c in self.collectives if c.seconds <= 1e-3 * self.seconds]
        for c in sorted(self.collectives, key=lambda c: -c.seconds):
            if c not in small:
                overlapped = "yes" if c.overlapped else "no"
                lines.append(
                    f"{c.kind:<20}{c.size / _MIB:>9.1f}{c.devices:>9}{c.count:>7.0f}  {overlapped:<11}"
                    f"{1e3 * c.seconds:>12.2f}{1e3 * c.exposed:>11.2f}  {c.where}"
                )
        runs, seconds = sum(c.count for c in small), sum(c.seconds for c in small)
        return [*lines, f"and {runs:.0f} runs of smaller ones, {1e3 * seconds:.2f} ms on links"]


def make_report(
    compiled: jax.stages.Compiled,
    topology: Topology,
    mesh: jax.sharding.Mesh,
    model_flops: float | None = None,
    kernel: KernelFlops | None = None,
    compile_seconds: float = math.nan,
) -> Report:
    """Read a compiled program.

    Args:
        compiled: the program.
        topology: the pod that it was compiled for.
        mesh: the mesh over the pod's devices.
        model_flops: FLOPs that the model needs, on all devices together; None counts those that are executed, for
            networks that recompute nothing.
        kernel: FLOPs of custom calls.
        compile_seconds: time that the compilation took.

    Raises:
        ValueError: the compiler gives no text or no memory analysis of the program.
    """
    stats, text = compiled.memory_analysis(), compiled.as_text()
    if stats is None or text is None:
        raise ValueError(f"the compiler for {topology} gives no memory analysis or no HLO text")
    memory = Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        temporaries=stats.temp_size_in_bytes + stats.generated_code_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        limit=topology.chip.hbm,
    )
    cost = simulate(parse(text), topology, list(mesh.devices.flat), kernel)
    return Report(
        topology=topology,
        mesh=dict(mesh.shape),
        memory=memory,
        flops=cost.flops,
        model_flops=cost.flops if model_flops is None else model_flops / mesh.size,
        bytes=cost.bytes,
        seconds=cost.seconds,
        collectives=cost.collectives,
        compile_seconds=compile_seconds,
    )
