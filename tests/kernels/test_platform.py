"""Which implementation of a kernel a program gets."""

import jax
import jax.numpy as jnp
import pytest

from spirit_jax import kernels
from spirit_jax.kernels import gpu, platform, tpu
from spirit_jax.kernels.platform import Kernel, kernels_in_use, use_kernels


def mesh_of(platform_: str) -> jax.sharding.AbstractMesh:
    """A mesh of one device that is not there."""
    device = jax.sharding.AbstractDevice(device_kind="some chip", num_cores=1, platform=platform_)
    return jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)


def test_the_mesh_decides_whatever_machine_traces():
    assert platform.platform() == jax.default_backend() == "cpu"
    for name, expected in (("tpu", "tpu"), ("gpu", "gpu"), ("cuda", "gpu")):
        with jax.sharding.use_abstract_mesh(mesh_of(name)):
            assert platform.platform() == kernels_in_use() == expected
            assert kernels.swiglu.chosen() is kernels.swiglu.implementations[expected]


def test_the_environment_asks_for_the_formulas(monkeypatch):
    assert kernels.matmul.chosen() is kernels.matmul.implementations["cpu"]
    monkeypatch.setenv("SPIRIT_KERNELS", "reference")
    for name in ("cpu", "tpu"):
        with jax.sharding.use_abstract_mesh(mesh_of(name)):
            assert kernels_in_use() == "reference"
            assert platform.platform() == name
            for kernel in vars(kernels).values():
                if isinstance(kernel, Kernel):
                    assert kernel.chosen() is kernel.reference
    monkeypatch.setenv("SPIRIT_KERNELS", "fast")
    with pytest.raises(ValueError, match="SPIRIT_KERNELS is 'fast': expected 'reference' or nothing"):
        kernels_in_use()


def test_a_context_decides_before_the_mesh_and_the_environment(monkeypatch):
    monkeypatch.setenv("SPIRIT_KERNELS", "reference")
    with use_kernels("tpu"):
        assert platform.platform() == kernels_in_use() == "tpu"
        with use_kernels("reference"):
            assert (platform.platform(), kernels_in_use()) == ("cpu", "reference")
        assert kernels_in_use() == "tpu"
    assert kernels_in_use() == "reference"
    with (
        pytest.raises(ValueError, match="kernels of 'npu': expected one of reference, cpu, gpu, tpu"),
        use_kernels("npu"),
    ):
        pass


def test_a_platform_without_an_implementation_runs_the_formula():
    kernel = Kernel(lambda x: x + 1, cpu=lambda x: x + 2)
    for name, expected in (("cpu", 2), ("gpu", 1), ("reference", 1)):
        with use_kernels(name):
            assert kernel(0) == expected
    with_default = Kernel(lambda x: x + 1, default=lambda x: x + 3, cpu=lambda x: x + 2)
    for name, expected in (("cpu", 2), ("gpu", 3), ("tpu", 3), ("reference", 1)):
        with use_kernels(name):
            assert with_default(0) == expected


def test_fused_kernels_take_the_shapes_that_they_run():
    assert tpu.splash_takes((1, 256, 4, 128))
    assert not tpu.splash_takes((1, 100, 4, 128))
    assert not tpu.splash_takes((1, 256, 4, 64))
    assert gpu.cudnn_takes((1, 256, 4, 64), jnp.dtype("bfloat16"))
    assert not gpu.cudnn_takes((1, 256, 4, 64), jnp.dtype("float32"))
    assert not gpu.cudnn_takes((1, 200, 4, 64), jnp.dtype("bfloat16"))
    assert not gpu.cudnn_takes((1, 256, 4, 256), jnp.dtype("bfloat16"))


def test_accelerators_call_their_fused_kernel_where_it_fits(monkeypatch):
    """One call with a shape that fits, one with a shape that does not."""
    calls = []

    def fused(q, k, v, ids):
        calls.append(q.shape)
        return q

    monkeypatch.setattr(tpu, "splash_attention", fused)
    monkeypatch.setattr(gpu, "cudnn_attention", fused)
    for module in (tpu, gpu):
        for length in (256, 100):
            q = jnp.zeros((1, length, 2, 128), jnp.bfloat16)
            assert module.causal_attention(q, q, q).shape == q.shape
    assert calls == [(1, 256, 2, 128)] * 2
