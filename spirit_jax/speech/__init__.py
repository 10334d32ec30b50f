"""Audio to units and back: `SpeechTokenizer` and the parts that it is made of."""

from spirit_jax.speech.from_scratch import SpeechTokenizerConfig, train_speech_tokenizer
from spirit_jax.speech.tokenizer import SpeechTokenizer

__all__ = ["SpeechTokenizer", "SpeechTokenizerConfig", "train_speech_tokenizer"]
