"""Released phonetic units: HuBERT features at 25 or 50 Hz, quantized by a linear head with a blank, or by k-means."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from spirit_jax.checkpoint import CheckpointError
from spirit_jax.models.wav2vec2 import truncate
from spirit_jax.models.wav2vec2_config import Wav2Vec2Config
from spirit_jax.models.wav2vec2_heads import LinearQuantizer, nearest_centroid
from spirit_jax.speech.released.batches import encode_clips, jit_float32, replicate
from spirit_jax.speech.released.wav2vec2_cpu import for_inference


def replace_blanks(units: Int[np.ndarray, " T"], blank: int, fallback: Int[np.ndarray, " T"]) -> Int[np.ndarray, " T"]:
    """Replace each blank by the nearest unit to its left (docs/formats.md, "Linear quantizer").

    Blanks at the start take the last unit of the utterance, as in the reference. An utterance of blanks alone, which
    the reference cannot speak, becomes `fallback`.
    """
    (filled,) = np.nonzero(units != blank)
    if not len(filled):
        return fallback
    return units[filled[np.searchsorted(filled, np.arange(len(units)), side="right") - 1]]


class HubertEncoder:
    """Part kind "hubert": the output of one layer of a HuBERT encoder, quantized (docs/formats.md, "HuBERT").

    config.json holds `encoder` (the fields of `Wav2Vec2Config`), `layer` (1-based) and `quantizer`: its `kind`, and for
    "linear" also `dim`, `upstream_dim` and `units`. The arrays are `encoder/...` and `quantizer/...`; the quantizer of
    kind "kmeans" has `centroids` [K, D].
    """

    kind: ClassVar[str] = "hubert"

    def __init__(self, config: Mapping[str, Any], arrays: dict[str, Any]):
        """The part from its config.json and arrays.

        Raises:
            KeyError, TypeError: an entry or an array is missing.
            CheckpointError: an unknown kind of quantizer.
        """
        self._config, self._arrays = config, arrays
        self.encoder = Wav2Vec2Config.from_dict(config["encoder"])
        """Shape of the network."""
        model, encoder = truncate(self.encoder, arrays["encoder"], config["layer"])
        encoder_parts, encoder = for_inference(encoder)
        model = model.clone(parts=encoder_parts)
        quantizer = {name: value for name, value in config["quantizer"].items() if name != "kind"}
        kind = config["quantizer"]["kind"]
        if kind not in ("linear", "kmeans"):
            raise CheckpointError(f"phonetic part: quantizer must be of kind linear or kmeans, found {kind!r}")
        self._blank: int | None = quantizer["units"] if kind == "linear" else None

        def features(params: dict, audio_br: Array, lengths_b: Array):
            return model.apply({"params": params["encoder"]}, audio_br, lengths_b)

        def units(params: dict, audio_br: Array, lengths_b: Array):
            x_btd, frames_b = features(params, audio_br, lengths_b)
            if self._blank is None:
                return nearest_centroid(x_btd, params["quantizer"]["centroids"]), frames_b
            logits_btu = jnp.asarray(LinearQuantizer(**quantizer).apply({"params": params["quantizer"]}, x_btd))
            best_bt = jnp.argmax(logits_btu, -1).astype(jnp.int32)
            best_unit_bt = jnp.argmax(logits_btu[..., : self._blank], -1).astype(jnp.int32)
            return best_bt, best_unit_bt, frames_b

        params = replicate({"encoder": encoder, "quantizer": arrays["quantizer"]})
        self._features = functools.partial(jit_float32(features), params)
        self._units = functools.partial(jit_float32(units), params)

    @classmethod
    def load(cls, config: Mapping[str, Any], arrays: dict[str, Any]) -> Self:
        """The part from its config.json and arrays; errors as in `__init__`."""
        return cls(config, arrays)

    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        return dict(self._config)

    def arrays(self) -> dict[str, Any]:
        """The arrays, as stored."""
        return self._arrays

    @property
    def unit_count(self) -> int:
        """Number of different units."""
        return len(self._arrays["quantizer"]["centroids"]) if self._blank is None else self._blank

    def encode(self, audio: Float[np.ndarray, " R"]) -> Int[np.ndarray, " T"]:
        """Units of one clip, int32; for the released shape [(R - 720) // 640 + 1]. Errors as in `encode_batch`."""
        return self.encode_batch([audio])[0]

    def encode_batch(self, clips: Sequence[Float[np.ndarray, " R"]]) -> list[Int[np.ndarray, " T"]]:
        """Units of each clip, in batches. A clip's units do not depend on the other clips.

        Raises:
            AudioError: a clip is too short or too long; says which one and the bounds.
        """
        found = encode_clips(self._units, clips, self.encoder.receptive_field, "phonetic units")
        if self._blank is None:
            return [units for (units,) in found]
        return [replace_blanks(best, self._blank, best_unit) for best, best_unit in found]

    def features(self, clips: Sequence[Float[np.ndarray, " R"]]) -> list[Float[np.ndarray, "T D"]]:
        """The layer's features of each clip, float32 [T, D], on which a quantizer is trained. Errors as above."""
        return [x for (x,) in encode_clips(self._features, clips, self.encoder.receptive_field, "phonetic features")]
