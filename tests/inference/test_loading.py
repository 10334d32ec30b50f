"""Loading layer by layer gives the parameters that loading all at once gives, and takes little memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spirit_jax import checkpoint
from spirit_jax.checkpoint import CheckpointError
from spirit_jax.config import from_dict
from spirit_jax.inference import network
from spirit_jax.inference.loading import load_params, model_config
from spirit_jax.models import quantized
from spirit_jax.models.llama import LlamaConfig
from spirit_jax.parallel.mesh import MeshConfig, make_mesh
from tests.support import checkpoints


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])


def model(dtype):
    stored = checkpoint.read_config(checkpoints.converted("small_expressive"))["model"]
    return from_dict(LlamaConfig, stored | {"dtype": dtype, "param_dtype": dtype})


def at_once(config, mesh, quantize):
    """Stacked parameters, all in memory."""
    directory = checkpoints.converted("small_expressive")
    params = checkpoint.load_llm(directory, network.sharded_abstract_params(config, mesh))
    return params if quantize is None else quantized.quantize_tree(params, quantize)


def check_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_layer_by_layer_equals_loading_at_once(mesh, dtype, quantize):
    config = model(dtype)
    found = load_params(checkpoints.converted("small_expressive"), config, mesh, quantize)
    check_equal(found, network.arrange(config, at_once(config, mesh, quantize), mesh))
    if quantize is not None:
        assert found["layers"][0]["gate_up"][quantize].dtype == jnp.int8


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_weights_stay_stacked_where_the_plain_formulas_are_asked_for(mesh, monkeypatch, quantize):
    config = model("float32")
    monkeypatch.setenv("SPIRIT_KERNELS", "reference")
    found = load_params(checkpoints.converted("small_expressive"), config, mesh, quantize)
    check_equal(found, at_once(config, mesh, quantize))
    assert network.arrange(config, found, mesh) is found


def test_at_most_one_layer_of_a_weight_is_read_at_once(mesh, monkeypatch):
    config, read = model("float32"), []
    whole = checkpoint.StoredArray.__getitem__

    def recorded(self, index):
        array = whole(self, index)
        read.append((self.shape, array.shape))
        return array

    monkeypatch.setattr(checkpoint.StoredArray, "__getitem__", recorded)
    load_params(checkpoints.converted("small_expressive"), config, mesh)
    shapes = jax.tree.leaves(network.sharded_abstract_params(config, mesh)["layers"])
    assert len(read) == config.num_hidden_layers * len(shapes) + 3  # embedding, last norm and head
    assert sum(got == stored[1:] for stored, got in read) == config.num_hidden_layers * len(shapes)


def test_a_config_that_is_no_llama_is_refused():
    with pytest.raises(CheckpointError, match="run.yaml: neither a checkpoint nor a config with a section 'model'"):
        model_config({"seed": 1}, "run.yaml")
    with pytest.raises(CheckpointError, match="config.json: 'model' does not describe a Llama .*hidden"):
        model_config({"model": {"hidden": 3}}, "config.json")
    with pytest.raises(CheckpointError, match="dtype must be one of float32, bfloat16, found 'float8'"):
        model_config({"model": {}}, "config.json", "float8")


@pytest.mark.parametrize("name", ["q_proj", "o_proj", "down_proj"])
def test_weights_in_4_bits_are_within_half_a_step(name):
    """Each group of 32 inputs has a scale; 48 inputs have groups of 16, the largest divisor of both."""
    shape = {"q_proj": (3, 64, 2, 16), "o_proj": (3, 2, 16, 64), "down_proj": (3, 48, 64)}[name]
    weight = jax.random.normal(jax.random.key(0), shape)
    found = quantized.quantize(name, weight, "int4")
    axis = len(shape) + quantized.CONTRACTED[name][-1]
    size = {"q_proj": 32, "o_proj": 16, "down_proj": 16}[name]
    assert found["int4"].nbytes == weight.size // 2
    assert found["scale"].shape[axis] == shape[axis] // size
    error = np.abs(np.asarray(quantized.to_float(found, jnp.float32) - weight))
    step = np.repeat(np.asarray(found["scale"], np.float32), size, axis)
    assert (error <= step * 0.52).all()  # the scale in bfloat16 may be a 256th too small for the largest value
    assert (np.asarray(quantized.quantize(name, 0 * weight, "int4")["int4"]) == 0).all()


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        (LlamaConfig(), "int2", "quantize must be int8 or int4, found 'int2'"),
        (LlamaConfig(64, 12, 30, 1, 3, 3), "int4", "int4 needs widths that 4 divides; intermediate_size is 30"),
    ],
)
def test_weights_that_cannot_be_quantized_are_refused(mesh, model, kind, message):
    with pytest.raises(CheckpointError, match=message):
        load_params(checkpoints.converted("small_expressive"), model, mesh, kind)
