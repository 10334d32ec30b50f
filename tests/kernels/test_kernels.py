"""Every implementation of a kernel against its plain formula, values and gradients.

An implementation adds up the same float32 products as the formula in another order, so the two differ by some
roundings of the largest sum. `TOLERANCE` is that share of the largest value of each array; a wrong mask, tap or factor
changes values by far more. Implementations that need a TPU or a GPU run in Pallas' interpreter and by XLA here.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spirit_jax import kernels
from spirit_jax.kernels import gpu, reference, tpu
from spirit_jax.kernels.common import attention as query_blocks
from spirit_jax.kernels.common import convolution as common_convolution
from spirit_jax.kernels.common import cross_entropy as chunked
from spirit_jax.kernels.cpu import convolution as cpu_convolution
from spirit_jax.kernels.cpu.tiles import in_tiles
from spirit_jax.kernels.platform import Kernel

pytestmark = pytest.mark.optimized

TOLERANCE = 1e-5
"""About a hundred roundings of float32: sums are of up to 1200 products."""

Arguments = dict[str, Any]
"""Arguments of a kernel by name, which all its implementations share. Gradients are taken by its float JAX arrays."""


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(shape).normal(size=shape), jnp.float32)


def attention_arguments(rows: int, length: int, heads: int, kv_heads: int, size: int) -> Arguments:
    q, k, v = (
        normal(rows, length, count, size + extra)[..., :size]
        for count, extra in ((heads, 0), (kv_heads, 1), (kv_heads, 2))
    )
    return {"q_btnh": q, "k_btkh": k, "v_btkh": v}


PACKED = {
    "segment_ids_bt": jnp.asarray(
        [np.repeat([1, 2, 3, 4], [100, 28, 77, 51]), np.repeat([1, 2, 3, 0], [60, 120, 30, 46])], jnp.int32
    )
}
CAUSAL: Mapping[str, Arguments] = {
    "packed rows": attention_arguments(2, 256, 4, 2, 24) | PACKED,
    "one document": attention_arguments(1, 300, 2, 2, 16),
    "few positions": attention_arguments(2, 7, 4, 1, 8),
}
FUSED: Mapping[str, Arguments] = {"packed rows": attention_arguments(2, 256, 4, 2, 128) | PACKED}
BIDIRECTIONAL: Mapping[str, Arguments] = {
    "padded rows": {
        "q_btnh": normal(2, 70, 4, 16),
        "k_btnh": normal(2, 71, 4, 16)[:, 1:],
        "v_btnh": normal(2, 72, 4, 16)[:, 2:],
        "valid_bt": jnp.arange(70) < jnp.array([[70], [33]]),
    }
}
MATMUL: Mapping[str, Arguments] = {
    "one dimension": {"x": normal(2, 9, 16), "weight": normal(16, 4, 8)},
    "two dimensions": {"x": normal(2, 9, 4, 8), "weight": normal(4, 8, 16), "contracted": 2},
}
SWIGLU: Mapping[str, Arguments] = {"": {"gate": 3 * normal(2, 9, 33), "up": normal(2, 9, 34)[..., 1:]}}
LOSSES: Mapping[str, Arguments] = {
    f"z_loss={z_loss}": {
        "hidden_btd": normal(3, 300, 8),
        "head_dv": normal(8, 50),
        "targets_bt": jnp.arange(900).reshape(3, 300) * 7 % 50,
        "weights_bt": jnp.maximum(normal(3, 300), 0.0),
        "z_loss": z_loss,
    }
    for z_loss in (0.0, 0.01)
}
CONVOLUTIONS: Mapping[str, Arguments] = {
    f"T={time} C={channels} K={width} dilation={dilation}": {
        "x_btc": normal(2, time, channels),
        "kernel_kio": normal(width, channels, 4),
        "dilation": dilation,
    }
    for time, channels, width, dilation in (
        (1, 6, 7, 1),
        (4, 6, 3, 5),
        (31, 6, 7, 3),
        (41, 6, 11, 1),
        (200, 6, 11, 3),
        (31, 24, 7, 1),
    )
}
EVEN_DILATION: Mapping[str, Arguments] = {
    "dilation=2": {"x_btc": normal(2, 31, 6), "kernel_kio": normal(7, 6, 4), "dilation": 2}
}
GROUPS: Mapping[str, Arguments] = {
    f"{groups} groups K={width}": {
        "x_btc": normal(2, 40, 12),
        "kernel_kio": normal(width, 12 // groups, 12),
        "groups": groups,
    }
    for groups, width in ((12, 7), (4, 16), (3, 15))
}
TRANSPOSED: Mapping[str, Arguments] = {
    f"K={width} rate={rate}": {"x_btc": normal(2, 9, 6), "kernel_kio": normal(width, 6, 4), "rate": rate}
    for width, rate in ((11, 5), (8, 4), (4, 2), (2, 2), (5, 1), (16, 2))
}
NORMALIZED: Mapping[str, Arguments] = {
    "padded clips": {
        "audio_br": normal(2, 700),
        "lengths_b": jnp.array([700, 444]),
        "kernel_wc": normal(10, 6),
        "scale_c": normal(6),
        "bias_c": normal(7)[1:],
        "stride": 5,
        "eps": 1e-5,
    }
}

EXAMPLES: Mapping[Kernel, Mapping[str, Arguments]] = {
    kernels.causal_attention: CAUSAL,
    kernels.bidirectional_attention: BIDIRECTIONAL,
    kernels.matmul: MATMUL,
    kernels.swiglu: SWIGLU,
    kernels.cross_entropy: LOSSES,
    kernels.convolution: {**CONVOLUTIONS, **EVEN_DILATION, **GROUPS},
    kernels.transposed_convolution: TRANSPOSED,
    kernels.normalized_convolution: NORMALIZED,
}


def frozen(examples: Mapping[str, Arguments]) -> Mapping[str, Arguments]:
    """Examples whose kernel is a NumPy array: for implementations that prepare it once, and have no gradient by it."""
    return {
        name: arguments | {"kernel_kio": np.asarray(arguments["kernel_kio"])} for name, arguments in examples.items()
    }


def by_spectrum(x_btc, kernel_kio, dilation):
    spectrum_rio = jnp.asarray(cpu_convolution.kernel_spectrum(kernel_kio))
    assert spectrum_rio.shape == cpu_convolution.spectrum_shape(*kernel_kio.shape)
    return cpu_convolution.convolve_by_spectrum(x_btc, spectrum_rio, len(kernel_kio), dilation)


def by_group_spectrum(x_btc, kernel_kio, groups):
    spectrum_fgio = jnp.asarray(cpu_convolution.group_spectrum(kernel_kio, groups))
    return cpu_convolution.convolve_groups_by_spectrum(x_btc, spectrum_fgio, len(kernel_kio))


def by_phases(x_btc, kernel_kio, rate):
    phases_jim = common_convolution.phase_kernel(kernel_kio, rate)
    width, inputs, outputs = kernel_kio.shape
    assert phases_jim.shape == common_convolution.phase_shape(width, inputs, outputs, rate)
    return common_convolution.upsample_by_phases(x_btc, phases_jim, len(kernel_kio), rate)


def strided(audio_br, gain_b):
    """A function of audio for `in_tiles`: frames of 17 samples, 6 apart."""
    return reference.convolution(audio_br[:, :, None], normal(17, 1, 3))[:, 8:-8:6] * gain_b[:, None, None]


def strided_in_tiles(tile, audio_br, gain_b):
    return in_tiles(strided, audio_br, (gain_b,), hop=6, receptive_field=17, tile=tile)


AUDIO: Mapping[str, Arguments] = {"": {"audio_br": normal(2, 300), "gain_b": normal(2)}}

FORMS: list[tuple[Callable, Mapping[str, Arguments], Mapping[str, Callable]]] = [
    (
        reference.causal_attention,
        FUSED,
        {
            "splash": functools.partial(tpu.splash_attention, interpret=True),
            "arguments of cuDNN": functools.partial(gpu.cudnn_attention, implementation="xla"),
        },
    ),
    (
        reference.causal_attention,
        CAUSAL,
        {f"block={block}": functools.partial(query_blocks.causal_attention, block=block) for block in (64, 100)},
    ),
    (
        reference.bidirectional_attention,
        BIDIRECTIONAL,
        {"block=16": functools.partial(query_blocks.bidirectional_attention, block=16)},
    ),
    (
        reference.cross_entropy,
        LOSSES,
        {f"chunk={chunk}": functools.partial(chunked.cross_entropy, chunk=chunk) for chunk in (1, 70, 300)},
    ),
    (reference.convolution, CONVOLUTIONS, {"pairs": cpu_convolution.convolve_in_pairs}),
    (reference.convolution, {**CONVOLUTIONS, **EVEN_DILATION}, {"width": common_convolution.convolve_along_width}),
    (reference.convolution, frozen({**CONVOLUTIONS, **EVEN_DILATION}), {"spectrum": by_spectrum}),
    (reference.convolution, frozen(GROUPS), {"spectrum of groups": by_group_spectrum}),
    (reference.transposed_convolution, frozen(TRANSPOSED), {"prepared phases": by_phases}),
    (strided, AUDIO, {f"tile={tile}": functools.partial(strided_in_tiles, tile) for tile in (6, 50, 1000)}),
]
"""A formula, examples, and forms of it that the table of kernels does not hold, or holds with other options."""


def cases() -> Iterator[Any]:
    """(formula, implementation, arguments) of every implementation in the table of kernels, and of the forms above."""
    for kernel, examples in EXAMPLES.items():
        for platform, implementation in kernel.implementations.items():
            for example, arguments in examples.items():
                name = f"{kernel.__name__}-{platform}-{example}"
                yield pytest.param(kernel.reference, implementation, arguments, id=name)
    for formula, examples, forms in FORMS:
        for form, implementation in forms.items():
            for example, arguments in examples.items():
                yield pytest.param(formula, implementation, arguments, id=f"{formula.__name__}-{form}-{example}")


def values_and_gradients(function: Callable, arguments: Arguments) -> Any:
    """Output of a kernel, and the gradients of its loss, or of a sum of its values with weights of size one."""
    floats = {
        name: array
        for name, array in arguments.items()
        if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jnp.floating)
    }

    def objective(floats):
        values = function(**arguments | floats)
        if isinstance(values, reference.TokenLosses):
            return values.loss, values
        if "lengths_b" in arguments:  # frames past those of a clip are undefined
            frames_b = (arguments["lengths_b"] - 10) // 5 + 1
            values = jnp.where(jnp.arange(values.shape[1])[:, None] < frames_b[:, None, None], values, 0.0)
        return jnp.sum(values * normal(*values.shape)), values

    (_, values), gradients = jax.jit(jax.value_and_grad(objective, has_aux=True))(floats)
    return {"values": values, "gradients": gradients}


@pytest.fixture(scope="module")
def of_formulas():
    """What the formulas give, once for all their implementations: a function of a formula and its arguments."""
    found = {}

    def values(formula: Callable, arguments: Arguments) -> Any:
        key = formula, id(arguments)
        if key not in found:
            found[key] = values_and_gradients(formula, arguments)
        return found[key]

    return values


@pytest.mark.parametrize(("formula", "implementation", "arguments"), cases())
def test_implementation_equals_the_formula(formula, implementation, arguments, of_formulas):
    want = of_formulas(formula, arguments)
    got = values_and_gradients(implementation, arguments)

    def check(path, got, want):
        assert got.dtype == want.dtype
        largest = np.abs(np.asarray(want, np.float64)).max()
        np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * largest, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(check, got, want)


@pytest.mark.accelerator
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs a GPU")
def test_cudnn_attention_of_this_gpu_equals_the_formula():
    """The kernel is bfloat16, the formula float32; two hundredths of the largest value are a few roundings."""
    want = values_and_gradients(reference.causal_attention, FUSED["packed rows"])
    halves = {
        name: array.astype(jnp.bfloat16) if name.endswith("h") else array
        for name, array in FUSED["packed rows"].items()
    }
    got = values_and_gradients(gpu.cudnn_attention, halves)
    for found, expected in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        error = np.abs(np.asarray(found, np.float32) - expected).max() / np.abs(expected).max()
        assert error < 0.02


def test_every_kernel_has_examples():
    assert {kernel for kernel in vars(kernels).values() if isinstance(kernel, Kernel)} == set(EXAMPLES)


def test_blocks_of_queries_keep_no_matrix_of_weights():
    """The gradient's temporaries are a part of one float32 copy of all scores, of which the formula needs several."""
    rows, length, heads, size = 1, 1024, 8, 16
    shape = jax.ShapeDtypeStruct((rows, length, heads, size), jnp.float32)

    def temporaries(attention: Callable) -> int:
        gradient = jax.grad(lambda q, k, v: attention(q, k, v).sum(), (0, 1, 2))
        memory = jax.jit(gradient).lower(shape, shape, shape).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    scores = rows * heads * length * length * 4
    blocks = functools.partial(query_blocks.causal_attention, block=128)
    assert temporaries(blocks) < scores < temporaries(reference.causal_attention)
