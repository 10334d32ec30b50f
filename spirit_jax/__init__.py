"""spirit_jax: train, convert, run and study Spirit LM in JAX."""

import importlib

_PLACES = {
    "Segment": "spirit_jax.inference.prompts",
    "SpeechTokenizer": "spirit_jax.speech.tokenizer",
    "SpeechUnits": "spirit_jax.units",
    "SpiritLM": "spirit_jax.inference.spiritlm",
    "load_audio": "spirit_jax.audio",
}

__all__ = list(_PLACES)


def __getattr__(name: str):
    """Names load on first use: importing the package starts neither JAX nor anything heavy."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
