"""Phonetic units of the released kind: HuBERT features at 25 Hz (or 50), quantized by a linear CTC head or by k-means."""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from spirit_jax.models.wav2vec2 import LinearQuantizer, Wav2Vec2Config, for_inference, nearest_centroid, truncate
from spirit_jax.speech.released.batches import encode_clips, exact, replicate


def replace_blanks(units: Int[np.ndarray, " T"], blank: int, fallback: Int[np.ndarray, " T"]) -> Int[np.ndarray, " T"]:
    """Each blank becomes the nearest unit to its left, circularly: a leading run takes the last unit of the utterance.

    An utterance of blanks only, which the reference leaves as it is and then cannot speak, becomes `fallback`.
    """
    (voiced,) = np.nonzero(units != blank)
    if not len(voiced):
        return fallback
    return units[voiced[np.searchsorted(voiced, np.arange(len(units)), side="right") - 1]]


class HubertEncoder:
    """Part kind "hubert": the output of one layer of a HuBERT encoder, quantized.

    config.json: `encoder` (the fields of `Wav2Vec2Config`), `layer` (1-based), `quantizer` with `kind` "linear" (and
    `dim`, `upstream_dim`, `units`) or "kmeans". Arrays: `encoder/...` and `quantizer/...` (`centroids` [K, D] for
    k-means).
    """

    kind: ClassVar[str] = "hubert"

    def __init__(self, config: dict[str, Any], arrays: dict[str, Any]):
        self._config, self._arrays = config, arrays
        self.encoder = Wav2Vec2Config.from_dict(config["encoder"])
        model, encoder = truncate(self.encoder, arrays["encoder"], config["layer"])
        quantizer = {name: value for name, value in config["quantizer"].items() if name != "kind"}
        self._blank = {"linear": lambda: quantizer["units"], "kmeans": lambda: None}[config["quantizer"]["kind"]]()
        params = replicate({"encoder": for_inference(encoder), "quantizer": arrays["quantizer"]})

        def features(params, audio_br, lengths_b):
            return model.apply({"params": params["encoder"]}, audio_br, lengths_b)

        def units(params, audio_br, lengths_b):
            x, frames = features(params, audio_br, lengths_b)
            if self._blank is None:
                units_bt = nearest_centroid(x, params["quantizer"]["centroids"])
                return units_bt, units_bt, frames
            logits = LinearQuantizer(**quantizer).apply({"params": params["quantizer"]}, x)
            best, best_unit = (jnp.argmax(y, -1).astype(jnp.int32) for y in (logits, logits[..., : self._blank]))
            return best, best_unit, frames

        run_features, run_units = exact(features), exact(units)
        self._features = lambda *batch: run_features(params, *batch)
        self._units = lambda *batch: run_units(params, *batch)

    @classmethod
    def load(cls, config: dict[str, Any], arrays: dict[str, Any]) -> "HubertEncoder":
        return cls(config, arrays)

    def config(self) -> dict[str, Any]:
        return self._config

    def arrays(self) -> dict[str, Any]:
        return self._arrays

    def encode(self, audio: Float[np.ndarray, " R"]) -> Int[np.ndarray, " T"]:
        """int32 units of 720 samples (for the released shape) to 100 s of audio, (R - 720) // 640 + 1 of them."""
        return self.encode_batch([audio])[0]

    def encode_batch(self, clips: Sequence[Float[np.ndarray, " R"]]) -> list[Int[np.ndarray, " T"]]:
        """`encode` of each clip, in batches; whatever its neighbours, a clip gives what it gives alone.

        Raises:
            AudioError: a clip is too short or too long; says which and the bounds.
        """
        found = encode_clips(self._units, clips, self.encoder.receptive_field, "phonetic units")
        if self._blank is None:
            return [units for units, _ in found]
        return [replace_blanks(units, self._blank, best_unit) for units, best_unit in found]

    def features(self, clips: Sequence[Float[np.ndarray, " R"]]) -> list[Float[np.ndarray, "T D"]]:
        """The layer's features of each clip, before quantization: what a quantizer is trained on."""
        return [x for (x,) in encode_clips(self._features, clips, self.encoder.receptive_field, "phonetic features")]
