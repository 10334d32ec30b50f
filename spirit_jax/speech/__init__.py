"""Audio to units and back: `SpeechTokenizer` and the parts that it is made of."""

from spirit_jax.speech.scratch.trainer import SpeechTokenizerConfig, train_speech_tokenizer
from spirit_jax.speech.tokenizer import SpeechTokenizer, load_part, speech_fingerprints

__all__ = ["SpeechTokenizer", "SpeechTokenizerConfig", "load_part", "speech_fingerprints", "train_speech_tokenizer"]
