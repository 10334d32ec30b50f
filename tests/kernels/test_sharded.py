"""Split of an attention kernel over the devices of a mesh."""

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec

from spirit_jax.kernels.sharded import partition_spec

RULES = (("batch", ("data", "fsdp")), ("sequence", None), ("activation_heads", "tensor"), ("head_dim", None))
AXES = ("batch", "sequence", "activation_heads", "head_dim")


def test_rows_and_heads_are_split_by_the_rules_where_the_mesh_divides_them():
    mesh = jax.sharding.AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
    with nn.logical_axis_rules(RULES), jax.sharding.use_abstract_mesh(mesh):
        assert partition_spec(AXES, (8, 256, 4, 128)) == PartitionSpec(("data", "fsdp"), None, "tensor", None)
        assert partition_spec(AXES, (3, 256, 4, 128)) == PartitionSpec(None, None, "tensor", None)
        assert partition_spec(AXES, (8, 256, 3, 128)) == PartitionSpec(("data", "fsdp"), None, None, None)
