"""A tiny model, its training program and a batch for it, which the tests of the training step share."""

import functools

import jax
import numpy as np

from spirit_jax.models import llama
from spirit_jax.parallel.mesh import MeshConfig, make_mesh
from spirit_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from spirit_jax.training.step import Program, make_program
from spirit_jax.vocabulary import TOKEN_KINDS

ROWS, LENGTH, VOCABULARY = 4, 12, 50
KINDS_V = np.arange(VOCABULARY) % len(TOKEN_KINDS)
MODEL = llama.LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


@functools.cache
def tiny_program(model: llama.LlamaConfig = MODEL, accumulate: int = 1, **optimizer) -> Program:
    """The compiled step of `model` on one device, with `optimizer` as options of OptimizerConfig."""
    config = OptimizerConfig(**optimizer)
    return make_program(
        model,
        make_optimizer(config, 10),
        make_schedule(config, 10),
        make_mesh(MeshConfig(), jax.devices()[:1]),
        rows=ROWS,
        token_kinds=KINDS_V,
        z_loss=config.z_loss,
        accumulate=accumulate,
    )


def tiny_batch(seed: int = 0) -> dict[str, np.ndarray]:
    """Two documents in most rows; positions with gaps, since plain ones would follow from the order alone."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCABULARY, (ROWS, LENGTH + 1)).astype(np.int32)
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": np.sort(rng.integers(1, 3, (ROWS, LENGTH)), axis=1).astype(np.int32),
        "positions": np.cumsum(rng.integers(1, 9, (ROWS, LENGTH)), axis=1, dtype=np.int32),
        "loss_mask": rng.random((ROWS, LENGTH)) < 0.7,
    }
