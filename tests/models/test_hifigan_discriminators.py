"""HiFi-GAN's discriminators and losses against PyTorch with the same weights: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from spirit_jax.models import hifigan_losses as losses
from spirit_jax.models.hifigan_config import DiscriminatorConfig, MelConfig
from spirit_jax.models.hifigan_discriminators import (
    Discriminators,
    fold_norms,
    iterate_power,
    parameter_count,
    split_norms,
)
from spirit_jax.models.mel import vocoder_mel
from tests.support import torch_discriminators as reference

# 128 channels keep two groups in the scale discriminators; 1000 samples are no multiple of 3.
CONFIG = DiscriminatorConfig(periods=(2, 3), scales=2, channels=128)
SAMPLES = 1000


@pytest.fixture(scope="module")
def pair():
    network = Discriminators(CONFIG)
    plain = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, SAMPLES)))["params"]
    params = split_norms(plain, jax.random.key(1))
    params = jax.tree.map(lambda x: x * 1.3 + 0.01, params)  # no norm is that of its kernel, no bias is zero
    twin = reference.TorchDiscriminators(CONFIG).eval()
    return network, params, twin, reference.load_params(twin, params)


def clips():
    rng = np.random.default_rng(0)
    return [rng.uniform(-0.9, 0.9, (2, SAMPLES)).astype(np.float32) for _ in range(2)]


def _assert_gradients_equal(found, expected):
    """Equal as a whole: one activation near zero, where the slope of a leaky ReLU jumps, may change a few elements."""
    assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)


def test_discriminators_and_losses_equal_torch_in_values_and_gradients(pair):
    network, params, twin, stacks = pair
    real, fake = clips()

    def outputs(params, audio):
        return network.apply({"params": fold_norms(params)}, audio)

    def all_losses(params, fake):
        recorded, made = outputs(params, real), outputs(params, fake)
        return (
            losses.discriminator_loss(recorded, made)
            + 3 * losses.adversarial_loss(made)
            + 5 * losses.feature_matching_loss(recorded, made)
        ), (recorded, made)

    (value, (recorded, made)), gradients = jax.jit(jax.value_and_grad(all_losses, argnums=(0, 1), has_aux=True))(
        params, fake
    )
    audio = torch.tensor(fake, requires_grad=True)
    real_there, fake_there = twin(torch.tensor(real)), twin(audio)
    expected = (
        reference.discriminator_loss(real_there, fake_there)
        + 3 * reference.adversarial_loss(fake_there)
        + 5 * reference.feature_matching_loss(real_there, fake_there)
    )
    expected.backward()
    for ours, there in zip(recorded + made, real_there + fake_there, strict=True):
        for x_bnc, y in zip(ours, there, strict=True):
            np.testing.assert_allclose(x_bnc, y.detach().numpy().transpose(0, 2, 1), rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradients[1], audio.grad.numpy(), rtol=1e-3, atol=1e-6)
    for name, stack in stacks.items():
        for part, conv in [*((f"conv_{i}", conv) for i, conv in enumerate(stack.convs)), ("scores", stack.scores)]:
            found = gradients[0][name][part]
            _assert_gradients_equal(found["bias"], conv.bias.grad.numpy())
            if name == "scale_0":
                there = conv.parametrizations.weight.original.grad.numpy().transpose(2, 1, 0)
                _assert_gradients_equal(found["weight"], there)
                assert not np.any(found["power"])
            else:
                for key in ("weight_g", "weight_v"):
                    there = getattr(conv, key).grad.numpy().transpose(2, 1, 0)
                    _assert_gradients_equal(found[key], there)


def test_power_iterations_find_the_largest_singular_value():
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(5, 3, 8)).astype(np.float32)
    layer = {"weight": jnp.asarray(weight), "power": jnp.ones(8) / np.sqrt(8), "bias": jnp.zeros(8)}
    for _ in range(100):
        layer = iterate_power(layer)
    largest = np.linalg.svd(weight.reshape(-1, 8), compute_uv=False)[0]
    np.testing.assert_allclose(fold_norms(layer)["kernel"], weight / largest, rtol=1e-5)


def test_full_size_has_the_published_number_of_parameters():
    # Kong et al. publish no number; 41.1 M and 29.6 M are counted from the layers that their appendix lists.
    shapes = jax.eval_shape(
        lambda key: split_norms(Discriminators().init(key, jnp.zeros((1, 8960)))["params"], key), jax.random.key(0)
    )
    trained = {
        path: leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(shapes) if "power" not in str(path[-1])
    }
    assert sum(trained.values()) == parameter_count(DiscriminatorConfig())
    periods = sum(size for path, size in trained.items() if "period" in str(path[0]))
    assert round(periods / 1e5) == 411
    assert round((sum(trained.values()) - periods) / 1e5) == 296


def test_mel_equals_torch_and_padding_is_not_heard():
    config = MelConfig(bands=20, window=256, hop=64)
    real, fake = clips()
    torch_mel = reference.TorchMel(config)
    audio = torch.tensor(fake, requires_grad=True)
    expected = F.l1_loss(torch_mel(audio), torch_mel(torch.tensor(real)))
    expected.backward()

    def loss(fake, real, lengths):
        (a, frames), (b, _) = vocoder_mel(fake, config, lengths), vocoder_mel(real, config, lengths)
        return losses.mel_loss(b, a, frames)

    value, gradient = jax.jit(jax.value_and_grad(loss), static_argnums=())(jnp.asarray(fake), jnp.asarray(real), None)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, audio.grad.numpy(), rtol=2e-3, atol=1e-7)
    padded = [np.concatenate([x, np.full((2, 320), 0.7, np.float32)], 1) for x in (fake, real)]
    lengths = np.full(2, SAMPLES, np.int32)
    value_padded, gradient_padded = jax.value_and_grad(loss)(*map(jnp.asarray, padded), lengths)
    np.testing.assert_allclose(value_padded, value, rtol=1e-6)
    np.testing.assert_allclose(gradient_padded[:, :SAMPLES], gradient, rtol=1e-3, atol=1e-7)
    assert not np.any(gradient_padded[:, SAMPLES:])


def test_duration_loss_is_the_masked_mean_and_ends_of_a_segment_do_not_count():
    units = np.array([7, 7, 3, 3, 3, 9, 3, 1, 1], np.int32)
    found, frames, count = losses.inner_runs(units, 7)
    assert (found[:count].tolist(), frames[:count].tolist()) == ([3, 9, 3], [3, 1, 1])
    assert losses.inner_runs(np.array([5, 5, 5], np.int32), 2)[2] == 0
    assert losses.inner_runs(np.array([5, 4], np.int32), 2)[2] == 0
    logs = np.array([[0.5, 1.0, 0.2, 9.0], [1.0, 9.0, 9.0, 9.0]], np.float32)
    durations = np.array([[3, 1, 1, 5], [2, 5, 5, 5]], np.int32)
    expected = np.mean((np.array([0.5, 1.0, 0.2, 1.0]) - np.log([4, 2, 2, 3])) ** 2)
    value, gradient = jax.value_and_grad(losses.duration_loss)(jnp.asarray(logs), durations, np.array([3, 1]))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert not np.any(gradient[0, 3:])
    assert not np.any(gradient[1, 1:])
    assert losses.duration_loss(jnp.asarray(logs), durations, np.array([0, 0])) == 0
