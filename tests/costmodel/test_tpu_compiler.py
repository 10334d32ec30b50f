"""Facts that only the TPU compiler knows: limits of chips and places of devices. Needs libtpu, no TPU."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from spirit_jax.core.constants import GIB
from spirit_jax.core.hardware import CHIPS
from spirit_jax.costmodel.topology import Topology
from spirit_jax.parallel.compiler import compiler_options
from spirit_jax.parallel.mesh import MeshConfig, make_mesh, slice_index
from spirit_jax.parallel.sharding import BatchLayout

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'spirit_jax[tpu]'"
)


@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"])
def test_the_memory_of_a_chip_is_what_the_compiler_allows(name):
    topology = Topology.parse(name)
    sharding = SingleDeviceSharding(topology.devices()[0])
    with pytest.raises(jax.errors.JaxRuntimeError) as error:
        jax.jit(lambda x: x + 1).lower(
            jax.ShapeDtypeStruct((200_000, 200_000), jnp.float32, sharding=sharding)
        ).compile()
    available = re.search(r"available HBM \(([\d.]+)G\)", str(error.value))
    assert available is not None
    # versions of libtpu reserve amounts of memory that differ by hundredths of a GiB
    assert CHIPS[name.split(":")[0]].hbm == pytest.approx(float(available[1]) * GIB, rel=1e-3)


@pytest.mark.parametrize(("name", "rows"), [("v5e:16x16", 256), ("v5p-128", 256), ("v4-128", 64), ("2xv5e:4x4", 32)])
def test_every_host_of_a_pod_feeds_an_equal_share_of_the_rows(name, rows):
    """On a torus, a host's rows are not contiguous in the array. Together, the hosts hold each row once."""
    mesh = make_mesh(MeshConfig(), Topology.parse(name).devices(), rows)
    hosts = {device.process_index for device in mesh.devices.flat}
    layout = BatchLayout(mesh, rows)
    shares = [layout.share(host) for host in hosts]
    assert sorted(shares) == [(index, len(hosts)) for index in range(len(hosts))]
    assert sorted(row for held in layout.rows_by_process().values() for row in held) == list(range(rows))


def test_an_axis_may_be_a_part_of_a_dimension_of_the_torus():
    mesh = make_mesh(MeshConfig(), Topology.parse("2xv5e:16x16").devices(), 256)  # more chips than rows
    assert dict(mesh.shape) == {"data": 2, "fsdp": 128, "tensor": 2}


def test_one_chip_can_be_compiled_for():
    assert len(Topology.parse("v6e:1x1").devices()) == 1


def test_only_the_data_axis_spans_slices():
    mesh = make_mesh(MeshConfig(), Topology.parse("2xv5e:4x4").devices(), 32)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 16, "tensor": 1}
    slices = np.vectorize(slice_index)(mesh.devices)
    assert [set(part.flat) for part in slices] == [{0}, {1}]


@pytest.mark.parametrize("name", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_the_compiler_accepts_the_options_of_each_chip(name):
    mesh = make_mesh(MeshConfig(), Topology.parse(name).devices())
    options = compiler_options(mesh)
    assert options
    x = jax.ShapeDtypeStruct((8, 128), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    jax.jit(lambda x: x + 1, compiler_options=options).lower(x).compile()
    # an unknown option would be an error
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        jax.jit(lambda x: x + 1, compiler_options={"xla_tpu_no_such_option": "true"}).lower(x).compile()


def test_a_shape_that_the_compiler_does_not_know_is_an_error():
    with pytest.raises(ValueError, match="no TPU compiler for v5e:3x5"):
        Topology.parse("v5e:3x5").devices()
