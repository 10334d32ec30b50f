"""Audio to units and back: `SpeechTokenizer`, and the parts that it composes.

`released/` holds the parts of the released Spirit LM checkpoints: HuBERT, F0 with a VQ-VAE, a style encoder and
HiFi-GAN. `scratch/` holds parts that are trained in seconds on any corpus: k-means, F0 and energy statistics, and
Griffin-Lim.
"""

from spirit_jax.speech.loading import has_vocoder, load_vocoder, speech_fingerprints
from spirit_jax.speech.scratch.trainer import SpeechTokenizerConfig, train_speech_tokenizer
from spirit_jax.speech.tokenizer import SpeechTokenizer

__all__ = [
    "SpeechTokenizer",
    "SpeechTokenizerConfig",
    "has_vocoder",
    "load_vocoder",
    "speech_fingerprints",
    "train_speech_tokenizer",
]
