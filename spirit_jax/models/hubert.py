"""HuBERT's pre-training (arXiv 2106.07447): predict the classes of masked frames by similarity to class embeddings.

Everything follows fairseq's HuBERT Base where the paper is silent: initial weights, dropout, the scaled gradient of the
feature extractor and the penalty on its features.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from spirit_jax.kernels.masked import valid_frames
from spirit_jax.models.wav2vec2 import Params, Wav2Vec2Model
from spirit_jax.models.wav2vec2_config import Wav2Vec2Config, Wav2Vec2Noise


class HubertPretraining(nn.Module):
    """Waveform to logits of the classes at each frame.

    The parameters are `encoder`, those of `Wav2Vec2Model`, with what pre-training adds to it: `mask_embedding` [D],
    `projection` to the width in which frames and classes are compared, and `class_embeddings` [K, P].
    """

    config: Wav2Vec2Config
    classes: int
    projection: int = 256
    temperature: float = 0.1
    noise: Wav2Vec2Noise | None = None
    """Dropout and layer drop, in training."""

    @nn.compact
    def __call__(
        self, audio_br: Float[Array, "B R"], lengths_b: Int[Array, " B"], masked_bt: Bool[Array, "B T"]
    ) -> tuple[Float[Array, "B T K"], Int[Array, " B"]]:
        """Logits and frames of each clip. The collection "features" holds the convolutional features, if mutable."""
        uniform = nn.initializers.uniform(1.0)
        mask_d = self.param("mask_embedding", uniform, (self.config.hidden_size,))
        encoder = Wav2Vec2Model(self.config, noise=self.noise, name="encoder")
        x_btd, frames_b = encoder(audio_br, lengths_b, masked_bt, mask_d)
        x_btp = nn.Dense(self.projection, name="projection")(x_btd)
        classes_kp = self.param("class_embeddings", uniform, (self.classes, self.projection))
        similarity_btk = jnp.einsum("btp,kp->btk", _unit(x_btp), _unit(classes_kp))
        return similarity_btk / self.temperature, frames_b


def _unit(x: Float[Array, "*batch P"]) -> Float[Array, "*batch P"]:
    """Vectors of length one."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-16))


def init_pretraining(model: HubertPretraining, key: Array) -> Params:
    """Initial weights, with the layers' matrices as in BERT: normal, standard deviation 0.02."""
    c, (first, second) = model.config, jax.random.split(key)
    samples = c.receptive_field + c.hop
    lengths_b, masked_bt = jnp.full(1, samples), jnp.zeros((1, 2), bool)
    model = model.clone(noise=None)
    params = model.init(first, jnp.zeros((1, samples)), lengths_b, masked_bt)["params"]
    layers, tree = jax.tree_util.tree_flatten_with_path(params["encoder"]["layers"])
    leaves = [
        0.02 * jax.random.normal(jax.random.fold_in(second, number), leaf.shape)
        if getattr(path[-1], "key", None) == "kernel"
        else leaf
        for number, (path, leaf) in enumerate(layers)
    ]
    return {**params, "encoder": {**params["encoder"], "layers": jax.tree_util.tree_unflatten(tree, leaves)}}


class HubertSums(NamedTuple):
    """Sums over the frames of a batch."""

    loss_masked: Float[Array, ""]
    """Cross entropy of the masked frames, in nats."""
    loss_unmasked: Float[Array, ""]
    correct_masked: Float[Array, ""]
    """Masked frames whose class has the highest logit."""
    correct_unmasked: Float[Array, ""]
    masked: Float[Array, ""]
    """Number of masked frames."""
    unmasked: Float[Array, ""]


def masked_prediction(
    logits_btk: Float[Array, "B T K"],
    labels_bt: Int[Array, "B T"],
    masked_bt: Bool[Array, "B T"],
    frames_b: Int[Array, " B"],
    weight_b: Float[Array, " B"],
) -> HubertSums:
    """Loss and accuracy of masked and other frames; frames outside a clip never count.

    Args:
        logits_btk: of `HubertPretraining`.
        labels_bt: the class of each frame.
        masked_bt: the masked frames.
        frames_b: frames of each clip.
        weight_b: 1 for each row that counts, 0 for others.
    """
    loss_bt = -jnp.take_along_axis(jax.nn.log_softmax(logits_btk), labels_bt[:, :, None], axis=2)[:, :, 0]
    correct_bt = (jnp.argmax(logits_btk, -1) == labels_bt).astype(jnp.float32)
    counts_bt = valid_frames(frames_b, labels_bt.shape[1]) * weight_b[:, None]
    masked_bt, other_bt = counts_bt * masked_bt, counts_bt * ~masked_bt
    return HubertSums(
        loss_masked=(loss_bt * masked_bt).sum(),
        loss_unmasked=(loss_bt * other_bt).sum(),
        correct_masked=(correct_bt * masked_bt).sum(),
        correct_unmasked=(correct_bt * other_bt).sum(),
        masked=masked_bt.sum(),
        unmasked=other_bt.sum(),
    )


def feature_penalty(
    features_btc: Float[Array, "B T C"], frames_b: Int[Array, " B"], weight_b: Float[Array, " B"]
) -> Float[Array, ""]:
    """Mean square of the convolutional features over the frames of the clips."""
    counts_bt = valid_frames(frames_b, features_btc.shape[1]) * weight_b[:, None]
    total = (jnp.square(features_btc).mean(-1) * counts_bt).sum()
    return total / jnp.maximum(counts_bt.sum(), 1)
