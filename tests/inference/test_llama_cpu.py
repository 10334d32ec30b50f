"""The CPU implementation of the Llama decoder is held to `models/llama.py`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spirit_jax import checkpoint
from spirit_jax.inference import llama_cpu, network, scoring
from spirit_jax.inference.loading import model_config
from spirit_jax.models.llama import Llama, LlamaConfig
from spirit_jax.parallel.mesh import MeshConfig, make_mesh
from tests.support import checkpoints
from tests.support.steps import random_params

pytestmark = pytest.mark.optimized

forward = jax.jit(network.forward, static_argnums=(0, 6))


@pytest.fixture(scope="module")
def config() -> LlamaConfig:
    settings = checkpoint.read_config(checkpoints.converted("small_expressive"))
    return dataclasses.replace(model_config(settings, "config.json", "float32"), num_hidden_layers=2)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])


def test_both_layouts_equal_the_llama(config, mesh, monkeypatch):
    """Hidden states, logits and caches are equal: prompts are read in two chunks, with a token after them, in rows of
    the cache that are not the rows of the batch. The rows of the first chunk are read one after the other."""
    monkeypatch.setattr(llama_cpu, "_MOST_TOKENS", 8)
    params = random_params(config)
    params = jax.tree.map(lambda x: 3 * x, params)  # weights large enough for attention to be uneven
    tokens = np.random.default_rng(0).integers(5, 1000, (2, 13)).astype(np.int32)
    rows = np.array([2, 0])

    def run(params):
        cache = network.init_cache(config, params, 3, 16)
        hidden = []
        for first, last in ((0, 8), (8, 12), (12, 13)):
            at = np.tile(np.arange(first, last), (2, 1))
            x, cache = forward(config, params, tokens[:, first:last], at, cache, rows, first == 0)
            hidden.append(x)
        return network.logits(config, params, jnp.concatenate(hidden, 1)), cache

    reference = Llama(config)
    hidden_btd, _ = reference.apply({"params": params}, tokens)
    wanted = np.asarray(reference.apply({"params": params}, hidden_btd, method="logits"))
    stacked, per_layer = run(params), run(network.arrange(config, params, mesh))
    np.testing.assert_allclose(stacked[0], wanted, atol=1e-4)
    np.testing.assert_allclose(stacked[0], scoring.logits(config, mesh, params, tokens), atol=1e-4)
    np.testing.assert_allclose(per_layer[0], stacked[0], atol=1e-4)
    for index, one in enumerate(per_layer[1]):
        np.testing.assert_allclose(np.swapaxes(one.k_bksh, 1, 2), stacked[1].k_lbskh[index], atol=1e-4)
        np.testing.assert_allclose(np.swapaxes(one.v_bksh, 1, 2), stacked[1].v_lbskh[index], atol=1e-4)
    assert not np.any(stacked[1].k_lbskh[:, 1])


@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_bfloat16_is_as_exact_as_in_the_llama(config, mesh, batch):
    """A prompt and a token after it, alone (one column) and in a batch: the error against float32 is at most 1.5 times
    that of stacked layers."""
    params = random_params(config)
    tokens = np.random.default_rng(0).integers(5, 1000, (batch, 9)).astype(np.int32)

    def logits(dtype, params):
        cast = dataclasses.replace(config, dtype=dtype)
        cache, scores = network.init_cache(cast, params, batch, 16), []
        for first, last in ((0, 8), (8, 9)):
            at = np.tile(np.arange(first, last), (batch, 1))
            x, cache = forward(cast, params, tokens[:, first:last], at, cache, np.arange(batch), first == 0)
            scores.append(network.logits(cast, params, x))
        return np.concatenate(scores, 1)

    exact = logits("float32", params)
    stacked = np.abs(logits("bfloat16", params) - exact).max()
    per_layer = np.abs(logits("bfloat16", network.arrange(config, params, mesh)) - exact).max()
    assert 0 < per_layer < 1.5 * stacked, (per_layer, stacked)
