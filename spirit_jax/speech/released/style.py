"""Released style units: a wav2vec2 classifier of each second."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from spirit_jax.models.wav2vec2_config import Wav2Vec2Config
from spirit_jax.models.wav2vec2_heads import WindowClassifier
from spirit_jax.speech.released.batches import encode_clips, jit_float32, replicate
from spirit_jax.speech.released.wav2vec2_cpu import for_inference


class Wav2Vec2Style:
    """Part kind "wav2vec2": the most likely of `num_labels` styles for each window of 50 frames, 1.0 s.

    config.json holds `encoder` (the fields of `Wav2Vec2Config`), `projection_size` and `num_labels`. The arrays are the
    parameters of `WindowClassifier` (docs/formats.md, "Style encoder").
    """

    kind: ClassVar[str] = "wav2vec2"

    def __init__(self, config: Mapping[str, Any], arrays: dict[str, Any]):
        """The part from its config.json and arrays.

        Raises:
            KeyError, TypeError: an entry or an array is missing.
        """
        self._config, self._arrays = config, arrays
        self.encoder = Wav2Vec2Config.from_dict(config["encoder"])
        """Shape of the network below the classifier."""
        encoder_parts, encoder = for_inference(arrays["encoder"])
        network = WindowClassifier(self.encoder, config["projection_size"], config["num_labels"], parts=encoder_parts)

        def styles(params: dict, audio_br: Array, lengths_b: Array):
            logits_bkl, windows_b = network.apply({"params": params}, audio_br, lengths_b)
            return jnp.argmax(logits_bkl, -1).astype(jnp.int32), windows_b

        params = replicate({**arrays, "encoder": encoder})
        self._styles = functools.partial(jit_float32(styles), params)

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
        return self._config["num_labels"]

    def encode(self, audio: Float[np.ndarray, " R"]) -> Int[np.ndarray, " K"]:
        """Units of one clip, int32, one for every 50 frames of 20 ms or part of them. Errors as in `encode_batch`."""
        return self.encode_batch([audio])[0]

    def encode_batch(self, clips: Sequence[Float[np.ndarray, " R"]]) -> list[Int[np.ndarray, " K"]]:
        """Units of each clip, in batches. A clip's units do not depend on the other clips.

        Raises:
            AudioError: a clip is too short (400 samples) or too long (100 s); says which one and the bounds.
        """
        found = encode_clips(self._styles, clips, self.encoder.receptive_field, "style units")
        return [styles for (styles,) in found]
