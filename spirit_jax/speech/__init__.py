"""Audio to units and back: `SpeechTokenizer`, and the parts that it composes.

`released/` holds the parts of the released Spirit LM checkpoints: HuBERT, F0 with a VQ-VAE, a style encoder and
HiFi-GAN. `scratch/` holds parts that are trained in seconds on any corpus: k-means, F0 and energy statistics, and
Griffin-Lim.
"""

from typing import TYPE_CHECKING

from spirit_jax.core.lazy import lazy_names

if TYPE_CHECKING:
    from spirit_jax.speech.config import SpeechTokenizerConfig
    from spirit_jax.speech.loading import has_vocoder, load_vocoder, speech_fingerprints
    from spirit_jax.speech.scratch.trainer import train_speech_tokenizer
    from spirit_jax.speech.tokenizer import SpeechTokenizer

__all__ = [
    "SpeechTokenizer",
    "SpeechTokenizerConfig",
    "has_vocoder",
    "load_vocoder",
    "speech_fingerprints",
    "train_speech_tokenizer",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "SpeechTokenizer": "spirit_jax.speech.tokenizer",
        "SpeechTokenizerConfig": "spirit_jax.speech.config",
        "has_vocoder": "spirit_jax.speech.loading",
        "load_vocoder": "spirit_jax.speech.loading",
        "speech_fingerprints": "spirit_jax.speech.loading",
        "train_speech_tokenizer": "spirit_jax.speech.scratch.trainer",
    },
)
