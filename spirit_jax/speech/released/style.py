"""Style units of the released kind: a wav2vec2 classifier of each second."""

from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from spirit_jax.models.wav2vec2 import Wav2Vec2Config, WindowClassifier, for_inference
from spirit_jax.speech.released.batches import encode_clips, exact, replicate


class Wav2Vec2Style:
    """Part kind "wav2vec2": the best of `num_labels` styles for each window of 50 frames (1.0 s).

    config.json: `encoder` (the fields of `Wav2Vec2Config`), `projection_size`, `num_labels`. Arrays: the parameters of
    `WindowClassifier`.
    """

    kind: ClassVar[str] = "wav2vec2"

    def __init__(self, config: dict[str, Any], arrays: dict[str, Any]):
        self._config, self._arrays = config, arrays
        self.encoder = Wav2Vec2Config.from_dict(config["encoder"])
        network = WindowClassifier(self.encoder, config["projection_size"], config["num_labels"])
        params = replicate({**arrays, "encoder": for_inference(arrays["encoder"])})

        def styles(params, audio_br, lengths_b):
            logits, windows = network.apply({"params": params}, audio_br, lengths_b)
            return jnp.argmax(logits, -1).astype(jnp.int32), windows

        run = exact(styles)
        self._styles = lambda *batch: run(params, *batch)

    @classmethod
    def load(cls, config: dict[str, Any], arrays: dict[str, Any]) -> "Wav2Vec2Style":
        return cls(config, arrays)

    def config(self) -> dict[str, Any]:
        return self._config

    def arrays(self) -> dict[str, Any]:
        return self._arrays

    def encode(self, audio: Float[np.ndarray, " R"]) -> Int[np.ndarray, " K"]:
        """int32 units of 400 samples to 100 s of audio: one for every 50 frames of 320 samples begun."""
        return self.encode_batch([audio])[0]

    def encode_batch(self, clips: Sequence[Float[np.ndarray, " R"]]) -> list[Int[np.ndarray, " K"]]:
        """`encode` of each clip, in batches; whatever its neighbours, a clip gives what it gives alone.

        Raises:
            AudioError: a clip is too short or too long; says which and the bounds.
        """
        found = encode_clips(self._styles, clips, self.encoder.receptive_field, "style units")
        return [styles for (styles,) in found]
