"""Costs read from HLO text: written by hand, and compiled here from programs whose costs are known."""

import jax
import jax.numpy as jnp
import pytest

from spirit_jax.costmodel.hlo import parse
from spirit_jax.costmodel.work import count_bytes, count_flops

pytestmark = pytest.mark.optimized

LOOP = """HloModule by_hand, is_scheduled=true

%matmul (p0: f32[8,16], p1: f32[3,16,32], p2: s32[]) -> f32[8,32] {
  %p0 = f32[8,16]{1,0} parameter(0)
  %p1 = f32[3,16,32]{2,1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %slice = f32[1,16,32]{2,1,0} dynamic-slice(%p1, %p2, %zero, %zero), dynamic_slice_sizes={1,16,32}
  %bitcast = f32[16,32]{1,0} bitcast(%slice)
  ROOT %dot = f32[8,32]{1,0} dot(%p0, %bitcast), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%condition (c: (s32[], f32[8,16], f32[3,16,32], s32[])) -> pred[] {
  %c = (s32[], f32[8,16]{1,0}, f32[3,16,32]{2,1,0}, /*index=3*/s32[]) parameter(0)
  %i = s32[] get-tuple-element(%c), index=0
  %limit = s32[] get-tuple-element(%c), index=3
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (b: (s32[], f32[8,16], f32[3,16,32], s32[])) -> (s32[], f32[8,16], f32[3,16,32], s32[]) {
  %b = (s32[], f32[8,16]{1,0}, f32[3,16,32]{2,1,0}, s32[]) parameter(0)
  %j = s32[] get-tuple-element(%b), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%b), index=1
  %w = f32[3,16,32]{2,1,0} get-tuple-element(%b), index=2
  %n = s32[] get-tuple-element(%b), index=3
  %fused = f32[8,32]{1,0} fusion(%x, %w, %j), kind=kOutput, calls=%matmul
  %two = s32[] constant(2)
  %next = s32[] add(%j, %two)
  ROOT %out = (s32[], f32[8,16]{1,0}, f32[3,16,32]{2,1,0}, s32[]) tuple(%next, %x, %w, %n)
}

ENTRY %main (a: f32[8,16], s: f32[3,16,32]) -> f32[8,16] {
  %a = f32[8,16]{1,0} parameter(0)
  %s = f32[3,16,32]{2,1,0} parameter(1)
  %first = s32[] constant(0)
  %last = s32[] constant(10)
  %start = (s32[], f32[8,16]{1,0}, f32[3,16,32]{2,1,0}, s32[]) tuple(%first, %a, %s, %last)
  %while = (s32[], f32[8,16]{1,0}, f32[3,16,32]{2,1,0}, s32[]) while(%start), condition=%condition, body=%body
  ROOT %result = f32[8,16]{1,0} get-tuple-element(%while), index=1
}
"""


CONVERTED = "%floats = f32[3,16,32]{2,1,0} fusion(%p1), kind=kLoop, calls=%change"


def total(module, count):
    return sum(times * count(module, instruction, computation) for instruction, computation, times in module.runs())


def test_a_loop_runs_as_often_as_its_counter_says():
    module = parse(LOOP)  # 0, 2, 4, 6, 8
    assert total(module, count_flops) == 5 * 2 * 8 * 16 * 32


def test_a_sliced_array_counts_as_its_slice():
    module = parse(LOOP)
    fused = module.computations["body"]["fused"]
    assert count_bytes(module, fused, module.computations["body"]) == 4 * (8 * 16 + 16 * 32 + 8 * 32 + 1)


def test_a_stack_that_is_converted_and_then_sliced_counts_as_its_slice():
    """Weights in 8 bits become floats in the fusion that multiplies one layer of them; no other layer is read."""
    text = LOOP.replace("f32[3,16,32]", "s8[3,16,32]").replace(
        "%slice = f32[1,16,32]{2,1,0} dynamic-slice(%p1,",
        "%floats = f32[3,16,32]{2,1,0} convert(%p1)\n  %slice = f32[1,16,32]{2,1,0} dynamic-slice(%floats,",
    )
    module = parse(text)
    fused = module.computations["body"]["fused"]
    expected = 4 * (8 * 16 + 8 * 32 + 1) + 16 * 32
    assert count_bytes(module, fused, module.computations["body"]) == expected
    # XLA:TPU puts a change of the layout into a fusion of its own, inside the one of the product.
    nested = text.replace("%floats = f32[3,16,32]{2,1,0} convert(%p1)", CONVERTED).replace(
        "%matmul (p0",
        "%change (q: s8[3,16,32]) -> f32[3,16,32] {\n  %q = s8[3,16,32]{2,1,0} parameter(0)\n"
        "  ROOT %r = f32[3,16,32]{2,1,0} convert(%q)\n}\n\n%matmul (p0",
    )
    module = parse(nested)
    assert count_bytes(module, module.computations["body"]["fused"], module.computations["body"]) == expected


def test_an_array_whose_elements_are_the_result_counts_whole():
    text = """HloModule elements
%to_floats (p: s8[3,16]) -> f32[3,16] {
  %p = s8[3,16]{1,0} parameter(0)
  ROOT %floats = f32[3,16]{1,0} convert(%p)
}

ENTRY %main (c: s8[3,16]) -> f32[3,16] {
  %c = s8[3,16]{1,0} parameter(0)
  ROOT %f = f32[3,16]{1,0} fusion(%c), kind=kLoop, calls=%to_floats
}
"""
    assert total(parse(text), count_bytes) == 3 * 16 + 4 * 3 * 16


def test_the_trip_count_that_the_compiler_states_is_used():
    text = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    assert total(parse(text), count_flops) == 7 * 2 * 8 * 16 * 32


def test_flops_of_a_matrix_product_written_as_a_convolution():
    """XLA:TPU contracts the features with a window of one position. A wider window overlaps with the padding."""
    text = """HloModule convolutions
ENTRY %main (x: bf16[1,4096,512], w: bf16[512,128]) -> bf16[1,4096,128] {
  %x = bf16[1,4096,512]{2,1,0:T(8,128)(2,1)} parameter(0)
  %w = bf16[1,512,128]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %c = bf16[1,4096,128]{2,1,0:T(8,128)(2,1)} convolution(%x, %w), window={size=1}, dim_labels=b0f_0io->b0f
}
"""
    module = parse(text)
    assert total(module, count_flops) == 2 * 4096 * 512 * 128
    assert total(module, count_bytes) == 2 * (4096 * 512 + 4096 * 128)  # the weights are in faster memory
    same = text.replace("bf16[1,512,128]", "bf16[3,512,128]").replace("size=1", "size=3 pad=1_1")
    assert total(parse(same), count_flops) == 2 * (3 * 4096 - 2) * 512 * 128


def test_an_array_updated_in_place_counts_as_its_update():
    """A scatter alone, and inside a fusion as for a KV cache."""
    text = """HloModule cache
%write (p: f32[100,64], i: s32[2,1], u: f32[2,64]) -> f32[100,64] {
  %p = f32[100,64]{1,0} parameter(0)
  %i = s32[2,1]{1,0} parameter(1)
  %u = f32[2,64]{1,0} parameter(2)
  ROOT %s = f32[100,64]{1,0} scatter(%p, %i, %u), update_window_dims={1}, to_apply=%set
}

ENTRY %main (c: f32[100,64], at: s32[2,1], new: f32[2,64]) -> f32[100,64] {
  %c = f32[100,64]{1,0} parameter(0)
  %at = s32[2,1]{1,0} parameter(1)
  %new = f32[2,64]{1,0} parameter(2)
  ROOT %f = f32[100,64]{1,0} fusion(%c, %at, %new), kind=kCustom, calls=%write
}
"""
    module = parse(text)
    update = 4 * 2 * 64
    assert count_bytes(module, module.computations["write"]["s"], module.computations["write"]) == 2 * update
    assert total(module, count_bytes) == 3 * update + 4 * 2  # the old values, the update and its places; the new values


COPIES = """HloModule copies
%relabel (o: f32[100,64]) -> f32[100,64] {
  %o = f32[100,64]{1,0} parameter(0)
  ROOT %r = f32[100,64]{1,0:T(8,128)} copy(%o)
}

%write (p: f32[100,64], u: f32[2,64], i: s32[]) -> f32[100,64] {
  %p = f32[100,64]{1,0} parameter(0)
  %q = f32[100,64]{1,0:T(8,128)} fusion(%p), kind=kLoop, calls=%relabel
  %u = f32[2,64]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %s = f32[100,64]{1,0} dynamic-update-slice(%q, %u, %i, %i)
}

ENTRY %main (c: f32[100,64], new: f32[2,64], at: s32[]) -> f32[100,64] {
  %c = f32[100,64]{1,0} parameter(0)
  %new = f32[2,64]{1,0} parameter(1)
  %at = s32[] parameter(2)
  ROOT %f = f32[100,64]{1,0} fusion(%c, %new, %at), kind=kLoop, calls=%write
}
"""


def test_an_array_that_gets_another_layout_while_it_is_updated_counts_as_its_update():
    """So XLA:TPU writes the saved activations of a layer for TPU7x. A copy that is the result is whole."""
    update, whole = 4 * 2 * 64, 4 * 100 * 64
    assert total(parse(COPIES), count_bytes) == 3 * update + 4
    copied = COPIES.replace("  ROOT %s", "  ROOT %t = f32[100,64]{1,0} copy(%q)\n  %s")
    assert total(parse(copied), count_bytes) == 2 * whole + update + 4


def test_a_text_without_an_entry_is_an_error():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        parse("nothing")


def test_a_compiled_scan_counts_the_flops_of_all_its_steps():
    """XLA's own count has the body of the loop once."""

    def layers(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    x, weights = jnp.ones((64, 128)), jnp.ones((6, 128, 128))
    text = jax.jit(layers).lower(x, weights).compile().as_text()
    assert text is not None
    module = parse(text)
    assert total(module, count_flops) == 6 * 2 * 64 * 128 * 128


def test_the_arrays_of_a_collective_that_a_fusion_carries_on_do_not_count():
    text = """HloModule carried
%step (r: f32[512,64], o: f32[512,64], x: f32[8,64]) -> (f32[8,64], f32[512,64], f32[512,64], f32[512,64]) {
  %r = f32[512,64]{1,0} parameter(0)
  %o = f32[512,64]{1,0} parameter(1)
  %x = f32[8,64]{1,0} parameter(2)
  %y = f32[8,64]{1,0} negate(%x)
  %sum = f32[512,64]{1,0} all-reduce(%r), channel_id=5, replica_groups=[1,256]<=[256], to_apply=%add
  ROOT %t = (f32[8,64]{1,0}, f32[512,64]{1,0}, f32[512,64]{1,0}, f32[512,64]{1,0}) tuple(%y, %r, %o, %sum)
}

ENTRY %main (r: f32[512,64], o: f32[512,64], x: f32[8,64]) -> f32[8,64] {
  %r = f32[512,64]{1,0} parameter(0)
  %o = f32[512,64]{1,0} parameter(1)
  %x = f32[8,64]{1,0} parameter(2)
  ROOT %f = (f32[8,64]{1,0}, f32[512,64]{1,0}, f32[512,64]{1,0}, f32[512,64]{1,0}) fusion(%r, %o, %x), kind=kLoop, \
calls=%step
}
"""
    assert total(parse(text), count_bytes) == 2 * 4 * 8 * 64
