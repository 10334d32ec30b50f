import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spirit_jax.kernels.attention import attention

B, T, N, K, H = 2, 7, 4, 2, 8


@pytest.fixture(scope="module")
def qkv():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(B, T, heads, H)).astype(np.float32) for heads in (N, K, K)]


def torch_attention(q, k, v, mask):
    """PyTorch's attention with key-value heads repeated; mask [B, T, S] True where a query sees a key."""
    q, k, v = (torch.tensor(x).transpose(1, 2) for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=torch.tensor(mask)[:, None])
    return out.transpose(1, 2).numpy()


def test_causal_with_grouped_queries(qkv):
    mask = np.broadcast_to(np.tril(np.ones((T, T), bool)), (B, T, T))
    np.testing.assert_allclose(attention(*qkv), torch_attention(*qkv, mask), atol=1e-5)


def test_documents_do_not_see_each_other(qkv):
    segments = np.array([[1, 1, 1, 2, 2, 3, 0], [1, 2, 2, 2, 2, 0, 0]])
    mask = np.tril(segments[:, :, None] == segments[:, None, :])
    got = attention(*qkv, segment_ids_bt=jnp.asarray(segments))
    np.testing.assert_allclose(got, torch_attention(*qkv, mask), atol=1e-5)


def test_queries_at_their_own_slots(qkv):
    """As with a cache: fewer queries than keys, and rows that stand at different places."""
    q, k, v = qkv
    slots = np.array([[2, 3], [5, 6]])
    mask = np.arange(T) <= slots[:, :, None]
    got = attention(q[:, :2], k, v, slots_bt=jnp.asarray(slots))
    np.testing.assert_allclose(got, torch_attention(q[:, :2], k, v, mask), atol=1e-5)


def test_bfloat16_in_and_out_with_float32_softmax(qkv):
    half = [jnp.asarray(x, jnp.bfloat16) for x in qkv]
    got = attention(*half)
    assert got.dtype == jnp.bfloat16
    mask = np.broadcast_to(np.tril(np.ones((T, T), bool)), (B, T, T))
    want = torch_attention(*(np.asarray(x.astype(jnp.float32)) for x in half), mask)
    np.testing.assert_allclose(got.astype(np.float32), want, atol=2e-2)  # values of size one, 8 bits of mantissa
