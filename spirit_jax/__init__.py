"""spirit_jax: train, convert, run and study Spirit LM in JAX."""

from typing import TYPE_CHECKING

from spirit_jax.core.interrupts import end_while_importing
from spirit_jax.core.lazy import lazy_names

if TYPE_CHECKING:
    from spirit_jax.audio import load_audio, save_audio
    from spirit_jax.inference.prompts import Segment
    from spirit_jax.inference.sampling_params import SamplingParams
    from spirit_jax.inference.spiritlm import SpiritLM
    from spirit_jax.speech.tokenizer import SpeechTokenizer
    from spirit_jax.units import SpeechUnits

__version__ = "0.1.0"

__all__ = ["SamplingParams", "Segment", "SpeechTokenizer", "SpeechUnits", "SpiritLM", "load_audio", "save_audio"]

end_while_importing()  # Ctrl-C while a command imports its modules

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "SamplingParams": "spirit_jax.inference.sampling_params",
        "Segment": "spirit_jax.inference.prompts",
        "SpeechTokenizer": "spirit_jax.speech.tokenizer",
        "SpeechUnits": "spirit_jax.units",
        "SpiritLM": "spirit_jax.inference.spiritlm",
        "load_audio": "spirit_jax.audio",
        "save_audio": "spirit_jax.audio",
    },
)
