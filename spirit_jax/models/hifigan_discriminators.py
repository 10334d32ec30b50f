"""The discriminators that HiFi-GAN is trained against: multi-period and multi-scale (arXiv 2010.05646, section 2.3).

Both tell recordings from generated audio by many scores over time. A period discriminator looks at every p-th sample, a
scale discriminator at the audio at full, half and quarter rate. Audio is [B, R], activations are [B, T, C], kernels
[K, I, O]. The networks read plain kernels: `fold_norms` makes them from the parameters that are trained, in which each
kernel has a weight norm (arXiv 1602.07868), or a spectral norm in the first scale discriminator (arXiv 1802.05957).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from spirit_jax.models.hifigan import fold_weight_norm
from spirit_jax.models.hifigan_config import PERIOD_LAYERS, SCALE_LAYERS, SCORES, DiscriminatorConfig, Layer

SLOPE = 0.1
"""Slope of the leaky ReLU after each convolution but the last."""

_EPSILON = 1e-12  # of the norms of the power iteration, as in PyTorch

Params = dict[str, Any]


class Convolution(nn.Module):
    """Strided convolution over time with a bias, and zeros of half a kernel on both sides, as in PyTorch."""

    layer: Layer

    @nn.compact
    def __call__(self, x_btc: Float[Array, "B T C"]) -> Float[Array, "B N O"]:
        channels, width, stride, groups = self.layer
        inputs = x_btc.shape[-1] // groups
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default
        kernel = self.param("kernel", init, (width, inputs, channels))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        y_btc = lax.conv_general_dilated(
            x_btc,
            kernel,
            window_strides=(stride,),
            padding=((width // 2, width // 2),),
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=groups,
        )
        return y_btc + bias


class Discriminator(nn.Module):
    """A stack of convolutions. It returns the output of each, of which the last are the scores."""

    layers: tuple[Layer, ...]

    @nn.compact
    def __call__(self, x_btc: Float[Array, "B T C"]) -> list[Float[Array, "B _N _C"]]:
        outputs = []
        for i, layer in enumerate(self.layers):
            x_btc = nn.leaky_relu(Convolution(layer, name=f"conv_{i}")(x_btc), SLOPE)
            outputs.append(x_btc)
        outputs.append(Convolution(SCORES, name="scores")(x_btc))
        return outputs


class Discriminators(nn.Module):
    """All discriminators. `apply({"params": fold_norms(params)}, audio_br)` gives the layers' outputs of each.

    The rows of a period discriminator's outputs are one clip's p phases, one after the other, then the next clip's.
    """

    config: DiscriminatorConfig = DiscriminatorConfig()

    @nn.compact
    def __call__(self, audio_br: Float[Array, "B R"]) -> list[list[Float[Array, "_B _N _C"]]]:
        config, outputs = self.config, []
        for period in config.periods:
            x_btc = split_phases(audio_br, period)
            outputs.append(Discriminator(config.resized(PERIOD_LAYERS), name=f"period_{period}")(x_btc))
        for scale in range(config.scales):
            if scale:
                audio_br = halve_rate(audio_br)
            outputs.append(Discriminator(config.resized(SCALE_LAYERS), name=f"scale_{scale}")(audio_br[..., None]))
        return outputs


def split_phases(audio_br: Float[Array, "B R"], period: int) -> Float[Array, "N T 1"]:
    """Every `period`-th sample of the audio, from each of the first `period` samples on; the end is reflected."""
    rows, samples = audio_br.shape
    if rest := samples % period:
        audio_br = jnp.pad(audio_br, ((0, 0), (0, period - rest)), mode="reflect")
    return audio_br.reshape(rows, -1, period).swapaxes(1, 2).reshape(rows * period, -1, 1)


def halve_rate(audio_br: Float[Array, "B R"]) -> Float[Array, "B N"]:
    """The mean of four samples, every two samples, with two zeros on both sides: R // 2 + 1 samples."""
    count = audio_br.shape[1] // 2 + 1
    padded_br = jnp.pad(audio_br, ((0, 0), (2, 2)))
    return (
        sum((padded_br[:, i : i + 2 * count - 1 : 2] for i in range(1, 4)), start=padded_br[:, : 2 * count - 1 : 2]) / 4
    )


def fold_norms(params: Params) -> Params:
    """The parameters with every norm multiplied out: those of `split_norms` give the network's plain kernels.

    `{weight, power}` is a spectral norm, weight / sigma, where `power` [O] estimates the first left singular vector of
    the weight as a matrix [O, I * K]. No gradient flows into `power`, and none through it into the weight.
    """

    def fold(tree: Params) -> Params:
        if "power" in tree:
            rest = {name: leaf for name, leaf in tree.items() if name not in ("weight", "power")}
            return {"kernel": tree["weight"] / _sigma(tree["weight"], lax.stop_gradient(tree["power"])), **rest}
        return {name: fold(leaf) if isinstance(leaf, dict) else leaf for name, leaf in tree.items()}

    return fold_weight_norm(fold(params))


def _sigma(weight_kio: Float[Array, "K I O"], power_o: Float[Array, " O"]) -> Float[Array, ""]:
    """The estimate u W v of the largest singular value, where v is W u at length 1: the length of W u."""
    return jnp.sqrt(jnp.sum(jnp.square(jnp.einsum("kio,o->ki", weight_kio, power_o))))


def split_norms(params: Params, key: Array) -> Params:
    """Plain kernels as the parameters that are trained: weight norms, and spectral norms in `scale_0`, as published.

    Args:
        params: parameters of `Discriminators` with plain kernels.
        key: chooses the first estimates of the singular vectors.
    """

    def split(layer: Params, spectral: bool, key: Array) -> Params:
        kernel, bias = layer["kernel"], layer["bias"]
        if not spectral:
            return {"weight_g": jnp.sqrt(jnp.sum(jnp.square(kernel), (0, 1), keepdims=True)), "weight_v": kernel} | {
                "bias": bias
            }
        power = jax.random.normal(key, kernel.shape[-1:])
        return {"weight": kernel, "power": power / jnp.sqrt(jnp.sum(jnp.square(power))), "bias": bias}

    return {
        name: {
            part: split(layer, name == "scale_0", jax.random.fold_in(key, i))
            for i, (part, layer) in enumerate(sorted(network.items()))
        }
        for name, network in params.items()
    }


def iterate_power(params: Params) -> Params:
    """The parameters after one power iteration of each spectral norm. Training makes one before each step."""
    if "power" in params:
        weight_kio = params["weight"]
        right_ki = jnp.einsum("kio,o->ki", weight_kio, params["power"])
        right_ki = right_ki / jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(right_ki))), _EPSILON)
        power_o = jnp.einsum("kio,ki->o", weight_kio, right_ki)
        power_o = power_o / jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(power_o))), _EPSILON)
        return {**params, "power": lax.stop_gradient(power_o)}
    return {name: iterate_power(leaf) if isinstance(leaf, dict) else leaf for name, leaf in params.items()}


def parameter_count(config: DiscriminatorConfig) -> int:
    """Number of trained parameters, weight norms counted in their two factors."""
    total = 0
    for network, layers in (("period", PERIOD_LAYERS), ("scale", SCALE_LAYERS)):
        count, inputs = 0, 1
        for layer in (*config.resized(layers), SCORES):
            count += layer.width * (inputs // layer.groups) * layer.channels + 2 * layer.channels
            inputs = layer.channels
        total += count * (len(config.periods) if network == "period" else config.scales)
    if config.scales:
        total -= sum(layer.channels for layer in (*config.resized(SCALE_LAYERS), SCORES))  # no gains in scale_0
    return total
