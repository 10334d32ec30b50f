"""The next-token loss against PyTorch in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spirit_jax.kernels import reference
from spirit_jax.kernels.common import cross_entropy as chunked
from spirit_jax.models.losses import next_token_losses

B, T, D, V = 3, 11, 8, 20


@pytest.fixture(scope="module")
def arrays():
    """Hidden states, head, targets and weights."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(B, T, D)).astype(np.float32)
    head = rng.normal(size=(D, V)).astype(np.float32)
    targets = rng.integers(0, V, (B, T)).astype(np.int32)
    weights = (rng.uniform(size=(B, T)) * (rng.uniform(size=(B, T)) < 0.8)).astype(np.float32)
    return hidden, head, targets, weights


def torch_losses(hidden, head, targets, weights, z_loss):
    """The plain formula in float64, with its gradients by hidden states, head and weights."""
    leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (hidden, head, weights)]
    logits = leaves[0] @ leaves[1]
    nll = torch.nn.functional.cross_entropy(
        logits.reshape(-1, V), torch.tensor(targets).long().reshape(-1), reduction="none"
    )
    logsumexp = torch.logsumexp(logits, -1)
    loss = (leaves[2] * (nll.reshape(B, T) + z_loss * logsumexp**2)).sum()
    loss.backward()
    gradients = [np.asarray(x.grad) for x in leaves]
    return loss, nll.reshape(B, T), logsumexp, logits.argmax(-1), gradients


@pytest.mark.parametrize("chunk", [None, 1, 4, 11, 512], ids="chunk={}".format)
@pytest.mark.parametrize("z_loss", [0.0, 0.01], ids="z_loss={}".format)
def test_value_and_gradients_equal_torch(arrays, chunk, z_loss):
    """The plain formula (chunk None), and in chunks of positions."""
    hidden, head, targets, weights = arrays
    want, nll, logsumexp, argmax, gradients = torch_losses(hidden, head, targets, weights, z_loss)
    implementation = reference.cross_entropy if chunk is None else functools.partial(chunked.cross_entropy, chunk=chunk)

    def loss(hidden, head, weights):
        losses = implementation(hidden, head, targets, weights, z_loss)
        return losses.loss, losses

    (_, losses), got = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(hidden, head, weights)
    # 1e-5: float32 sums of about a hundred numbers of size one.
    np.testing.assert_allclose(losses.loss, want.detach(), rtol=1e-5)
    np.testing.assert_allclose(losses.nll_bt, nll.detach(), atol=1e-5)
    np.testing.assert_allclose(losses.logsumexp_bt, logsumexp.detach(), atol=1e-5)
    np.testing.assert_array_equal(losses.correct_bt, (argmax == torch.tensor(targets)).numpy())
    for a, b in zip(got, gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    evaluated = implementation(hidden, head, targets, weights, z_loss)
    for a, b in zip(evaluated, losses, strict=True):  # without gradients: another path, the same numbers
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_gradient_is_scaled_by_later_operations(arrays):
    hidden, head, targets, weights = arrays

    def sum_loss(hidden, head):
        return next_token_losses(hidden, head, targets, weights).loss

    plain = jax.grad(sum_loss, (0, 1))(hidden, head)
    scaled = jax.grad(lambda *x: sum_loss(*x) ** 2 / 7, (0, 1))(hidden, head)
    for a, b in zip(scaled, plain, strict=True):
        np.testing.assert_allclose(a, b * (2 * sum_loss(hidden, head) / 7), rtol=1e-5, atol=1e-6)


def test_a_boolean_mask_is_a_weight_of_one(arrays):
    hidden, head, targets, weights = arrays
    mask = weights > 0
    got = jax.grad(lambda h: next_token_losses(h, head, targets, mask).loss)(hidden)
    want = jax.grad(lambda h: next_token_losses(h, head, targets, mask.astype(np.float32)).loss)(hidden)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(got[~mask], 0)


def test_large_logits_do_not_overflow(arrays):
    hidden, head, targets, weights = arrays
    losses = next_token_losses(hidden * 1e4, head, targets, weights)
    _, nll, *_ = torch_losses(hidden * 1e4, head, targets, weights, 0.0)
    np.testing.assert_allclose(losses.nll_bt, nll.detach(), rtol=1e-5, atol=2e-2)  # scores near 1e5 are 0.008 apart


def test_bfloat16_hidden_states_keep_float32_losses(arrays):
    hidden, head, targets, weights = arrays
    hidden, head = (np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32)) for x in (hidden, head))
    half = jnp.asarray(hidden, jnp.bfloat16)
    losses = next_token_losses(half, jnp.asarray(head), targets, weights)
    _, nll, _, _, gradients = torch_losses(hidden, head, targets, weights, 0.0)
    np.testing.assert_allclose(losses.nll_bt, nll.detach(), atol=1e-5)  # products of bfloat16 are exact in float32
    got = jax.grad(lambda h, w: next_token_losses(h, w, targets, weights).loss, (0, 1))(half, jnp.asarray(head))
    assert [x.dtype for x in got] == [jnp.bfloat16, jnp.float32]
    for a, b in zip(got, gradients, strict=False):
        np.testing.assert_allclose(a.astype(np.float32), b, atol=2e-2)  # gradients of size one, 8 bits of mantissa


def test_the_logits_of_all_positions_never_exist():
    """The compiled gradient's temporaries stay well under one float32 copy of the logits."""
    b, t, d, v = 2, 256, 16, 4096
    shapes = ((b, t, d), (d, v)), ((b, t),)
    hidden, head = (jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes[0])
    targets, weights = jax.ShapeDtypeStruct((b, t), jnp.int32), jax.ShapeDtypeStruct((b, t), jnp.float32)

    def loss(hidden, head, targets, weights):
        losses: reference.TokenLosses = chunked.cross_entropy(hidden, head, targets, weights, 0.0, 32)
        return losses.loss

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, head, targets, weights).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < b * t * v * 4 / 2
