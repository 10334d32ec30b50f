"""The kernels of accelerators against the formula, values and gradients; the TPU's in interpret mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from spirit_jax.kernels import flash_attention
from spirit_jax.kernels.attention import plain_attention

B, T, N, K, H = 2, 256, 4, 2, 128


@pytest.fixture(scope="module")
def inputs():
    """Packed rows, one with padding, and a cotangent."""
    rng = np.random.default_rng(0)
    q, k, v, cotangent = (rng.normal(size=(B, T, heads, H)).astype(np.float32) for heads in (N, K, K, N))
    segments = np.repeat([[1, 2, 3, 4], [1, 1, 2, 0]], [[100, 28, 77, 51][i] for i in range(4)], axis=1)
    return q, k, v, segments.astype(np.int32), cotangent


def formula(q, k, v, segments):
    mask = (segments[:, :, None] == segments[:, None, :]) & np.tril(np.ones((T, T), bool))
    return plain_attention(q, k, v, mask)


def value_and_gradients(attention, inputs):
    q, k, v, segments, cotangent = inputs
    out, pull = jax.vjp(lambda q, k, v: attention(q, k, v, segments), q, k, v)
    return out, *pull(cotangent)


@pytest.mark.parametrize(
    "kernel",
    [
        functools.partial(flash_attention.splash_attention, interpret=True),
        # cuDNN itself needs its GPU: the same call with XLA's implementation checks what it is asked for
        functools.partial(flash_attention.cudnn_attention, implementation="xla"),
    ],
    ids=["splash", "cudnn's arguments"],
)
def test_kernels_are_the_formula(inputs, kernel):
    want = jax.jit(functools.partial(value_and_gradients, formula))(inputs)
    got = jax.jit(functools.partial(value_and_gradients, kernel))(inputs)
    for name, ours, theirs in zip(("output", "dq", "dk", "dv"), got, want, strict=True):
        # float32 sums over up to 256 keys in another order, values of size one to ten
        np.testing.assert_allclose(ours, theirs, atol=5e-5, rtol=1e-4, err_msg=name)


def test_kernels_are_chosen_by_the_platform_of_the_mesh():
    """A mesh of TPUs gives the TPU's kernel, whatever machine traces; unfit shapes give none."""

    def chosen(length, head):
        return flash_attention.kernel_for(
            *(jax.ShapeDtypeStruct((1, length, heads, head), jnp.bfloat16) for heads in (4, 2))
        )

    assert jax.default_backend() == "cpu"
    assert chosen(256, 128) is None
    device = jax.sharding.AbstractDevice(device_kind="TPU v5e", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        assert chosen(256, 128) is not None
        assert chosen(100, 128) is None
        assert chosen(256, 64) is None


def test_sharded_over_rows_and_heads_by_the_rules():
    """What `shard_map` is told: rows over data and fsdp, heads over tensor, and whole where that does not divide."""
    import flax.linen as nn

    mesh = jax.sharding.AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
    rules = (("batch", ("data", "fsdp")), ("sequence", None), ("activation_heads", "tensor"), ("head_dim", None))
    with nn.logical_axis_rules(rules):
        spec = flash_attention._spec(mesh, flash_attention._AXES, (8, 256, 4, 128))
        assert spec == PartitionSpec(("data", "fsdp"), None, "tensor", None)
        assert flash_attention._spec(mesh, flash_attention._AXES, (3, 256, 4, 128))[0] is None


def test_flops_of_a_kernel_are_the_blocks_that_it_runs():
    """4096 positions in blocks of 512 queries and 1024 keys: 20 of 32 blocks touch the triangle."""
    shapes = [(1, 8, 4), (2, 32, 4096, 128), (2, 32, 4096, 128)]
    forward = flash_attention.kernel_flops("splash_mha_fwd_segmented_residuals.1", shapes)
    assert forward == 2 * 2 * 2 * 32 * 128 * (20 * 512 * 1024)
    assert flash_attention.kernel_flops("splash_mha_dkv_segmented_no_residuals.1", shapes) == 2.5 * forward
    assert flash_attention.kernel_flops("something_else", shapes) is None
