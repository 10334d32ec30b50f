"""The members of collectives, in each of HLO's notations."""

import pytest

from spirit_jax.costmodel.collectives import members
from spirit_jax.costmodel.hlo import parse

ALL_REDUCE = """HloModule m
ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %r = f32[8]{0} all-reduce(%x), channel_id=1, GROUPS, to_apply=%add
}
"""


@pytest.mark.parametrize(
    ("groups", "expected"),
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
def test_members_of_the_first_group_are_read(groups, expected):
    module = parse(ALL_REDUCE.replace("GROUPS", groups))
    assert members(module.computations["main"]["r"], 8) == expected
