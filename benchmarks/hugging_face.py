"""Hugging Face's Llama in PyTorch, which the benchmarks compare with."""

from typing import Any

import torch
import transformers

from spirit_jax.models.llama import LlamaConfig


def random_llama(config: LlamaConfig, initializer_range: float) -> transformers.LlamaForCausalLM:
    """A Llama of this shape with random float32 weights (seed 0) and PyTorch's scaled_dot_product_attention.

    Args:
        config: the shape.
        initializer_range: standard deviation of the weights.
    """
    options: dict[str, Any] = {"attn_implementation": "sdpa"}  # an argument of the base class, missing in the stubs
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            rms_norm_eps=config.rms_norm_eps,
            initializer_range=initializer_range,
            max_position_embeddings=config.max_position_embeddings,
            tie_word_embeddings=config.tie_word_embeddings,
            **options,
        )
    )
