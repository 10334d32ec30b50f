"""The figures and warnings of a report."""

import pytest

from spirit_jax.core.constants import GIB
from spirit_jax.costmodel.report import Memory, Report
from spirit_jax.costmodel.schedule import Collective
from spirit_jax.costmodel.topology import Topology

TOPOLOGY = Topology.parse("v5e:16x16")


def test_a_full_memory_and_a_synchronous_gradient_are_warned_of():
    """One second of computation, of which half is the model's, and a gradient that the chips wait for as long."""
    gradient = Collective(
        kind="all-reduce",
        where="transpose(jvp(Llama))/layers/mlp/dot_general",
        size=2 * 8192**2,
        devices=256,
        count=1,
        overlapped=False,
        seconds=1.0,
        exposed=1.0,
    )
    report = Report(
        topology=TOPOLOGY,
        mesh={"data": 1},
        memory=Memory(arguments=15 * GIB, outputs=0, temporaries=0.5 * GIB, aliased=0, limit=TOPOLOGY.chip.hbm),
        flops=TOPOLOGY.chip.flops,
        model_flops=TOPOLOGY.chip.flops / 2,
        bytes=0.0,
        seconds=2.0,
        collectives=[gradient],
    )
    assert report.recomputation == 2
    assert report.mfu == pytest.approx(1 / 4)
    warnings = "\n".join(report.warnings())
    assert "only 2% of the memory to spare" in warnings
    assert "gradients are all-reduced, twice the bytes of a reduce-scatter" in warnings
    assert "synchronous, the chips wait 1000.0 ms" in warnings
    assert "warning: " in str(report)
