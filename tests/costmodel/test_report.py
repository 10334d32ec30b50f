"""The simulated schedule of a program, by hand: what hides behind what, and what is warned of."""

from types import SimpleNamespace

import pytest

from spirit_jax.core.constants import GIB
from spirit_jax.costmodel.hlo import parse
from spirit_jax.costmodel.report import Memory, Report, _members, walk
from spirit_jax.costmodel.topology import Topology

TOPOLOGY = Topology.parse("v5e:16x16")
DEVICES = [SimpleNamespace(coords=(x, y, 0), slice_index=None) for x in range(16) for y in range(16)]

# one product of 2 * 8192**3 FLOPs between the start and the end of a gather of 128 MiB
OVERLAPPED = """HloModule by_hand, is_scheduled=true

ENTRY %main (x: bf16[8192,8192], w: bf16[32,8192]) -> bf16[8192,8192] {
  %x = bf16[8192,8192]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[32,8192]{1,0:T(8,128)(2,1)} parameter(1)
  %start = (bf16[32,8192]{1,0}, bf16[8192,8192]{1,0}) all-gather-start(%w), channel_id=1, replica_groups=[1,256]<=[256], dimensions={0}, metadata={op_name="jit(train_step)/layers/mlp/dot_general"}
  %dot = bf16[8192,8192]{1,0:T(8,128)(2,1)} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %done = bf16[8192,8192]{1,0:T(8,128)(2,1)} all-gather-done(%start)
  ROOT %sum = bf16[8192,8192]{1,0:T(8,128)(2,1)} add(%done, %dot)
}
"""
PRODUCT, ARRAY = 2 * 8192**3 / TOPOLOGY.chip.flops, 2 * 8192**2
GATHER = ARRAY * 255 / 256 / (4 * TOPOLOGY.chip.link_bandwidth)
ADDITION = 3 * ARRAY / TOPOLOGY.chip.hbm_bandwidth


def cost(text):
    return walk(parse(text), TOPOLOGY, DEVICES)


def test_a_gather_hides_behind_what_stands_between_its_start_and_its_end():
    found = cost(OVERLAPPED)
    assert found.seconds == pytest.approx(PRODUCT + ADDITION)
    (gather,) = found.collectives
    assert (gather.kind, gather.size, gather.devices, gather.count) == ("all-gather", ARRAY, 256, 1)
    assert gather.overlapped
    assert gather.exposed == 0
    assert gather.seconds == pytest.approx(GATHER)
    assert gather.where == "layers/mlp/dot_general"


def test_a_gather_on_a_sparse_core_is_one_that_runs_beside_what_follows():
    called = """
%gather (p: bf16[32,8192]) -> bf16[8192,8192] {
  %p = bf16[32,8192]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %g = bf16[8192,8192]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=1, replica_groups=[1,256]<=[256], dimensions={0}
}

ENTRY"""
    text = OVERLAPPED.replace("ENTRY", called.lstrip("\n"), 1).replace("all-gather-done", "call-done")
    text = text.replace(
        "all-gather-start(%w), channel_id=1", 'call-start(%w), async_execution_thread="sparsecore", to_apply=%gather'
    )
    found = cost(text)
    assert found.seconds == pytest.approx(PRODUCT + ADDITION)
    (gather,) = found.collectives
    assert (gather.kind, gather.size, gather.devices, gather.overlapped) == ("all-gather", ARRAY, 256, True)
    assert gather.seconds == pytest.approx(GATHER)


def test_an_asynchronous_gather_with_nothing_in_between_is_not_hidden():
    lines = OVERLAPPED.splitlines()
    dot = next(line for line in lines if "%dot =" in line)
    lines.remove(dot)
    lines.insert(next(i for i, line in enumerate(lines) if "%done" in line) + 1, dot)
    found = cost("\n".join(lines))
    assert found.seconds == pytest.approx(GATHER + PRODUCT + ADDITION)
    assert not found.collectives[0].overlapped
    assert found.collectives[0].exposed == pytest.approx(GATHER)


def test_a_synchronous_reduction_hides_behind_nothing_and_is_warned_of():
    text = """HloModule by_hand, is_scheduled=true

ENTRY %main (x: bf16[8192,8192]) -> bf16[8192,8192] {
  %x = bf16[8192,8192]{1,0:T(8,128)(2,1)} parameter(0)
  %dot = bf16[8192,8192]{1,0:T(8,128)(2,1)} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %sum = bf16[8192,8192]{1,0:T(8,128)(2,1)} all-reduce(%dot), channel_id=1, replica_groups=mesh['a'=256,'b'=1] {'a'}, to_apply=%add, metadata={op_name="jit(train_step)/transpose(jvp(Llama))/layers/mlp/dot_general"}
}
"""
    found = cost(text)
    assert found.seconds == pytest.approx(PRODUCT + 2 * GATHER)
    memory = Memory(15 * GIB, 0, 0.5 * GIB, 0, TOPOLOGY.chip.hbm)
    report = Report(
        TOPOLOGY, {"data": 1}, memory, found.flops, found.flops / 2, found.bytes, found.seconds, found.collectives
    )
    assert report.recomputation == 2
    assert report.mfu == pytest.approx(PRODUCT / 2 / found.seconds)
    warnings = "\n".join(report.warnings())
    assert "only 2% of the memory to spare" in warnings
    assert "gradients are all-reduced, twice the bytes of a reduce-scatter" in warnings
    assert "synchronous, the chips wait" in warnings
    assert "warning: " in str(report)


def test_a_gather_that_fusions_carry_on_is_one_gather():
    """XLA:TPU's asynchronous collective fusions: the gather begins in one and ends in another, beside their products."""
    step = """
%part{n} (p: bf16[8192,8192], w: bf16[32,8192]) -> bf16[8192,8192] {
  %p{n} = bf16[8192,8192]{1,0:T(8,128)(2,1)} parameter(0)
  %w{n} = bf16[32,8192]{1,0:T(8,128)(2,1)} parameter(1)
  %g{n} = bf16[8192,8192]{1,0:T(8,128)(2,1)} all-gather(%w{n}), channel_id=5, replica_groups=[1,256]<=[256], dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %d{n} = bf16[8192,8192]{1,0:T(8,128)(2,1)} dot(%p{n}, %p{n}), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
    text = (
        "HloModule by_hand, is_scheduled=true\n"
        + step.replace("{n}", "1")
        + step.replace("{n}", "2")
        + """
ENTRY %main (x: bf16[8192,8192], w: bf16[32,8192]) -> bf16[8192,8192] {
  %x = bf16[8192,8192]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[32,8192]{1,0:T(8,128)(2,1)} parameter(1)
  %one = bf16[8192,8192]{1,0:T(8,128)(2,1)} fusion(%x, %w), kind=kOutput, calls=%part1
  ROOT %two = bf16[8192,8192]{1,0:T(8,128)(2,1)} fusion(%one, %w), kind=kOutput, calls=%part2
}
"""
    )
    found = cost(text)
    assert found.seconds == pytest.approx(2 * PRODUCT)
    (gather,) = found.collectives
    assert (gather.count, gather.overlapped, gather.exposed) == (1, True, 0)


def test_two_collectives_in_one_fusion_share_its_time():
    """Two all-reduces that begin and end in fusions of their own, which take no time, around one product: it hides
    as much of both together as it lasts; the chip waits for the rest where the last of them ends."""
    collective = """
%{role}{n} (w: bf16[8192,8192]) -> bf16[8192,8192] {
  %w = bf16[8192,8192]{1,0:T(8,128)(2,1)} parameter(0)
  %r = bf16[8192,8192]{1,0:T(8,128)(2,1)} all-reduce(%w), channel_id={n}, replica_groups=[1,256]<=[256], to_apply=%add
  ROOT %c = bf16[8192,8192]{1,0:T(8,128)(2,1)} custom-call(%r), custom_call_target="AsyncCollective{role}"
}
"""
    text = (
        "HloModule by_hand, is_scheduled=true\n"
        + "".join(
            collective.replace("{role}", role).replace("{n}", n) for role in ("Start", "Done") for n in ("1", "2")
        )
        + """
%product (p: bf16[8192,4096], w: bf16[8192,8192]) -> bf16[8192,8192] {
  %p = bf16[8192,4096]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[8192,8192]{1,0:T(8,128)(2,1)} parameter(1)
  %r1 = bf16[8192,8192]{1,0:T(8,128)(2,1)} all-reduce(%w), channel_id=1, replica_groups=[1,256]<=[256], to_apply=%add
  %r2 = bf16[8192,8192]{1,0:T(8,128)(2,1)} all-reduce(%w), channel_id=2, replica_groups=[1,256]<=[256], to_apply=%add
  ROOT %d = bf16[8192,8192]{1,0:T(8,128)(2,1)} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={1}
}

ENTRY %main (x: bf16[8192,4096], w: bf16[8192,8192]) -> bf16[8192,8192] {
  %x = bf16[8192,4096]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[8192,8192]{1,0:T(8,128)(2,1)} parameter(1)
  %s1 = bf16[8192,8192]{1,0:T(8,128)(2,1)} fusion(%w), kind=kCustom, calls=%Start1
  %s2 = bf16[8192,8192]{1,0:T(8,128)(2,1)} fusion(%w), kind=kCustom, calls=%Start2
  %d = bf16[8192,8192]{1,0:T(8,128)(2,1)} fusion(%x, %w), kind=kOutput, calls=%product
  %e1 = bf16[8192,8192]{1,0:T(8,128)(2,1)} fusion(%s1), kind=kCustom, calls=%Done1
  ROOT %e2 = bf16[8192,8192]{1,0:T(8,128)(2,1)} fusion(%s2), kind=kCustom, calls=%Done2
}
"""
    )
    found = cost(text)
    product, reduction = PRODUCT / 2, 2 * GATHER
    assert reduction < product < 2 * reduction
    assert found.seconds == pytest.approx(2 * reduction)
    assert found.flops == 2 * 8192 * 4096 * 8192
    (both,) = found.collectives  # of one kind, size and place: in one line
    assert (both.kind, both.count, both.overlapped) == ("all-reduce", 2, True)
    assert both.exposed == pytest.approx(2 * reduction - product)


def test_what_crosses_between_slices_goes_over_the_network_beside_the_links():
    """As XLA:TPU writes it: a send and a receive of the host that know each other by name; here around a gather in the slice."""
    crosses = 'is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.1_0",_xla_megascale_reduce_operation="SUM"}'
    text = f"""HloModule by_hand, is_scheduled=true

ENTRY %main (x: bf16[8192,8192], w: bf16[32,8192]) -> bf16[8192,8192] {{
  %x = bf16[8192,8192]{{1,0:T(8,128)(2,1)}} parameter(0)
  %w = bf16[32,8192]{{1,0:T(8,128)(2,1)}} parameter(1)
  %t = token[] after-all()
  %s = (bf16[8192,8192]{{1,0:T(8,128)(2,1)}}, u32[], token[]) send(%x, %t), channel_id=1, {crosses}
  %r = (bf16[8192,8192]{{1,0:T(8,128)(2,1)}}, u32[], token[]) recv(%t), channel_id=2, {crosses}
  %g = bf16[8192,8192]{{1,0:T(8,128)(2,1)}} all-gather(%w), channel_id=3, replica_groups=[2,256]<=[512], dimensions={{0}}
  %sd = token[] send-done(%s), channel_id=1, is_host_transfer=true
  ROOT %rd = (bf16[8192,8192]{{1,0:T(8,128)(2,1)}}, token[]) recv-done(%r), channel_id=2, is_host_transfer=true
}}
"""
    topology = Topology.parse("2xv5e:16x16")
    devices = [SimpleNamespace(coords=device.coords, slice_index=number) for number in (0, 1) for device in DEVICES]
    found = walk(parse(text), topology, devices)
    network = ARRAY / topology.chip.network_bandwidth  # each of two sends its own and gets the other's
    across, inside = found.collectives
    assert (across.kind, across.devices, across.size) == ("all-reduce", 2, ARRAY)
    assert across.seconds == pytest.approx(network)
    assert inside.seconds == pytest.approx(GATHER)
    assert across.exposed == pytest.approx(network - GATHER)
    assert found.seconds == pytest.approx(network)


@pytest.mark.parametrize(
    ("groups", "members"),
    [
        ("replica_groups={{0,2},{1,3}}", [0, 2]),
        ("replica_groups=[2,4]<=[8]", [0, 1, 2, 3]),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", [0, 2, 4, 6]),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}, dimensions={1}", [0, 2, 4, 6]),
        ("replica_groups=mesh['a'=4,'b'=2] {'b'}", [0, 1]),
        ("source_target_pairs={{0,3},{1,0}}", [0, 3]),
        ("replica_groups={}", list(range(8))),
    ],
)
def test_who_takes_part(groups, members):
    text = f"HloModule m\nENTRY %main (x: f32[8]) -> f32[8] {{\n  %x = f32[8]{{0}} parameter(0)\n  ROOT %r = f32[8]{{0}} all-reduce(%x), channel_id=1, {groups}, to_apply=%add\n}}\n"
    assert _members(parse(text).computations["main"]["r"], 8) == members
