"""The plain formulas against PyTorch, and the implementations of this platform with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spirit_jax import kernels
from spirit_jax.kernels import reference
from spirit_jax.kernels.common import convolution as common_convolution
from spirit_jax.kernels.masked import standardize
from spirit_jax.kernels.platform import use_kernels

B, T, N, K, H = 2, 7, 4, 2, 8


@pytest.fixture(autouse=True, params=["reference", "cpu"])
def kernels_in_use(request):
    with use_kernels(request.param):
        yield


@pytest.fixture(scope="module")
def qkv() -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(B, T, heads, H)), jnp.float32) for heads in (N, K, K))
    return q, k, v


def torch_attention(q, k, v, *, mask) -> np.ndarray:
    """PyTorch's attention with key-value heads repeated; mask [B, T, S] is true where a query sees a key."""
    q, k, v = (torch.tensor(np.asarray(x)).transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=torch.tensor(mask)[:, None])
    return out.transpose(1, 2).numpy()


def test_causal_attention_with_grouped_queries(qkv):
    mask = np.broadcast_to(np.tril(np.ones((T, T), bool)), (B, T, T))
    np.testing.assert_allclose(kernels.causal_attention(*qkv), torch_attention(*qkv, mask=mask), atol=1e-5)


def test_documents_do_not_see_each_other(qkv):
    segments = np.array([[1, 1, 1, 2, 2, 3, 0], [1, 2, 2, 2, 2, 0, 0]])
    mask = np.tril(segments[:, :, None] == segments[:, None, :])
    got = kernels.causal_attention(*qkv, segment_ids_bt=jnp.asarray(segments))
    np.testing.assert_allclose(got, torch_attention(*qkv, mask=mask), atol=1e-5)


def test_queries_at_slots_of_a_cache(qkv):
    """Fewer queries than keys, and rows at different slots."""
    q, k, v = qkv
    slots = np.array([[2, 3], [5, 6]])
    mask = np.arange(T) <= slots[:, :, None]
    got = kernels.cached_attention(q[:, :2], k, v, jnp.asarray(slots))
    np.testing.assert_allclose(got, torch_attention(q[:, :2], k, v, mask=mask), atol=1e-5)


def test_bidirectional_attention_sees_all_valid_positions(qkv):
    q, k, v = qkv
    k, v = (jnp.repeat(x, N // K, axis=2) for x in (k, v))
    valid = np.arange(T) < np.array([[T], [4]])
    mask = np.broadcast_to(valid[:, None], (B, T, T))
    got = kernels.bidirectional_attention(q, k, v, jnp.asarray(valid))
    np.testing.assert_allclose(got, torch_attention(q, k, v, mask=mask), atol=1e-5)


def test_bfloat16_in_and_out_with_float32_softmax(qkv):
    q, k, v = half = [jnp.asarray(x, jnp.bfloat16) for x in qkv]
    got = kernels.causal_attention(q, k, v)
    assert got.dtype == jnp.bfloat16
    mask = np.broadcast_to(np.tril(np.ones((T, T), bool)), (B, T, T))
    want = torch_attention(*(np.asarray(x.astype(jnp.float32)) for x in half), mask=mask)
    np.testing.assert_allclose(got.astype(np.float32), want, atol=2e-2)  # values of size one, 8 bits of mantissa


@pytest.mark.parametrize(
    ("time", "dilation", "width"), [(1, 1, 7), (4, 5, 3), (31, 3, 7), (41, 1, 11), (200, 3, 11), (31, 2, 7)]
)
def test_convolution(time, dilation, width):
    """PyTorch in float64. Sums of up to 66 products of unit variance: 1e-5 is 1e-6 of their size."""
    rng = np.random.default_rng(time)
    x, kernel = rng.standard_normal((2, time, 6), np.float32), rng.standard_normal((width, 6, 4), np.float32)
    signal, weight = torch.tensor(x).mT.double(), torch.tensor(kernel).permute(2, 1, 0).double()
    expected = torch.nn.functional.conv1d(signal, weight, dilation=dilation, padding=width // 2 * dilation).mT
    got = kernels.convolution(jnp.asarray(x), jnp.asarray(kernel), dilation)
    np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize(("width", "rate"), [(11, 5), (8, 4), (4, 2), (2, 2), (5, 1), (16, 2)])
def test_transposed_convolution(width, rate):
    rng = np.random.default_rng(width)
    x, kernel = rng.standard_normal((2, 9, 6), np.float32), rng.standard_normal((width, 6, 4), np.float32)
    expected = torch.nn.functional.conv_transpose1d(
        torch.tensor(x).mT, torch.tensor(kernel).permute(1, 2, 0), stride=rate, padding=(width - rate) // 2
    ).mT
    got = kernels.transposed_convolution(jnp.asarray(x), jnp.asarray(kernel), rate)
    np.testing.assert_allclose(got, expected, atol=2e-5)


def hard_sounds() -> tuple[jax.Array, np.ndarray]:
    """A hum, a hum with an offset in faint noise, and white noise: [3, 16000], and how much of each is valid."""
    time, rng = np.arange(16_000) / 16_000, np.random.default_rng(0)
    hum = 0.5 * np.sin(2 * np.pi * 100 * time)
    rows = [hum, 0.3 + hum + 1e-4 * rng.normal(size=16_000), rng.normal(size=16_000)]
    return jnp.asarray(np.stack(rows), jnp.float32), np.array([16_000, 12_345, 9_000])


def test_normalized_convolution_is_as_exact_as_float32_allows():
    """Filters of every band, so that some pass a ten-thousandth of what is loud. Against float64.

    3 times the largest error of the norm taken of the convolution's output in float32, as PyTorch does.
    """
    audio, samples = hard_sounds()
    basis = np.cos(np.pi / 10 * (np.arange(10)[:, None] + 0.5) * np.arange(10))  # cosines from slow to fast
    basis *= np.sqrt(np.where(np.arange(10) == 0, 1, 2) / 10)
    kernel = np.concatenate([basis, np.random.default_rng(1).normal(size=(10, 6))], 1).astype(np.float32)
    frames, counts = common_convolution.sliding_frames(audio, 10, 5), (samples - 10) // 5 + 1
    assert frames.shape == (3, 3199, 10)
    np.testing.assert_array_equal(frames[1, 7], audio[1, 35:45])
    ones, zeros = jnp.ones(16), jnp.zeros(16)
    ours = kernels.normalized_convolution(audio, jnp.asarray(samples), jnp.asarray(kernel), ones, zeros, 5, 1e-5)
    plain = standardize(jnp.einsum("btw,wc->btc", frames, kernel), jnp.asarray(counts), 1e-5)
    for row, count in enumerate(counts):
        y = np.asarray(frames, np.float64)[row, :count] @ kernel
        exact = (y - y.mean(0)) / np.sqrt(y.var(0) + 1e-5)
        error, usual = (np.abs(np.asarray(found)[row, :count] - exact).max() for found in (ours, plain))
        assert error <= 3 * usual, (row, error, usual)


def test_cross_entropy_is_pytorch_s():
    """Sums of eight products and of fifty exponentials, float32."""
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(3, 11, 8)).astype(np.float32), rng.normal(size=(8, 50)).astype(np.float32)
    targets, weights = rng.integers(0, 50, (3, 11)), rng.uniform(size=(3, 11)).astype(np.float32)
    got = kernels.cross_entropy(
        jnp.asarray(hidden), jnp.asarray(head), targets_bt=jnp.asarray(targets), weights_bt=jnp.asarray(weights)
    )
    logits = torch.tensor(hidden).double() @ torch.tensor(head).double()
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten(), reduction="none")
    np.testing.assert_allclose(got.nll_bt, nll.reshape(3, 11), atol=1e-5)
    np.testing.assert_allclose(got.loss, (nll.reshape(3, 11) * torch.tensor(weights)).sum(), rtol=1e-5)
    np.testing.assert_allclose(got.logsumexp_bt, torch.logsumexp(logits, -1), atol=1e-5)
    np.testing.assert_array_equal(got.correct_bt, logits.argmax(-1).numpy() == targets)


def test_masked_scores_are_finite():
    """A row with nothing to attend to averages all values instead of giving NaN."""
    q = jnp.ones((1, 3, 1, 4))
    v = jnp.arange(12.0).reshape(1, 3, 1, 4)
    got = reference.masked_attention(q, q, v, jnp.zeros((1, 3, 3), bool))
    np.testing.assert_allclose(got[0, :, 0], np.broadcast_to(v.mean(1)[0, 0], (3, 4)), rtol=1e-6)
