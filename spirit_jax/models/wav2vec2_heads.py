"""Heads that turn frames of a HuBERT or wav2vec 2.0 encoder into symbols: quantizers, style classifier, CTC head."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from spirit_jax.core.arithmetic import ceil_div
from spirit_jax.kernels.masked import standardize, valid_frames
from spirit_jax.models.wav2vec2 import EncoderParts, Wav2Vec2Model
from spirit_jax.models.wav2vec2_config import Wav2Vec2Config


class LinearQuantizer(nn.Module):
    """Features [..., D] to logits [..., units + 1] of the units and the CTC blank, which is the last class.

    Three linear layers with leaky ReLU (docs/formats.md, "Linear quantizer"). Their widths go from the encoder's to
    the number of classes in steps of a quarter, a quarter and a half of the difference. They grow where the classes
    are more.
    """

    dim: int = 768
    """Width of the features."""
    upstream_dim: int = 768
    """Width of the encoder that the quantizer was trained on; the difference to the classes counts from it."""
    units: int = 500
    """Number of units."""

    @property
    def widths(self) -> tuple[int, int, int]:
        """Outputs of the three layers."""
        difference = self.upstream_dim - (self.units + 1)
        return self.dim - difference // 4, self.dim - difference // 2, self.units + 1

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch K"]:
        first, second, classes = self.widths
        x = nn.leaky_relu(nn.Dense(first, name="dense_0")(x), 0.01)
        x = nn.leaky_relu(nn.Dense(second, name="dense_1")(x), 0.01)
        return nn.Dense(classes, name="dense_2")(x)


def nearest_centroid(x: Float[Array, "*batch D"], centroids_kd: Float[Array, "K D"]) -> Int[Array, "*batch"]:
    """Index of the nearest centroid of each vector (the k-means quantizer)."""
    squared = jnp.sum(jnp.square(centroids_kd), -1) - 2.0 * jnp.einsum("...d,kd->...k", x, centroids_kd)
    return jnp.argmin(squared, -1).astype(jnp.int32)


class WindowClassifier(nn.Module):
    """Waveform to one label for each window of 50 frames, one second: the style encoder.

    `apply({"params": params}, audio_br, lengths_b)` gives logits [B, K, labels] and how many windows belong to each
    clip; the last window of a clip may be short. Each clip is normalized to mean 0 and variance 1 first, as by the
    released feature extractor (docs/formats.md, "Style encoder").
    """

    config: Wav2Vec2Config
    projection_size: int = 256
    num_labels: int = 100
    window: int = 50
    parts: EncoderParts = EncoderParts()

    @nn.compact
    def __call__(
        self, audio_br: Float[Array, "B R"], lengths_b: Int[Array, " B"] | None = None
    ) -> tuple[Float[Array, "B K labels"], Int[Array, " B"]]:
        if lengths_b is None:
            lengths_b = jnp.full(audio_br.shape[:1], audio_br.shape[1], jnp.int32)
        audio_br = standardize(audio_br[:, :, None], lengths_b, 1e-7)[:, :, 0]
        self.sow("intermediates", "normalized", audio_br)
        x, frames_b = Wav2Vec2Model(self.config, parts=self.parts, name="encoder")(audio_br, lengths_b)
        x = nn.Dense(self.projection_size, name="projector")(x)
        self.sow("intermediates", "projected", x)

        windows = ceil_div(x.shape[1], self.window)
        x = jnp.where(valid_frames(frames_b, x.shape[1])[:, :, None], x, 0.0)
        x = jnp.pad(x, ((0, 0), (0, windows * self.window - x.shape[1]), (0, 0)))
        total = x.reshape(x.shape[0], windows, self.window, -1).sum(2)
        count = jnp.clip(frames_b[:, None] - self.window * jnp.arange(windows), 1, self.window)
        x = total / count[:, :, None]
        self.sow("intermediates", "pooled", x)
        return nn.Dense(self.num_labels, name="classifier")(x), -(-frames_b // self.window)


class Wav2Vec2CTC(nn.Module):
    """Waveform to logits of the symbols at each frame: `Wav2Vec2ForCTC` and `HubertForCTC` of transformers.

    `apply({"params": params}, audio_br, lengths_b)` gives logits [B, T, symbols] and how many frames belong to each
    clip. Networks that expect normalized audio get it so: the caller knows the whole clip, of which this may be a
    window.
    """

    config: Wav2Vec2Config
    symbols: int
    parts: EncoderParts = EncoderParts()

    @nn.compact
    def __call__(
        self, audio_br: Float[Array, "B R"], lengths_b: Int[Array, " B"] | None = None
    ) -> tuple[Float[Array, "B T symbols"], Int[Array, " B"]]:
        x, frames_b = Wav2Vec2Model(self.config, parts=self.parts, name="encoder")(audio_br, lengths_b)
        return nn.Dense(self.symbols, name="head")(x), frames_b
