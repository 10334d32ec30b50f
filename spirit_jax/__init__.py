"""spirit_jax: train, convert, run and study Spirit LM in JAX."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spirit_jax.audio import load_audio, save_audio
    from spirit_jax.inference.prompts import Segment
    from spirit_jax.inference.sampling import SamplingParams
    from spirit_jax.inference.spiritlm import SpiritLM
    from spirit_jax.speech.tokenizer import SpeechTokenizer
    from spirit_jax.units import SpeechUnits

__version__ = "0.1.0"

__all__ = ["SamplingParams", "Segment", "SpeechTokenizer", "SpeechUnits", "SpiritLM", "load_audio", "save_audio"]

_PLACES = {
    "SamplingParams": "spirit_jax.inference.sampling",
    "Segment": "spirit_jax.inference.prompts",
    "SpeechTokenizer": "spirit_jax.speech.tokenizer",
    "SpeechUnits": "spirit_jax.units",
    "SpiritLM": "spirit_jax.inference.spiritlm",
    "load_audio": "spirit_jax.audio",
    "save_audio": "spirit_jax.audio",
}


def __getattr__(name: str) -> Any:
    """Load a public name on its first use, so that importing the package starts neither JAX nor anything heavy."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
