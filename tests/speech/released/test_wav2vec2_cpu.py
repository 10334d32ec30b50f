"""The CPU form of the encoders against the network."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spirit_jax.checkpoint import unflatten
from spirit_jax.convert.components import hubert
from spirit_jax.kernels import use_kernels
from spirit_jax.models.wav2vec2 import EncoderParts, Wav2Vec2Model
from spirit_jax.models.wav2vec2_config import Wav2Vec2Config
from spirit_jax.speech.released import wav2vec2_cpu

SMALL = Wav2Vec2Config(
    conv_layers=((16, 10, 5), (16, 3, 2), (24, 2, 2)),
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    intermediate_size=48,
    position_kernel=16,
    position_groups=4,
)
CONFIGS = {
    "group norm": {},
    "odd positional kernel": {"position_kernel": 15},
    "layer norm, biases, pre-norm": {"conv_norm": "layer", "conv_bias": True, "pre_norm": True},
    "batch norm in the positional convolution": {"position_norm": "batch"},
}


def random_parameters(config: Wav2Vec2Config) -> dict[str, Any]:
    """Random weights; scales, gains and variances are around one."""
    rng = np.random.default_rng(2)
    shapes = hubert.encoder_shapes(config)
    around_one = ("scale", "gain", "var")
    return unflatten(
        {
            path: np.abs(rng.normal(path.endswith(around_one), 0.2, shape).astype(np.float32))
            if path.endswith("var")
            else rng.normal(path.endswith(around_one), 0.2, shape).astype(np.float32)
            for path, shape in shapes.items()
        }
    )


@pytest.mark.parametrize("tile_frames", [1, 7, 2048])
@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_form_for_cpus_computes_the_same(changes, tile_frames, monkeypatch):
    """Layers apart, the positional convolution by spectra, and as many tiles as there are frames, some, and one."""
    config = Wav2Vec2Config(**{**vars(SMALL), **changes})
    params = random_parameters(config)
    audio, lengths = np.random.default_rng(3).normal(size=(2, 900)).astype(np.float32), np.array([900, 600])
    expected, frames = jax.jit(Wav2Vec2Model(config).apply)({"params": params}, audio, lengths)
    parts, prepared = wav2vec2_cpu.for_inference(params)
    assert set(prepared["layers"]) == {"layer_0", "layer_1"}
    assert "spectrum" in prepared["position"]
    assert "kernel" not in prepared["position"]
    monkeypatch.setattr(wav2vec2_cpu, "TILE_SAMPLES", tile_frames * config.hop)
    found, counts = jax.jit(Wav2Vec2Model(config, parts=parts).apply)({"params": prepared}, audio, lengths)
    np.testing.assert_array_equal(counts, frames)
    for row, count in enumerate(frames):  # 3e-5: a few float32 roundings of values of order one through two layers
        np.testing.assert_allclose(found[row, :count], expected[row, :count], rtol=0, atol=3e-5)


@pytest.mark.parametrize("kernels", ["reference", "gpu", "tpu"])
def test_other_platforms_take_the_network_as_it_is(kernels):
    params = {"layers": jnp.zeros(1)}
    with use_kernels(kernels):
        parts, kept = wav2vec2_cpu.for_inference(params)
    assert parts == EncoderParts()
    assert kept is params
