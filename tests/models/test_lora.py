"""Low-rank adapters: scale, dropout, rows and merging."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spirit_jax.models import llama, lora, quantized
from spirit_jax.models.lora import LoraConfig
from tests.support.adapters import random_adapter
from tests.support.steps import MODEL, VOCABULARY, random_params

CONFIG = LoraConfig(rank=4, alpha=8.0, rows_from=44)


@pytest.fixture(scope="module")
def base():
    return random_params(MODEL)


@pytest.fixture(scope="module")
def tokens_bt():
    return np.random.default_rng(1).integers(0, VOCABULARY, (2, 9)).astype(np.int32)


def _logits(variables, tokens_bt, **options):
    network = llama.Llama(MODEL)
    hidden, _ = network.apply(variables, tokens_bt, **options)
    return np.asarray(network.apply(variables, hidden, method="logits"))


def test_merged_weights_compute_what_base_and_adapter_compute(base, tokens_bt):
    adapter = random_adapter(MODEL, CONFIG)
    beside = _logits(lora.variables(MODEL, CONFIG, base, adapter), tokens_bt)
    merged = _logits({"params": lora.merge(MODEL, CONFIG, base, adapter)}, tokens_bt)
    np.testing.assert_allclose(beside, merged, atol=2e-5)  # float32 noise of logits around 1
    assert np.abs(beside - _logits({"params": base}, tokens_bt)).max() > 0.1


@pytest.mark.parametrize("config", [LoraConfig(rank=0), LoraConfig(rank=4, alpha=0.0)])
def test_rank_0_and_alpha_0_leave_the_base_bit_for_bit(base, tokens_bt, config):
    adapter = random_adapter(MODEL, config)
    expected = _logits({"params": base}, tokens_bt)
    np.testing.assert_array_equal(_logits(lora.variables(MODEL, config, base, adapter), tokens_bt), expected)
    jax.tree.map(np.testing.assert_array_equal, lora.merge(MODEL, config, base, adapter), base)


def test_a_fresh_adapter_computes_what_the_base_computes(base, tokens_bt):
    adapter = lora.init_adapter(MODEL, CONFIG, jax.random.key(3))
    adapter = lora.with_rows_of(MODEL, CONFIG, adapter, base)
    found = _logits(lora.variables(MODEL, CONFIG, base, adapter), tokens_bt)
    np.testing.assert_array_equal(found, _logits({"params": base}, tokens_bt))
    assert all(np.asarray(a).any() for a in jax.tree.leaves(adapter["layers"]["mlp"]["up_proj"]["lora_a"]))


def test_shapes_and_axes_of_every_array_agree():
    shapes, axes = lora.abstract_adapter(MODEL, CONFIG), lora.logical_axes(MODEL, CONFIG)
    jax.tree.map(lambda leaf, names: np.testing.assert_equal(len(names), leaf.ndim), shapes, axes)
    fresh = lora.init_adapter(MODEL, CONFIG, jax.random.key(0))
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert shapes["layers"]["self_attn"]["o_proj"]["lora_a"].shape == (2, 4, 8, 4)
    assert shapes["rows"] == {
        "embed_tokens": jax.ShapeDtypeStruct((6, 32), jnp.float32),
        "lm_head": jax.ShapeDtypeStruct((32, 6), jnp.float32),
    }


def test_dropout_leaves_out_inputs_of_updates_and_keeps_their_mean(base, tokens_bt):
    config = LoraConfig(rank=4, dropout=0.5, targets=["q_proj"])
    adapter = random_adapter(MODEL, config)
    variables = lora.variables(MODEL, config, base, adapter)
    without = _logits(variables, tokens_bt)
    first, again, other = (_logits(variables, tokens_bt, rngs={"dropout": jax.random.key(n)}) for n in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(first - without).max() > 1e-3


@pytest.mark.parametrize(("kind", "largest_error"), [("int8", 1e-3), ("int4", 2e-2)])
def test_a_base_in_few_bits_computes_what_its_values_in_floats_compute(base, tokens_bt, kind, largest_error):
    layers = {
        group: {
            name: quantized.quantize(name, weight, kind) if name in lora.TARGETS else weight
            for name, weight in weights.items()
        }
        for group, weights in base["layers"].items()
    }
    small = {**base, "layers": layers}
    adapter = random_adapter(MODEL, CONFIG)
    found = _logits(lora.variables(MODEL, CONFIG, small, adapter), tokens_bt)
    floats = quantized.dequantize(small, jnp.float32)
    np.testing.assert_allclose(found, _logits(lora.variables(MODEL, CONFIG, floats, adapter), tokens_bt), atol=1e-5)
    error = np.abs(np.asarray(floats["layers"]["mlp"]["up_proj"]) - base["layers"]["mlp"]["up_proj"]).max()
    assert 0 < error < largest_error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ["q_proj", "qkv"]}, "qkv: no such weights, choose among q_proj"),
        ({"targets": ["q_proj", "q_proj"]}, "a name comes twice"),
        ({"rank": -1}, "lora.rank must not be negative, found -1"),
        ({"dropout": 1.0}, "lora.dropout must lie in 0..1 without 1, found 1.0"),
        ({"alpha": float("nan")}, "lora.alpha must be a number"),
    ],
)
def test_wrong_values_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**options)


def test_rows_beyond_the_vocabulary_are_refused():
    with pytest.raises(ValueError, match="rows_from 50 lies beyond the 50 rows"):
        lora.check_fits(MODEL, LoraConfig(rows_from=50))
