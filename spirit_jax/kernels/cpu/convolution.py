"""Convolutions in the forms that run fastest on CPUs: few channels in pairs, many by short spectra."""

import functools
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Complex, Float

from spirit_jax.core.arithmetic import ceil_div
from spirit_jax.kernels.common import convolution as common

PAIR_CHANNELS = 16
"""The most channels that gain from `convolve_in_pairs`."""

SPECTRUM_TILE = 14
"""Outputs of a tile of `convolve_by_spectrum`."""

_SPECTRUM_WIDTH, _SPECTRUM_CHANNELS = 7, 128

_Kernel = TypeVar("_Kernel", Array, np.ndarray)


def convolution(
    x_btc: Float[Array, "B T C"], kernel_kio: Float[Array, "K C/groups O"], dilation: int = 1, groups: int = 1
) -> Float[Array, "B T O"]:
    """`reference.convolution`, in pairs where the channels are few, and by spectra in wide groups."""
    width, inputs, _ = kernel_kio.shape
    if groups == 1 and inputs <= PAIR_CHANNELS and dilation % 2 and width % 2:
        return convolve_in_pairs(x_btc, kernel_kio, dilation)
    if groups > 1 and inputs > 1 and dilation == 1:
        return convolve_groups_by_spectrum(x_btc, group_spectrum(kernel_kio, groups), width)
    return common.convolution(x_btc, kernel_kio, dilation, groups)


def convolve_in_pairs(
    x_btc: Float[Array, "B T C"], kernel_kio: Float[Array, "K C O"], dilation: int = 1
) -> Float[Array, "B T O"]:
    """`reference.convolution` of odd width and dilation, outputs 2n and 2n + dilation side by side as channels.

    One convolution of stride 2 makes both. It has one more tap, which is zero for either output: a small price where
    the processor's vectors are wider than the channels are many.
    """
    batch, time, _ = x_btc.shape
    width, _, outputs = kernel_kio.shape
    pairs, late = (time + 1) // 2, (dilation - 1) // 2  # output 2m + 1 is the second one of pair m - late
    sides = [jnp.pad(kernel_kio, (ends, (0, 0), (0, 0))) for ends in ((0, 1), (1, 0))]
    before, after = width // 2 * dilation + 2 * late, (width - width // 2) * dilation - 1 + time % 2
    y_b1no = lax.conv_general_dilated(
        x_btc[:, None],
        jnp.concatenate(sides, axis=-1)[None],
        window_strides=(1, 2),
        padding=((0, 0), (before, after)),
        rhs_dilation=(1, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    y_bnfo = y_b1no.reshape(batch, late + pairs, 2, outputs)
    return jnp.stack([y_bnfo[:, late:, 0], y_bnfo[:, :pairs, 1]], axis=2).reshape(batch, -1, outputs)[:, :time]


def gains_from_spectrum(width: int, inputs: int, outputs: int) -> bool:
    """Whether a convolution of these channels is faster by `convolve_by_spectrum`."""
    return _SPECTRUM_WIDTH <= width <= SPECTRUM_TILE + 1 and min(inputs, outputs) >= _SPECTRUM_CHANNELS


def convolve_by_spectrum(
    x_btc: Float[Array, "B T C"], spectrum_rio: Float[Array, "R C O"], width: int, dilation: int = 1
) -> Float[Array, "B T O"]:
    """`reference.convolution` of odd width for the kernel `kernel_spectrum(kernel)`.

    It takes about 2 multiplications for each output and pair of channels, where the formula takes K. Each phase of the
    dilation is cut into tiles of 14 outputs, which are transformed, multiplied with the kernel's spectrum as matrices
    over channels at each frequency, and transformed back: three matrix products.
    """
    batch, time, inputs = x_btc.shape
    rank, _, outputs = spectrum_rio.shape
    signal_rl, _, back_tr = _spectrum(SPECTRUM_TILE, width)
    length = signal_rl.shape[1]
    tiles = ceil_div(time, dilation * SPECTRUM_TILE)
    before = width // 2 * dilation
    after = (tiles + 1) * SPECTRUM_TILE * dilation - before - time
    x_bntpc = jnp.pad(x_btc, ((0, 0), (before, after), (0, 0))).reshape(batch, -1, SPECTRUM_TILE, dilation, inputs)
    x_bnlpc = jnp.concatenate([x_bntpc[:, :-1], x_bntpc[:, 1:, : length - SPECTRUM_TILE]], axis=2)
    x_rmc = jnp.matmul(signal_rl, x_bnlpc.transpose(2, 0, 1, 3, 4).reshape(length, -1)).reshape(rank, -1, inputs)
    y_tmo = jnp.matmul(back_tr, jnp.matmul(x_rmc, spectrum_rio).reshape(rank, -1))
    y_bntpo = y_tmo.reshape(SPECTRUM_TILE, batch, tiles, dilation, outputs).transpose(1, 2, 0, 3, 4)
    return y_bntpo.reshape(batch, -1, outputs)[:, :time]


def spectrum_shape(width: int, inputs: int, outputs: int) -> tuple[int, int, int]:
    """The shape of `kernel_spectrum` of a kernel of this shape."""
    return len(_spectrum(SPECTRUM_TILE, width)[1]), inputs, outputs


def kernel_spectrum(kernel_kio: Float[np.ndarray, "K C O"]) -> Float[np.ndarray, "R C O"]:
    """The spectrum with which `convolve_by_spectrum` multiplies."""
    width, inputs, outputs = kernel_kio.shape
    spectrum = _spectrum(SPECTRUM_TILE, width)[1] @ kernel_kio.reshape(width, -1)
    return spectrum.reshape(spectrum_shape(width, inputs, outputs))


@functools.cache
def _spectrum(tile: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices signal [R, L], kernel [R, K], back [tile, R]: back @ ((signal @ x) * (kernel @ w)) correlates x and w.

    The cyclic correlation has an even length L >= tile + K - 1 and is taken by the real discrete Fourier transform. It
    needs one product at the frequencies 0 and L / 2, and three at each other one, which make a complex product (Gauss):
    with p1 = (xr + xi) wr, p2 = xr (wi - wr), p3 = xi (wr + wi) it is p1 - p3 + i (p1 + p2).
    """
    length = tile + width - 1 + (tile + width - 1) % 2
    angle = 2 * np.pi / length * np.arange(length // 2 + 1)[:, None] * np.arange(length)
    cos, sin = np.cos(angle), np.sin(angle)
    ends, inner = [0, -1], slice(1, -1)
    signal = np.concatenate([cos[ends], (cos - sin)[inner], cos[inner], -sin[inner]])
    real, imaginary = cos[:, :width], sin[:, :width]  # conjugate: a correlation
    kernel = np.concatenate([real[ends], real[inner], (imaginary - real)[inner], (real + imaginary)[inner]])
    weight = np.full((len(angle), 1), 2.0 / length)
    weight[ends] /= 2
    real, imaginary = (weight * cos)[:, :tile], (-weight * sin)[:, :tile]
    back = np.concatenate([real[ends], (real + imaginary)[inner], imaginary[inner], -real[inner]]).T
    return signal.astype(np.float32), kernel.astype(np.float32), back.astype(np.float32)


def convolve_groups_by_spectrum(
    x_btc: Float[Array, "B T C"], spectrum_fgio: Complex[Array, "F G I O"], width: int
) -> Float[Array, "B T G*O"]:
    """`reference.convolution` in groups for the kernel `group_spectrum(kernel, groups)`.

    Stretches of 2 K inputs are transformed, multiplied with the kernel's spectrum, and give K + 1 outputs each. XLA:CPU
    is slow at wide convolutions of few channels, such as the 128 taps of 48 channels in wav2vec 2.0, and ten times as
    slow at their gradients.
    """
    batch, time, size = x_btc.shape
    _, groups, inputs, _ = spectrum_fgio.shape
    hop = width + 1
    count = ceil_div(time, hop)
    x_btc = jnp.pad(x_btc, ((0, 0), (width // 2, count * hop + width - 1 - time), (0, 0)))
    x = jnp.stack([x_btc[:, i * hop : i * hop + 2 * width] for i in range(count)], 1)
    z = jnp.fft.rfft(x.reshape(batch * count, 2 * width, size), axis=1)
    z = jnp.einsum("rfgi,fgio->rfgo", z.reshape(*z.shape[:2], groups, inputs), spectrum_fgio)
    y = jnp.fft.irfft(z.reshape(*z.shape[:2], -1), 2 * width, axis=1)[:, :hop]
    return y.reshape(batch, count * hop, -1)[:, :time]


def group_spectrum(kernel_kio: _Kernel, groups: int) -> _Kernel:
    """The spectrum with which `convolve_groups_by_spectrum` multiplies, complex64 of K + 1 frequencies [F, G, I, O].

    NumPy in, NumPy out.
    """
    width, inputs, _ = kernel_kio.shape
    xp: Any = np if isinstance(kernel_kio, np.ndarray) else jnp
    spectrum = xp.conj(xp.fft.rfft(kernel_kio, 2 * width, axis=0)).reshape(width + 1, inputs, groups, -1)
    return xp.moveaxis(spectrum, 2, 1).astype(np.complex64)
