"""The simulated schedule of HLO written by hand: which instructions hide which collectives."""

import dataclasses

import pytest

from spirit_jax.costmodel.hlo import parse
from spirit_jax.costmodel.schedule import simulate
from spirit_jax.costmodel.topology import Topology

TOPOLOGY = Topology.parse("v5e:16x16")


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device of a topology."""

    coords: tuple[int, ...]
    slice_index: int = 0


DEVICES = [Chip((x, y, 0)) for x in range(16) for y in range(16)]

# one product of 2 * 8192**3 FLOPs between the start and the end of a gather of 128 MiB
OVERLAPPED = """HloModule by_hand, is_scheduled=true

ENTRY %main (x: bf16[8192,8192], w: bf16[32,8192]) -> bf16[8192,8192] {
  %x = bf16[8192,8192]{1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[32,8192]{1,0:T(8,128)(2,1)} parameter(1)
  %start = (bf16[32,8192]{1,0}, bf16[8192,8192]{1,0}) all-gather-start(%w), channel_id=1, \
replica_groups=[1,256]<=[256], dimensions={0}, metadata={op_name="jit(train_step)/layers/mlp/dot_general"}
  %dot = bf16[8192,8192]{1,0:T(8,128)(2,1)} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %done = bf16[8192,8192]{1,0:T(8,128)(2,1)} all-gather-done(%start)
  ROOT %sum = bf16[8192,8192]{1,0:T(8,128)(2,1)} add(%done, %dot)
}
"""
PRODUCT, ARRAY = 2 * 8192**3 / TOPOLOGY.chip.flops, 2 * 8192**2
GATHER = ARRAY * 255 / 256 / (4 * TOPOLOGY.chip.link_bandwidth)
ADDITION = 3 * ARRAY / TOPOLOGY.chip.hbm_bandwidth


def cost(text):
    return simulate(parse(text), TOPOLOGY, DEVICES)


def test_instructions_between_start_and_end_hide_a_gather():
    found = cost(OVERLAPPED)
    assert found.seconds == pytest.approx(PRODUCT + ADDITION)
    (gather,) = found.collectives
    assert (gather.kind, gather.size, gather.devices, gather.count) == ("all-gather", ARRAY, 256, 1)
    assert gather.overlapped
    assert gather.exposed == 0
    assert gather.seconds == pytest.approx(GATHER)
    assert gather.where == "layers/mlp/dot_general"


def test_a_gather_on_a_sparse_core_runs_in_the_background():
    called = """
%gather (p: bf16[32,8192]) -> bf16[8192,8192] {
  %p = bf16[32,8192]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %g = bf16[8192,8192]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=1, replica_groups=[1,256]<=[256], \
dimensions={0}
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


def test_nothing_hides_an_asynchronous_gather_that_is_awaited_at_once():
    lines = [str(line) for line in OVERLAPPED.splitlines()]
    dot = next(line for line in lines if "%dot =" in line)
    lines.remove(dot)
    lines.insert(next(i for i, line in enumerate(lines) if "%done" in line) + 1, dot)
    found = cost("\n".join(lines))
    assert found.seconds == pytest.approx(GATHER + PRODUCT + ADDITION)
    assert not found.collectives[0].overlapped
    assert found.collectives[0].exposed == pytest.approx(GATHER)


def test_nothing_hides_a_synchronous_reduction():
    text = """HloModule by_hand, is_scheduled=true

ENTRY %main (x: bf16[8192,8192]) -> bf16[8192,8192] {
  %x = bf16[8192,8192]{1,0:T(8,128)(2,1)} parameter(0)
  %dot = bf16[8192,8192]{1,0:T(8,128)(2,1)} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %sum = bf16[8192,8192]{1,0:T(8,128)(2,1)} all-reduce(%dot), channel_id=1, \
replica_groups=mesh['a'=256,'b'=1] {'a'}, to_apply=%add, \
metadata={op_name="jit(train_step)/transpose(jvp(Llama))/layers/mlp/dot_general"}
}
"""
    found = cost(text)
    assert found.seconds == pytest.approx(PRODUCT + 2 * GATHER)


def test_a_gather_that_fusions_carry_on_counts_once():
    """XLA:TPU's asynchronous collective fusions: a gather starts in one and ends in another, beside products."""
    step = """
%part{n} (p: bf16[8192,8192], w: bf16[32,8192]) -> bf16[8192,8192] {
  %p{n} = bf16[8192,8192]{1,0:T(8,128)(2,1)} parameter(0)
  %w{n} = bf16[32,8192]{1,0:T(8,128)(2,1)} parameter(1)
  %g{n} = bf16[8192,8192]{1,0:T(8,128)(2,1)} all-gather(%w{n}), channel_id=5, replica_groups=[1,256]<=[256], \
dimensions={0}, frontend_attributes={chain_id="0"}
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
    """Two all-reduces start and end in fusions of their own, which take no time, around one product. The product hides
    them for as long as it runs; the chip waits for the rest at the end of the last one."""
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
    (both,) = found.collectives  # the same kind, size and place, so one entry
    assert (both.kind, both.count, both.overlapped) == ("all-reduce", 2, True)
    assert both.exposed == pytest.approx(2 * reduction - product)


def test_traffic_between_slices_uses_the_network_beside_the_links():
    """XLA:TPU writes a send and a receive of the host with a common name; here around a gather within the slice."""
    crosses = (
        'is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
        '_xla_host_transfer_rendezvous="all-reduce.1_0",_xla_megascale_reduce_operation="SUM"}'
    )
    text = f"""HloModule by_hand, is_scheduled=true

ENTRY %main (x: bf16[8192,8192], w: bf16[32,8192]) -> bf16[8192,8192] {{
  %x = bf16[8192,8192]{{1,0:T(8,128)(2,1)}} parameter(0)
  %w = bf16[32,8192]{{1,0:T(8,128)(2,1)}} parameter(1)
  %t = token[] after-all()
  %s = (bf16[8192,8192]{{1,0:T(8,128)(2,1)}}, u32[], token[]) send(%x, %t), channel_id=1, {crosses}
  %r = (bf16[8192,8192]{{1,0:T(8,128)(2,1)}}, u32[], token[]) recv(%t), channel_id=2, {crosses}
  %g = bf16[8192,8192]{{1,0:T(8,128)(2,1)}} all-gather(%w), channel_id=3, replica_groups=[2,256]<=[512], \
dimensions={{0}}
  %sd = token[] send-done(%s), channel_id=1, is_host_transfer=true
  ROOT %rd = (bf16[8192,8192]{{1,0:T(8,128)(2,1)}}, token[]) recv-done(%r), channel_id=2, is_host_transfer=true
}}
"""
    topology = Topology.parse("2xv5e:16x16")
    devices = [dataclasses.replace(device, slice_index=number) for number in (0, 1) for device in DEVICES]
    found = simulate(parse(text), topology, devices)
    network = ARRAY / topology.chip.network_bandwidth  # each of the two slices sends its array and receives the other's
    across, inside = found.collectives
    assert (across.kind, across.devices, across.size) == ("all-reduce", 2, ARRAY)
    assert across.seconds == pytest.approx(network)
    assert inside.seconds == pytest.approx(GATHER)
    assert across.exposed == pytest.approx(network - GATHER)
    assert found.seconds == pytest.approx(network)
