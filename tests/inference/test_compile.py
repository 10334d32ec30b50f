"""Prefill and decode can be compiled from shapes alone."""

import importlib.util
import math

import jax
import pytest

from spirit_jax.checkpoint import CheckpointError
from spirit_jax.costmodel.topology import Topology
from spirit_jax.inference.compile import compile_step, lower_steps, model_config
from spirit_jax.models.llama import LlamaConfig
from spirit_jax.parallel.mesh import MeshConfig, make_mesh

pytestmark = pytest.mark.optimized


def test_both_steps_compile_without_weights():
    """The decode step works in the memory of its cache: three slots of 512 + 100 tokens, padded to 1024, float32."""
    config = LlamaConfig(512, 64, 128, 2, 4, 2)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    lowered = lower_steps(config, mesh, slots=3, new_tokens=100)
    assert list(lowered) == ["prefill", "decode"]
    cache = 2 * 2 * 3 * 1024 * 2 * 16 * 4  # keys and values, layers, slots, tokens, heads, head size, bytes
    for step in lowered.values():
        memory = step.compile().memory_analysis()
        assert memory is not None
        assert memory.alias_size_in_bytes >= cache  # the state is updated in place
        assert cache < memory.output_size_in_bytes < 1.1 * cache


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'spirit_jax[tpu]'")
def test_prefill_on_a_tpu_host_moves_the_cache_of_one_layer_in_each_layer():
    """With four heads on a chip, XLA:TPU would copy the array that tokens are scattered into in every layer."""
    topology = Topology.parse("v5e-8")
    devices = topology.devices()
    mesh = make_mesh(MeshConfig(1, 1, len(devices)), devices, 8)

    def traffic(layers):
        config = LlamaConfig(512, 4096, 256, layers, 32, 32, max_position_embeddings=2048, dtype="bfloat16")
        lowered = lower_steps(config, mesh, slots=8, new_tokens=1536)["prefill"]
        return compile_step("prefill", lowered, topology, config, mesh, 8).bytes

    two, four, eight = traffic(2), traffic(4), traffic(8)
    assert (eight - four) / 4 == pytest.approx((four - two) / 2, rel=0.2)


def test_weights_in_4_bits_are_arguments_of_the_step():
    """Layers take an eighth of float32 and a scale of two bytes for 32 weights; embedding and head a quarter.

    The groups of o_proj are the 16 inputs of a head.
    """
    config = LlamaConfig(512, 64, 128, 2, 4, 2)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])

    def size(quantize):
        lowered = lower_steps(config, mesh, slots=1, new_tokens=8, quantize=quantize)["decode"]
        return sum(math.prod(info.shape) * info.dtype.itemsize for info in jax.tree.leaves(lowered.args_info))

    layers, o_proj, rows = 2 * (2 * 64 * (4 + 2) * 16 + 3 * 64 * 128), 2 * 4 * 16 * 64, 2 * 512 * 64
    scales = 4 * (512 + 512)  # of the embedding's rows and of the head's columns
    assert size(None) - size("int4") == layers * (4 - 0.5 - 2 / 32) - o_proj * 2 / 32 + rows * 3 - scales


def test_a_config_file_or_a_checkpoint_describes_the_model(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "model: {hidden_size: 64, num_attention_heads: 4, num_key_value_heads: 2, dtype: bfloat16}\nseed: 1\n"
    )
    config = model_config(path, None)
    assert (config.hidden_size, config.dtype, config.param_dtype, config.remat) == (64, "bfloat16", "bfloat16", "none")
    assert model_config(path, "float32").param_dtype == "float32"
    path.write_text("seed: 1\n")
    with pytest.raises(CheckpointError, match="run.yaml: neither a checkpoint nor a config with a section 'model'"):
        model_config(path, None)
    with pytest.raises(CheckpointError, match="nowhere: no such checkpoint directory"):
        model_config("nowhere", None)
