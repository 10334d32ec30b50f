"""The CPU form of the vocoder against the network and against PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spirit_jax.checkpoint import flatten
from spirit_jax.kernels import use_kernels
from spirit_jax.models.hifigan import HifiGan, fold_weight_norm
from spirit_jax.speech.released import hifigan_cpu
from tests.support.small_vocoders import BASE, EXPRESSIVE, random_codes, random_vocoders, tensors


@pytest.mark.parametrize("config", [BASE, EXPRESSIVE], ids=["base", "expressive"])
@pytest.mark.parametrize("context", [(0, 0), (7, 9)])
def test_late_stages_in_tiles_equal_the_whole(config, context, monkeypatch):
    """Two rows with bounds of their own: all stages in tiles of 16 frames, three and the last one cut short."""
    _, network, params = random_vocoders(config)
    variables = {"params": fold_weight_norm(params)}
    arguments = [*random_codes(config, 2, 40 + sum(context)), np.array([0, 3]), np.array([37, 40])]
    whole = jax.jit(functools.partial(network.apply, method="generate", context=context))(variables, *arguments)
    monkeypatch.setattr(hifigan_cpu, "TILE_FRAMES", 16)
    monkeypatch.setattr(hifigan_cpu, "TILE_CONTEXT", 1000)
    assert hifigan_cpu.first_tiled_stage(network.config) == 0
    run = jax.jit(functools.partial(network.apply, method=hifigan_cpu.generate, context=context))
    np.testing.assert_allclose(run(variables, *arguments), whole, atol=1e-6)  # the rounding of one convolution


def test_stages_with_long_context_are_not_tiled(monkeypatch):
    _, network, _ = random_vocoders(BASE)
    first, second, _ = network.config.stage_context
    monkeypatch.setattr(hifigan_cpu, "TILE_CONTEXT", sum(first) - 1)
    assert sum(second) <= 3 * hifigan_cpu.TILE_CONTEXT
    assert hifigan_cpu.first_tiled_stage(network.config) == 1
    monkeypatch.setattr(hifigan_cpu, "TILE_CONTEXT", 0)
    assert hifigan_cpu.first_tiled_stage(network.config) == 2


def test_prepared_network_equals_torch():
    """128 channels: the convolutions that become spectra."""
    wide = {**BASE, "upsample_rates": [6], "upsample_kernel_sizes": [8], "upsample_initial_channel": 256}
    wide |= {"resblock_kernel_sizes": [7], "resblock_dilation_sizes": [[3]]}
    reference, network, params = random_vocoders(wide)
    folded = fold_weight_norm(params)
    network, generate, prepared = hifigan_cpu.for_inference(network.config, folded)
    assert {path for path in flatten(prepared) if path.endswith(("spectrum", "phases"))} == {
        "ups_0/phases",
        "resblocks_0/convs1_0/spectrum",
        "resblocks_0/convs2_0/spectrum",
    }
    arguments = random_codes(wide, 1, 20)
    with torch.inference_mode():
        expected = reference(*tensors(arguments)).numpy()
    found = jax.jit(functools.partial(network.apply, method=generate))({"params": prepared}, *arguments)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    bounds = np.zeros(1, int), np.full(1, 20)
    log_durations = jnp.asarray(network.apply({"params": prepared}, arguments[0], *bounds, method="log_durations"))
    with torch.inference_mode():
        expected_log = reference.log_durations(torch.tensor(arguments[0])).numpy()
        np.testing.assert_allclose(log_durations, expected_log, atol=5e-6)


@pytest.mark.parametrize("kernels", ["reference", "gpu", "tpu"])
def test_other_platforms_take_the_network_as_it_is(kernels):
    _, network, params = random_vocoders(BASE)
    with use_kernels(kernels):
        found, generate, kept = hifigan_cpu.for_inference(network.config, params)
    assert (found, generate) == (HifiGan(network.config), HifiGan.generate)
    assert kept is params
