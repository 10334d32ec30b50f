"""Adapters with random values, so that their updates are not zero."""

import jax
import numpy as np

from spirit_jax.models import lora
from spirit_jax.models.llama import LlamaConfig, Params
from spirit_jax.models.lora import LoraConfig


def random_adapter(model: LlamaConfig, config: LoraConfig, seed: int = 0, size: float = 0.1) -> Params:
    """An adapter whose arrays are normal with this standard deviation."""
    rng = np.random.default_rng(seed)
    shapes = lora.abstract_adapter(model, config)
    return jax.tree.map(lambda leaf: rng.normal(0, size, leaf.shape).astype(np.float32), shapes)
