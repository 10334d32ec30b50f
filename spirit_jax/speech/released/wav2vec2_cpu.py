"""CPU form of the HuBERT and wav2vec 2.0 encoders: features in tiles, positions by spectra, layers apart.

It computes what `models.wav2vec2.Wav2Vec2Model` computes, up to rounding; a test holds the two together. HuBERT of full
size takes 0.82 CPU seconds for 10 s of audio in this form and 0.98 as the plain network: tiles save 0.06, spectra and
separate layers 0.07 each. Tiles also bound memory: 100 s need no more than 3 s.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from spirit_jax.kernels.common.convolution import normalizing_kernel, sliding_frames
from spirit_jax.kernels.cpu.convolution import convolve_groups_by_spectrum, group_spectrum
from spirit_jax.kernels.cpu.tiles import in_tiles
from spirit_jax.kernels.platform import kernels_in_use
from spirit_jax.models.wav2vec2 import (
    EncoderLayer,
    EncoderParts,
    FeatureExtractor,
    Params,
    batch_norm,
    gelu,
    position_kernel,
)
from spirit_jax.models.wav2vec2_config import Wav2Vec2Config

TILE_SAMPLES = 40_960
"""Samples whose convolutions run at once, so that their results stay in cache."""


class TiledFeatureExtractor(nn.Module):
    """`FeatureExtractor` on about `TILE_SAMPLES` samples at a time. Audio of 100 s needs no more memory than of 3 s."""

    config: Wav2Vec2Config

    @nn.compact
    def __call__(
        self, audio_br: Float[Array, "B R"], lengths_b: Int[Array, " B"]
    ) -> tuple[Float[Array, "B T C"], Int[Array, " B"]]:
        c, params = self.config, self.variables["params"]
        extractor = FeatureExtractor(c)
        _, width, stride = c.conv_layers[0]
        rows = ()
        if c.conv_norm == "group":  # over the whole of a clip, so it is folded into a kernel of each clip first
            frames_btw = sliding_frames(audio_br, width, stride)
            rows = normalizing_kernel(
                frames_btw,
                lengths_b,
                kernel_wc=params["conv_0"][:, 0],
                scale_c=params["norm_scale"],
                bias_c=params["norm_bias"],
                stride=stride,
                eps=c.layer_norm_eps,
            )

        def extract(audio_nr, *rows):
            if rows:
                kernel_nwc, bias_nc = rows
                x = jnp.einsum("ntw,nwc->ntc", sliding_frames(audio_nr, width, stride), kernel_nwc)
                x, first = gelu(x + bias_nc[:, None]), 1
            else:
                x, first = audio_nr[:, :, None], 0
            return jnp.asarray(extractor.apply({"params": params}, x, first, method="later_layers"))

        features_btc = in_tiles(
            extract, audio_br, rows, hop=c.hop, receptive_field=c.receptive_field, tile=TILE_SAMPLES
        )
        return features_btc, c.frames(lengths_b)


class SpectralPositionalConvolution(nn.Module):
    """`PositionalConvolution` whose kernel is kept as its `spectrum`."""

    config: Wav2Vec2Config

    @nn.compact
    def __call__(self, x_btd: Float[Array, "B T D"], valid_bt1: Float[Array, "B T 1"]) -> Float[Array, "B T D"]:
        c, params = self.config, self.variables["params"]
        if c.position_norm == "batch":
            x_btd = batch_norm(params, x_btd, c.layer_norm_eps) * valid_bt1
        y_btd = convolve_groups_by_spectrum(x_btd, params["spectrum"], c.position_kernel)
        return gelu(y_btd + params["bias"])


class SeparateLayers(nn.Module):
    """The transformer layers one after the other, their parameters apart instead of stacked."""

    config: Wav2Vec2Config

    @nn.compact
    def __call__(
        self, x_btd: Float[Array, "B T D"], valid_bt: Bool[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], None]:
        for index in range(self.config.num_layers):
            x_btd, _ = EncoderLayer(self.config, name=f"layer_{index}")(x_btd, valid_bt)
        return x_btd, None


CPU_PARTS = EncoderParts(features=TiledFeatureExtractor, position=SpectralPositionalConvolution, layers=SeparateLayers)


def for_inference(params: Params) -> tuple[EncoderParts, dict[str, Any]]:
    """The parts and the parameters of an encoder, in the form that the platform runs fastest.

    Accelerators take both as they are: a loop over stacked layers compiles many times faster there.
    """
    return (CPU_PARTS, prepare(params)) if kernels_in_use() == "cpu" else (EncoderParts(), params)


def prepare(params: Params) -> Params:
    """Parameters of `Wav2Vec2Model(config, parts=CPU_PARTS)` out of those of `Wav2Vec2Model(config)`."""
    layers = params["layers"]
    count = len(jax.tree.leaves(layers)[0])
    kernel = np.asarray(position_kernel(params["position"]))
    groups = kernel.shape[2] // kernel.shape[1]
    position = {name: value for name, value in params["position"].items() if name not in ("kernel", "gain")}
    return {
        **params,
        "position": {**position, "spectrum": group_spectrum(kernel, groups)},
        "layers": {f"layer_{index}": jax.tree.map(lambda leaf, i=index: leaf[i], layers) for index in range(count)},
    }
