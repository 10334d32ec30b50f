"""The table of sharding rules: what it gives for the 7 B model, and what it refuses."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from spirit_jax.checkpoint import flatten
from spirit_jax.models import llama
from spirit_jax.parallel.mesh import AXES, MeshConfig, make_mesh
from spirit_jax.parallel.processes import gather_json
from spirit_jax.parallel.sharding import RULES, local_rows, named_sharding, partition_spec, put_batch, tree_shardings


def test_every_weight_of_the_7b_model_is_split_as_meant():
    axes = flatten(llama.logical_axes(llama.LlamaConfig()))
    specs = {name: partition_spec(axis, name) for name, axis in axes.items()}
    assert specs == {  # the layout of fully sharded data parallelism with Megatron's tensor parallelism, by hand
        "embed_tokens": PartitionSpec("tensor", "fsdp"),
        "lm_head": PartitionSpec("fsdp", "tensor"),
        "norm/weight": PartitionSpec("fsdp"),
        "layers/input_layernorm/weight": PartitionSpec(None, "fsdp"),
        "layers/post_attention_layernorm/weight": PartitionSpec(None, "fsdp"),
        "layers/self_attn/q_proj": PartitionSpec(None, "fsdp", "tensor", None),
        "layers/self_attn/k_proj": PartitionSpec(None, "fsdp", "tensor", None),
        "layers/self_attn/v_proj": PartitionSpec(None, "fsdp", "tensor", None),
        "layers/self_attn/o_proj": PartitionSpec(None, "tensor", None, "fsdp"),
        "layers/mlp/gate_proj": PartitionSpec(None, "fsdp", "tensor"),
        "layers/mlp/up_proj": PartitionSpec(None, "fsdp", "tensor"),
        "layers/mlp/down_proj": PartitionSpec(None, "tensor", "fsdp"),
    }


def test_the_table_names_real_mesh_axes():
    for rule in RULES.values():
        assert set((rule,) if isinstance(rule, str) else rule or ()) <= set(AXES)


def test_what_the_table_refuses():
    with pytest.raises(ValueError, match="w: no sharding rule for the logical axis 'wings'"):
        partition_spec(("embed", "wings"), "w")
    with pytest.raises(ValueError, match="w: logical axes 'heads' and 'mlp' both want the mesh axis 'tensor'"):
        partition_spec(("heads", "mlp"), "w")
    mesh = jax.sharding.AbstractMesh((1, 4, 2), AXES)
    with pytest.raises(
        ValueError, match="w: its 'embed' axis has size 6, which 4 devices of mesh axis 'fsdp' do not divide"
    ):
        named_sharding(mesh, ("embed",), (6,), "w")


def test_a_weight_that_does_not_divide_is_named():
    model = llama.LlamaConfig(
        vocab_size=130, hidden_size=64, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=1
    )
    mesh = jax.sharding.AbstractMesh((1, 1, 4), AXES)
    with pytest.raises(ValueError, match=r"embed_tokens: its 'vocab' axis has size 130, which 4 devices"):
        tree_shardings(mesh, llama.logical_axes(model), llama.abstract_params(model))


@pytest.mark.parametrize(
    ("config", "devices", "expected"),
    [
        (MeshConfig(), 8, (1, 8, 1)),
        (MeshConfig(data=2, tensor=2), 8, (2, 2, 2)),
        (MeshConfig(data=-1, fsdp=4), 8, (2, 4, 1)),
        (MeshConfig(data=1, fsdp=1, tensor=1), 1, (1, 1, 1)),
    ],
)
def test_mesh_sizes(config, devices, expected):
    assert tuple(config.sizes(devices).values()) == expected


def test_mesh_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="data 3 x fsdp 2 x tensor 1 does not use 8 devices"):
        MeshConfig(data=3).sizes(8)
    with pytest.raises(ValueError, match="at most one of them -1"):
        MeshConfig(data=-1, fsdp=-1)


def test_one_process_feeds_everything():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert isinstance(mesh, Mesh)
    assert local_rows(mesh, 8) == (0, 1)
    batch = {"inputs": np.arange(24).reshape(8, 3)}
    np.testing.assert_array_equal(put_batch(mesh, batch, 8)["inputs"], batch["inputs"])
    assert gather_json({"a": [1, 2]}) == [{"a": [1, 2]}]


def test_eight_devices_train_like_one():
    """Every mesh and accumulation gives the losses of one device, in a process with eight simulated ones."""
    subprocess.run([sys.executable, "-m", "tests.parallel.eight_devices"], check=True, timeout=280)
