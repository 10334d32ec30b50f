"""Convolutions over time in the forms that run well: few channels in pairs, many by short spectra, upsampling by phases.

Activations are `[B, T, C]` and kernels `[width, in, out]`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spirit_jax.kernels.platform import platform

SPECTRUM_WIDTH, SPECTRUM_CHANNELS, SPECTRUM_TILE = 7, 128, 14
"""Narrowest kernel and fewest channels that gain from `convolve_by_spectrum` on CPU, and outputs of its tiles."""

PAIR_CHANNELS = 16
"""The most channels that gain from `convolve_in_pairs` on CPU."""


def convolve(
    x_btc: Float[Array, "B T C"], kernel_kio: Float[Array, "K C O"], dilation: int = 1
) -> Float[Array, "B T O"]:
    """Convolution of odd width with zeros around: output t reads `t + dilation * (k - K // 2)`."""
    in_pairs = platform() == "cpu" and kernel_kio.shape[1] <= PAIR_CHANNELS and dilation % 2
    return (convolve_in_pairs if in_pairs else convolve_directly)(x_btc, kernel_kio, dilation)


def convolve_directly(x_btc: Array, kernel_kio: Array, dilation: int) -> Array:
    """`convolve` as one two-dimensional convolution of height 1: on CPU faster than time along the height."""
    around = kernel_kio.shape[0] // 2 * dilation
    y_b1to = jax.lax.conv_general_dilated(
        x_btc[:, None],
        kernel_kio[None],
        window_strides=(1, 1),
        padding=((0, 0), (around, around)),
        rhs_dilation=(1, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y_b1to[:, 0]


def convolve_in_pairs(x_btc: Array, kernel_kio: Array, dilation: int) -> Array:
    """`convolve` of few channels and odd dilation: outputs 2 n and 2 n + dilation side by side, as twice the channels.

    One convolution of stride 2 makes them, with one tap more, which is zero for either: a small price where matrix units
    are wider than the channels are many.
    """
    batch, time, _ = x_btc.shape
    width, _, outputs = kernel_kio.shape
    pairs, late = (time + 1) // 2, (dilation - 1) // 2  # output 2 m + 1 is the second one of pair m - late
    sides = [jnp.pad(kernel_kio, (ends, (0, 0), (0, 0))) for ends in ((0, 1), (1, 0))]
    before, after = width // 2 * dilation + 2 * late, (width - width // 2) * dilation - 1 + time % 2
    y_b1no = jax.lax.conv_general_dilated(
        x_btc[:, None],
        jnp.concatenate(sides, axis=-1)[None],
        window_strides=(1, 2),
        padding=((0, 0), (before, after)),
        rhs_dilation=(1, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    y_bnfo = y_b1no.reshape(batch, late + pairs, 2, outputs)
    return jnp.stack([y_bnfo[:, late:, 0], y_bnfo[:, :pairs, 1]], axis=2).reshape(batch, -1, outputs)[:, :time]


def convolve_by_spectrum(x_btc: Array, spectrum_rio: Array, width: int, dilation: int) -> Array:
    """`convolve` by products of short spectra: about 2 multiplications an output and channel pair instead of K.

    Each phase is cut into tiles of 14 outputs. With the matrices of `_spectrum` the tiles are transformed, multiplied with
    `kernel_spectrum(kernel)` as matrices over channels at each frequency, and transformed back: three matrix products.
    """
    batch, time, inputs = x_btc.shape
    rank, _, outputs = spectrum_rio.shape
    signal_rl, _, back_tr = _spectrum(SPECTRUM_TILE, width)
    length = signal_rl.shape[1]
    tiles = -(-time // (dilation * SPECTRUM_TILE))
    before = width // 2 * dilation
    after = (tiles + 1) * SPECTRUM_TILE * dilation - before - time
    x_bntpc = jnp.pad(x_btc, ((0, 0), (before, after), (0, 0))).reshape(batch, -1, SPECTRUM_TILE, dilation, inputs)
    x_bnlpc = jnp.concatenate([x_bntpc[:, :-1], x_bntpc[:, 1:, : length - SPECTRUM_TILE]], axis=2)
    x_rmc = (signal_rl @ x_bnlpc.transpose(2, 0, 1, 3, 4).reshape(length, -1)).reshape(rank, -1, inputs)
    y_tmo = back_tr @ jnp.matmul(x_rmc, spectrum_rio).reshape(rank, -1)
    y_bntpo = y_tmo.reshape(SPECTRUM_TILE, batch, tiles, dilation, outputs).transpose(1, 2, 0, 3, 4)
    return y_bntpo.reshape(batch, -1, outputs)[:, :time]


def kernel_spectrum(kernel_kio: Float[np.ndarray, "K C O"]) -> Float[np.ndarray, "R C O"]:
    """What `convolve_by_spectrum` multiplies with."""
    width, inputs, outputs = kernel_kio.shape
    return (_spectrum(SPECTRUM_TILE, width)[1] @ kernel_kio.reshape(width, -1)).reshape(-1, inputs, outputs)


@functools.cache
def _spectrum(tile: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices `signal [R, L], kernel [R, K], back [tile, R]` with `correlate(x, w) = back @ ((signal @ x) * (kernel @ w))`.

    A cyclic correlation of even length L >= tile + K - 1 by the real discrete Fourier transform: one product at frequencies
    0 and L / 2, and three at each other, which are a complex product (Gauss): with p1 = (xr + xi) wr, p2 = xr (wi - wr),
    p3 = xi (wr + wi) it is p1 - p3 + i (p1 + p2).
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


def upsample(
    x_btc: Float[Array, "B T C"], phases_kim: Float[Array, "taps C rate*O"], width: int, rate: int
) -> Float[Array, "B T*rate O"]:
    """Transposed convolution with padding (width - rate) // 2, by `phase_kernel(kernel, rate)`.

    Input t adds `x[t] @ kernel[k]` to output `t * rate + k - padding`. The `rate` outputs that start at `t * rate` come out of one
    plain convolution side by side as channels, so that the upsampling itself is a reshape.
    """
    past, ahead = _phase_reach(width, rate)
    y_b1tm = jax.lax.conv_general_dilated(
        x_btc[:, None],
        phases_kim[None],
        window_strides=(1, 1),
        padding=((0, 0), (past, ahead)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    batch, time, _ = x_btc.shape
    return y_b1tm.reshape(batch, time * rate, -1)


def phase_kernel(kernel_kio: Float[Array, "K C O"], rate: int) -> Float[Array, "taps C rate*O"]:
    """What `upsample` convolves with: tap j of output phase i is tap `i + padding + (past - j) * rate` of the kernel."""
    width, inputs, outputs = kernel_kio.shape
    past, ahead = _phase_reach(width, rate)
    padding = (width - rate) // 2
    xp = np if isinstance(kernel_kio, np.ndarray) else jnp
    ends = (ahead * rate - padding, padding + (past + 1) * rate - width)
    taps_jrio = xp.pad(kernel_kio, (ends, (0, 0), (0, 0))).reshape(-1, rate, inputs, outputs)[::-1]
    return taps_jrio.swapaxes(1, 2).reshape(-1, inputs, rate * outputs)


def _phase_reach(width: int, rate: int) -> tuple[int, int]:
    """Inputs before and after input t that outputs `t * rate .. t * rate + rate - 1` read."""
    padding = (width - rate) // 2
    return (width - 1 - padding) // rate, (padding + rate - 1) // rate
