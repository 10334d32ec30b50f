"""Emissions of released wav2vec 2.0 and HuBERT networks with a CTC head, in windows of 30 s with context."""

import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.corpora.alignment.alphabet import Alphabet
from spirit_jax.corpora.alignment.ctc_aligner import FrameGrid
from spirit_jax.models.ctc import IMPOSSIBLE
from spirit_jax.models.wav2vec2_config import Wav2Vec2Config
from spirit_jax.models.wav2vec2_heads import Wav2Vec2CTC
from spirit_jax.speech.released.batches import encode_clips, jit_float32, replicate
from spirit_jax.speech.released.wav2vec2_cpu import for_inference

WINDOW_S, CONTEXT_S = 30, 3
"""Length of a window, and how much audio before and after it the network hears too."""

_EPS = 1e-7  # of the normalization, as in transformers' feature extractor


class Wav2Vec2Network:
    """A `CTCNetwork` of part kind "wav2vec2_ctc", as the converter makes it (`convert.components.ctc`).

    config.json holds `encoder` (the fields of `Wav2Vec2Config`), `symbols`, `blank`, `separator`, `unused` (outputs
    that were never trained) and `normalize` (whether the network expects clips of mean 0 and variance 1).
    """

    kind: ClassVar[str] = "wav2vec2_ctc"
    blanks_in_words: bool = True

    def __init__(self, name: str, config: Mapping[str, Any], arrays: dict[str, Any]) -> None:
        """
        Raises:
            KeyError, TypeError: an entry or an array is missing.
        """
        self.encoder = Wav2Vec2Config.from_dict(config["encoder"])
        self.alphabet = Alphabet(tuple(config["symbols"]), config["blank"], config["separator"])
        self.bias_v = np.zeros(len(self.alphabet.symbols), np.float32)
        digest = hashlib.sha256(np.asarray(arrays["head"]["kernel"], np.float32).tobytes()).hexdigest()[:12]
        self.name = f"{name} {digest}"
        milliseconds = 1000 / SAMPLE_RATE
        # A frame is centered in its receptive field and covers one hop.
        center = (self.encoder.receptive_field - self.encoder.hop) / 2
        self.grid = FrameGrid(self.encoder.hop * milliseconds, center * milliseconds)
        self._normalize = config["normalize"]
        unused = np.zeros(len(self.alphabet.symbols), np.float32)
        unused[config["unused"]] = IMPOSSIBLE
        parts, encoder = for_inference(arrays["encoder"])
        network = Wav2Vec2CTC(self.encoder, len(self.alphabet.symbols), parts)

        def log_probs(
            params: dict, audio_br: Array, lengths_b: Int[Array, " B"]
        ) -> tuple[Float[Array, "B T V"], Int[Array, " B"]]:
            logits_btv, frames_b = map(jnp.asarray, network.apply({"params": params}, audio_br, lengths_b))
            return jnp.maximum(jax.nn.log_softmax(logits_btv + unused), IMPOSSIBLE), frames_b

        self._log_probs = functools.partial(jit_float32(log_probs), replicate({**arrays, "encoder": encoder}))

    def log_probs(self, clips: Sequence[Float[np.ndarray, " R"]]) -> list[Float[np.ndarray, "T V"]]:
        """As `CTCNetwork.log_probs`."""
        hop, field = self.encoder.hop, self.encoder.receptive_field
        frames_of_window, context = WINDOW_S * SAMPLE_RATE // hop, CONTEXT_S * SAMPLE_RATE // hop
        counts = [max(0, self.encoder.frames(clip.size)) for clip in clips]
        windows = []
        for index, count in enumerate(counts):
            for first in range(0, count, frames_of_window):
                last = min(first + frames_of_window, count)
                windows.append((index, first, last, max(0, first - context), min(count, last + context)))
        normalized = [_normalized(clip) if self._normalize else clip for clip in clips]
        pieces = [
            # The group norm hears the samples after the last frame too.
            normalized[index][start * hop : None if stop == counts[index] else (stop - 1) * hop + field]
            for index, _, _, start, stop in windows
        ]
        results = [np.empty((count, len(self.alphabet.symbols)), np.float32) for count in counts]
        found = encode_clips(self._log_probs, pieces, field, "emissions")
        for (index, first, last, start, _), (log_probs,) in zip(windows, found, strict=True):
            results[index][first:last] = log_probs[first - start : last - start]
        return results


def _normalized(clip: Float[np.ndarray, " R"]) -> Float[np.ndarray, " R"]:
    """A clip with mean 0 and variance 1."""
    mean, variance = clip.mean(dtype=np.float64), clip.var(dtype=np.float64)
    return ((clip - mean) / np.sqrt(variance + _EPS)).astype(np.float32)
