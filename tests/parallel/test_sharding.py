"""The table of sharding rules: the specs of the 7 B model, and the errors; meshes and batch layouts."""

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
from spirit_jax.parallel.sharding import RULES, BatchLayout, named_sharding, partition_spec, tree_shardings
from tests.support.compilation import fast_environment


def test_weights_of_the_7b_model_are_split_by_fsdp_and_tensor_parallelism():
    axes = flatten(llama.logical_axes(llama.LlamaConfig()))
    specs = {name: partition_spec(axis, name) for name, axis in axes.items()}
    assert specs == {  # by hand: fully sharded data parallelism with Megatron's tensor parallelism
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


def test_the_table_names_existing_mesh_axes():
    for rule in RULES.values():
        assert set((rule,) if isinstance(rule, str) else rule or ()) <= set(AXES)


def test_unknown_colliding_and_indivisible_axes_are_named():
    with pytest.raises(ValueError, match="w: no sharding rule for the logical axis 'wings'"):
        partition_spec(("embed", "wings"), "w")
    with pytest.raises(ValueError, match="w: logical axes 'heads' and 'mlp' both want the mesh axis 'tensor'"):
        partition_spec(("heads", "mlp"), "w")
    mesh = jax.sharding.AbstractMesh((1, 4, 2), AXES)
    with pytest.raises(
        ValueError, match="w: its 'embed' axis has size 6, which 4 devices of mesh axis 'fsdp' do not divide"
    ):
        named_sharding(mesh, ("embed",), (6,), "w")


def test_an_indivisible_weight_is_named():
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
def test_mesh_sizes_are_chosen_for_the_devices(config, devices, expected):
    assert tuple(config.sizes(devices).values()) == expected


def test_mesh_sizes_that_do_not_fit_are_errors():
    with pytest.raises(ValueError, match="data 3 x fsdp 2 x tensor 1 does not use 8 devices"):
        MeshConfig(data=3).sizes(8)
    with pytest.raises(ValueError, match="at most one of them -1"):
        MeshConfig(data=-1, fsdp=-1)


def test_a_single_process_feeds_the_whole_batch():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert isinstance(mesh, Mesh)
    layout = BatchLayout(mesh, rows=8)
    assert layout.share() == (0, 1)
    batch = {"inputs": np.arange(24).reshape(8, 3)}
    np.testing.assert_array_equal(layout.put(batch)["inputs"], batch["inputs"])
    assert gather_json({"a": [1, 2]}) == [{"a": [1, 2]}]


def test_eight_devices_train_like_one():
    """Data parallelism, split weights, and all axes with accumulation give the losses of one device."""
    command = [sys.executable, "-m", "tests.support.train_on_eight_devices"]
    subprocess.run(command, env=fast_environment(devices=8), check=True, timeout=280)
