"""Names of topologies, the least time of collectives by closed forms, and the mesh that is chosen for a pod."""

import dataclasses

import pytest

from spirit_jax.core.hardware import CHIPS
from spirit_jax.costmodel.topology import Topology
from spirit_jax.parallel.mesh import MeshConfig


@pytest.mark.parametrize(
    ("text", "name", "chips"),
    [
        ("v5e:16x16", "v5e:16x16", 256),
        ("v5e-256", "v5e:16x16", 256),
        ("v6e-256", "v6e:16x16", 256),
        ("v5p-128", "v5p:4x4x4", 64),  # TensorCores in the name, two a chip
        ("v4-128", "v4:4x4x4", 64),
        ("v5p:4x4x8", "v5p:4x4x8", 128),
        ("2xv5e:4x4", "2xv5e:4x4", 32),
        ("tpu7x-128", "tpu7x:4x4x4", 64),
    ],
)
def test_names_give_shape_and_number_of_chips(text, name, chips):
    topology = Topology.parse(text)
    assert (str(topology), topology.chips) == (name, chips)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h100-8", "expected a generation of v4, v5e, v5p, v6e, tpu7x and a size, as in v5e:16x16"),
        ("v5e:4x4x4", "a slice of v5e has 2 dimensions"),
        ("v5p-127", "known sizes are v5p-8, v5p-16"),
        ("v5e", "expected a generation"),
    ],
)
def test_a_name_of_no_topology_is_an_error(text, message):
    with pytest.raises(ValueError, match=message):
        Topology.parse(text)


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device of a topology."""

    coords: tuple[int, ...]
    slice_index: int


def chips(xs, ys, slice_index=0):
    return [Chip((x, y, 0), slice_index) for x in xs for y in ys]


def test_the_two_devices_of_a_chip_share_its_links():
    """TPU7x: both together take as long as one device of a chip with the same links."""
    topology, size = Topology.parse("tpu7x:4x4x4"), 1e9
    link = CHIPS["tpu7x"].link_bandwidth
    row = [Chip((x, 0, 0), 0) for x in range(4)]
    assert topology.seconds("all-gather", size, [*row, *row]) == pytest.approx(size * 7 / 8 / (2 * link))
    assert topology.seconds("all-gather", size, row) == pytest.approx(size * 3 / 4 / link)
    assert topology.seconds("all-gather", size, [row[0], row[0]]) == pytest.approx(size / 2 / (6 * link))
    assert topology.seconds("collective-permute", size, [*row, *row]) == pytest.approx(size / link)


def test_collectives_use_the_rings_that_they_extend_over():
    topology = Topology.parse("v5e:16x16")
    link, size = CHIPS["v5e"].link_bandwidth, 1e9
    row, pod = chips(range(16), [3]), chips(range(16), range(16))
    # a ring in both directions
    assert topology.seconds("all-gather", size, row) == pytest.approx(size * 15 / 16 / (2 * link))
    # both dimensions at once
    assert topology.seconds("reduce-scatter", size, pod) == pytest.approx(size * 255 / 256 / (4 * link))
    assert topology.seconds("all-reduce", size, pod) == pytest.approx(2 * size * 255 / 256 / (4 * link))
    # a part of a ring is a line, whose ends have one link
    assert topology.seconds("all-gather", size, row[:4]) == pytest.approx(size * 3 / 4 / link)
    assert topology.seconds("collective-permute", size, row[:2]) == pytest.approx(size / link)
    assert topology.seconds("all-gather", size, row[:1]) == 0
    # a dimension that is too short to be closed is a line too
    assert Topology.parse("v5e:4x4").seconds("all-gather", size, chips(range(4), [0])) == pytest.approx(
        size * 3 / 4 / link
    )


def test_collectives_between_slices_use_the_network():
    topology = Topology.parse("2xv5e:4x4")
    both = [*chips([0], [0]), *chips([0], [0], slice_index=1)]
    assert topology.seconds("all-reduce", 1e9, both) == pytest.approx(1e9 / CHIPS["v5e"].network_bandwidth)


@pytest.mark.parametrize(
    ("devices", "slices", "rows", "sizes"),
    [
        (256, 1, 256, (1, 256, 1)),  # every device a row
        (64, 1, 256, (1, 64, 1)),
        (512, 2, 512, (2, 256, 1)),  # only gradients cross slices
        (512, 1, 256, (1, 256, 2)),  # more devices than rows: two share one
        (512, 2, 256, (2, 128, 2)),
        (8, 1, None, (1, 8, 1)),
        (1, 1, 4, (1, 1, 1)),
    ],
)
def test_the_mesh_is_chosen_for_devices_slices_and_rows(devices, slices, rows, sizes):
    assert tuple(MeshConfig().sizes(devices, slices, rows).values()) == sizes


def test_only_data_spans_slices():
    with pytest.raises(ValueError, match="mesh.data 1 is not a multiple of the 2 slices"):
        MeshConfig(data=1).sizes(8, slices=2)
    assert MeshConfig(data=4).sizes(16, slices=2, rows=16) == {"data": 4, "fsdp": 4, "tensor": 1}
