"""Parameters as generation loads them, against the whole tree loaded by Orbax and changed at once; and how much is read at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spirit_jax import checkpoint
from spirit_jax.config import from_dict
from spirit_jax.inference import engine, network
from spirit_jax.inference.grammar import Grammar
from spirit_jax.inference.int8 import quantise_leaf
from spirit_jax.inference.loading import load_params
from spirit_jax.models import llama
from spirit_jax.models.llama import LlamaConfig
from spirit_jax.parallel.mesh import MeshConfig, make_mesh
from tests.support import checkpoints


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])


def model(dtype):
    stored = checkpoint.read_config(checkpoints.converted("small_expressive"))["model"]
    return from_dict(LlamaConfig, stored | {"dtype": dtype, "param_dtype": dtype})


def at_once(config, mesh, int8):
    """Stacked parameters, the whole of them in memory."""
    directory = checkpoints.converted("small_expressive")
    params = checkpoint.load_llm(directory, network.sharded_abstract_params(config, mesh))
    return jax.tree_util.tree_map_with_path(quantise_leaf, params) if int8 else params


def check_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_at_a_time_gives_the_same(mesh, dtype, int8):
    config = model(dtype)
    found = load_params(checkpoints.converted("small_expressive"), config, mesh, int8)
    check_equal(found, network.arrange(config, at_once(config, mesh, int8), mesh))
    if int8:
        assert found["layers"][0]["gate_up"]["int8"].dtype == jnp.int8


def test_int8_where_layers_stay_stacked(mesh, monkeypatch):
    """As on accelerators."""
    config = model("float32")
    monkeypatch.setattr(network, "on_cpu", lambda mesh: False)
    found = load_params(checkpoints.converted("small_expressive"), config, mesh, int8=True)
    check_equal(found, at_once(config, mesh, True))


def test_no_more_than_a_layer_of_a_weight_is_read_at_once(mesh, monkeypatch):
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_int8_weights_are_dense_a_layer_at_a_time(mesh, dtype):
    """Prefill and the decode loop work in less memory than three dense layers; all eight of them would be as much as no int8."""
    config = LlamaConfig(512, 128, 512, 8, 4, 4, dtype=dtype, param_dtype=dtype)
    full = jax.jit(lambda: llama.init_params(config, jax.random.key(0)))()
    layer = sum(x.nbytes for x in jax.tree.leaves(full["layers"])) // config.num_hidden_layers
    params = network.arrange(config, jax.tree_util.tree_map_with_path(quantise_leaf, full), mesh)
    program, one = engine.Program(config, mesh, -1, 0, False, False), np.ones(1, np.int32)
    grammar = Grammar(np.ones((6, 512), bool), np.zeros(512, np.int32), np.zeros((6, 7), np.int32))
    tables = engine.Tables(np.zeros((3, 512), bool), grammar)
    state, rows = engine._empty(program, params, 1, 64, 64), engine.Rows.of([engine.Request((), 8, 0)])
    common = (program, params, tables, state, rows)
    prompt = (one * 0, np.ones((1, 64), np.int32), one * 0, one * 64, one > 0)
    for function, arguments in ((engine._prefill, prompt), (engine._decode, (np.int32(8), np.bool_(False)))):
        assert function.lower(*common, *arguments).compile().memory_analysis().temp_size_in_bytes < 3 * layer
