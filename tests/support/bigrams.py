"""A model with known preferences: the next token depends on the token before it alone, by a table."""

import jax
import jax.numpy as jnp
import numpy as np

from spirit_jax import SpiritLM
from spirit_jax.models import llama
from spirit_jax.models.llama import LlamaConfig
from spirit_jax.speech.tokenizer import SpeechTokenizer
from spirit_jax.vocabulary import Vocabulary


def bigram_model(
    vocabulary: Vocabulary, logits_vv: np.ndarray, speech_tokenizer: SpeechTokenizer | None = None
) -> SpiritLM:
    """A Llama whose logits after token i are row i of a table.

    Attention and feed-forward layers are zero. Each token's embedding is a unit vector of its own, and the norm scales
    it to sqrt(size), which the head takes back.
    """
    size = vocabulary.padded_size
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=256,
        rms_norm_eps=1e-12,
    )
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), llama.abstract_params(config))
    params["embed_tokens"] = jnp.eye(size)
    params["norm"] = {"weight": jnp.ones(size)}
    table = np.full((size, size), -30.0, np.float32)
    table[: len(logits_vv), : logits_vv.shape[1]] = logits_vv
    params["lm_head"] = jnp.asarray(table) / np.sqrt(size)
    return SpiritLM(params, config, vocabulary, speech_tokenizer)
