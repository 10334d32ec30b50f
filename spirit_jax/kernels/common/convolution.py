"""Convolutions in forms that are faster than XLA's own on every platform."""

import functools
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from spirit_jax.core.arithmetic import ceil_div
from spirit_jax.kernels import reference
from spirit_jax.kernels.masked import time_sum, valid_frames

_SUM_BLOCK = 256  # frames that are summed at once, as in `masked.time_sum`

_Kernel = TypeVar("_Kernel", Array, np.ndarray)


def convolution(
    x_btc: Float[Array, "B T C"], kernel_kio: Float[Array, "K C/groups O"], dilation: int = 1, groups: int = 1
) -> Float[Array, "B T O"]:
    """`reference.convolution`: one group along a width, a group for each channel by shifts, others as they are."""
    width, inputs, outputs = kernel_kio.shape
    if groups == 1:
        return convolve_along_width(x_btc, kernel_kio, dilation)
    if inputs == 1 and groups == outputs and width % 2 and dilation == 1:
        return depthwise_convolution(x_btc, kernel_kio[:, 0])
    return reference.convolution(x_btc, kernel_kio, dilation, groups)


def convolve_along_width(
    x_btc: Float[Array, "B T C"], kernel_kio: Float[Array, "K C O"], dilation: int = 1
) -> Float[Array, "B T O"]:
    """`reference.convolution` of one group, over the width of an image of height 1.

    XLA:CPU runs it faster than a convolution over the one dimension of time.
    """
    width = kernel_kio.shape[0]
    y_b1to = lax.conv_general_dilated(
        x_btc[:, None],
        kernel_kio[None],
        window_strides=(1, 1),
        padding=((0, 0), (width // 2 * dilation, (width - 1) // 2 * dilation)),
        rhs_dilation=(1, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y_b1to[:, 0]


def depthwise_convolution(x_btc: Float[Array, "B T C"], kernel_kc: Float[Array, "K C"]) -> Float[Array, "B T C"]:
    """A sum of shifted products, which XLA fuses into one loop. Its grouped convolution is slow, on CPU above all."""
    width, time = kernel_kc.shape[0], x_btc.shape[1]
    x_btc = jnp.pad(x_btc, ((0, 0), (width // 2, width // 2), (0, 0)))
    return functools.reduce(jnp.add, [x_btc[:, i : i + time] * kernel_kc[i] for i in range(width)])


def transposed_convolution(
    x_btc: Float[Array, "B T C"], kernel_kio: Float[Array, "K C O"], rate: int
) -> Float[Array, "B T*rate O"]:
    """`reference.transposed_convolution` by `upsample_by_phases`."""
    return upsample_by_phases(x_btc, phase_kernel(kernel_kio, rate), kernel_kio.shape[0], rate)


def upsample_by_phases(
    x_btc: Float[Array, "B T C"], phases_jim: Float[Array, "J C rate*O"], width: int, rate: int
) -> Float[Array, "B T*rate O"]:
    """`reference.transposed_convolution` for the kernel `phase_kernel(kernel, rate)`.

    One plain convolution gives the `rate` outputs from t * rate on side by side as channels, so that the upsampling
    itself is a reshape.
    """
    past, ahead = _phase_reach(width, rate)
    y_b1tm = lax.conv_general_dilated(
        x_btc[:, None],
        phases_jim[None],
        window_strides=(1, 1),
        padding=((0, 0), (past, ahead)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    batch, time, _ = x_btc.shape
    return y_b1tm.reshape(batch, time * rate, -1)


def phase_kernel(kernel_kio: _Kernel, rate: int) -> _Kernel:
    """The kernel [J, I, rate * O] of `upsample_by_phases` for a kernel [K, I, O]. NumPy in, NumPy out.

    Tap j of output phase i is tap i + padding + (past - j) * rate.
    """
    width, inputs, outputs = kernel_kio.shape
    past, ahead = _phase_reach(width, rate)
    padding = (width - rate) // 2
    xp: Any = np if isinstance(kernel_kio, np.ndarray) else jnp
    ends = (ahead * rate - padding, padding + (past + 1) * rate - width)
    taps_jrio = xp.pad(kernel_kio, (ends, (0, 0), (0, 0))).reshape(-1, rate, inputs, outputs)[::-1]
    return taps_jrio.swapaxes(1, 2).reshape(-1, inputs, rate * outputs)


def phase_shape(width: int, inputs: int, outputs: int, rate: int) -> tuple[int, int, int]:
    """The shape of `phase_kernel` of a kernel of this shape."""
    return sum(_phase_reach(width, rate)) + 1, inputs, rate * outputs


def _phase_reach(width: int, rate: int) -> tuple[int, int]:
    """Inputs before and after input t that the outputs t * rate .. t * rate + rate - 1 read."""
    padding = (width - rate) // 2
    return (width - 1 - padding) // rate, (padding + rate - 1) // rate


def normalized_convolution(
    audio_br: Float[Array, "B R"],
    lengths_b: Int[Array, " B"],
    kernel_wc: Float[Array, "W C"],
    scale_c: Float[Array, " C"],
    bias_c: Float[Array, " C"],
    stride: int,
    eps: float,
) -> Float[Array, "B T C"]:
    """`reference.normalized_convolution` with the norm folded into a kernel for each clip: one pass over the output."""
    frames_btw = sliding_frames(audio_br, kernel_wc.shape[0], stride)
    kernel_bwc, offset_bc = normalizing_kernel(frames_btw, lengths_b, kernel_wc, scale_c, bias_c, stride, eps)
    return jnp.einsum("btw,bwc->btc", frames_btw, kernel_bwc) + offset_bc[:, None]


def sliding_frames(audio_br: Float[Array, "B R"], width: int, stride: int) -> Float[Array, "B T W"]:
    """The stretches of `width` samples, `stride` apart, that a convolution without padding reads."""
    taps, count = ceil_div(width, stride), (audio_br.shape[1] - width) // stride + 1
    samples = (count + taps - 1) * stride
    audio_br = jnp.pad(audio_br, ((0, 0), (0, max(0, samples - audio_br.shape[1]))))[:, :samples]
    blocks = audio_br.reshape(audio_br.shape[0], -1, stride)
    return jnp.concatenate([blocks[:, i : i + count] for i in range(taps)], -1)[..., :width]


def normalizing_kernel(
    frames_btw: Float[Array, "B T W"],
    lengths_b: Int[Array, " B"],
    kernel_wc: Float[Array, "W C"],
    scale_c: Float[Array, " C"],
    bias_c: Float[Array, " C"],
    stride: int,
    eps: float,
) -> tuple[Float[Array, "B W C"], Float[Array, "B C"]]:
    """Kernel and bias for each clip, with which the convolution of its frames gives `reference.normalized_convolution`.

    Mean and variance of the convolution w.x follow from the mean and the W x W covariance of the frames x, so the
    output is not read again for the norm. The covariance is taken of the frames' cosine transform, whose components
    hardly correlate in sound. Otherwise its digits would cancel for a filter that passes little of what is loud.
    """
    counts_b = (lengths_b - frames_btw.shape[2]) // stride + 1
    valid = valid_frames(counts_b, frames_btw.shape[1])[:, :, None].astype(jnp.float32)
    count = counts_b[:, None, None].astype(jnp.float32)
    basis = _cosines(frames_btw.shape[2])
    z = jnp.einsum("btw,wf->btf", frames_btw, basis)
    mean = time_sum(z * valid) / count
    centered = (z - mean) * valid
    blocks = jnp.pad(centered, ((0, 0), (0, -centered.shape[1] % _SUM_BLOCK), (0, 0)))
    blocks = blocks.reshape(z.shape[0], -1, _SUM_BLOCK, z.shape[2])
    covariance = jnp.einsum("bktf,bktg->bkfg", blocks, blocks).sum(1) / count
    kernel_fc = basis.T @ kernel_wc
    variance = jnp.einsum("fc,bfg,gc->bc", kernel_fc, covariance, kernel_fc)
    gain = lax.rsqrt(jnp.maximum(variance, 0.0) + eps)
    kernel_bwc, offset_bc = kernel_wc * gain[:, None], -(mean[:, 0] @ kernel_fc) * gain
    return kernel_bwc * scale_c, offset_bc * scale_c + bias_c


@functools.cache
def _cosines(size: int) -> Float[np.ndarray, "W W"]:
    """The orthonormal cosine transform (DCT-II), float32, a column for each frequency."""
    angles = np.pi / size * (np.arange(size)[:, None] + 0.5) * np.arange(size)
    return (np.cos(angles) * np.sqrt(np.where(np.arange(size) == 0, 1, 2) / size)).astype(np.float32)
