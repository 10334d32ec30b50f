"""Training steps of language models on the devices of this process; a tiny model and a batch for it."""

import functools

import jax
import numpy as np

from spirit_jax.models import llama
from spirit_jax.parallel.mesh import MeshConfig, make_mesh
from spirit_jax.parallel.sharding import BatchLayout
from spirit_jax.training.language_model import LanguageModelObjective
from spirit_jax.training.optimizer import OptimizerConfig, make_optimizer
from spirit_jax.training.step import TrainStep, UpdateRule
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


@functools.partial(jax.jit, static_argnums=(0, 1))
def random_params(model: llama.LlamaConfig, seed: int = 0) -> llama.Params:
    """Fresh parameters from one program; without `jit`, each operation would be compiled by itself."""
    return llama.init_params(model, jax.random.key(seed))


def one_device(rows: int, accumulate: int = 1) -> BatchLayout:
    """All rows of a batch on one device."""
    return BatchLayout(make_mesh(MeshConfig(), jax.devices()[:1]), rows, accumulate)


def language_model_step(
    model: llama.LlamaConfig,
    layout: BatchLayout,
    token_kinds: np.ndarray,
    *,
    steps: int = 10,
    spike_sigmas: float = 0.0,
    optimizer: OptimizerConfig | None = None,
) -> TrainStep:
    """The training step of a language model in a run of `steps` updates."""
    optimizer = optimizer or OptimizerConfig()
    objective = LanguageModelObjective(model, token_kinds, optimizer.z_loss)
    return TrainStep(UpdateRule(objective, make_optimizer(optimizer, steps), spike_sigmas), layout)


@functools.cache
def tiny_step(model: llama.LlamaConfig = MODEL, accumulate: int = 1, **optimizer) -> TrainStep:
    """The training step of `model` on one device; `optimizer` holds options of OptimizerConfig."""
    layout = one_device(ROWS, accumulate)
    return language_model_step(model, layout, KINDS_V, optimizer=OptimizerConfig(**optimizer))


def tiny_batch(seed: int = 0) -> dict[str, np.ndarray]:
    """Two documents in most rows, and positions with gaps, since the order alone would imply plain positions."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCABULARY, (ROWS, LENGTH + 1)).astype(np.int32)
    return {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": np.sort(rng.integers(1, 3, (ROWS, LENGTH)), axis=1).astype(np.int32),
        "positions": np.cumsum(rng.integers(1, 9, (ROWS, LENGTH)), axis=1, dtype=np.int32),
        "loss_mask": rng.random((ROWS, LENGTH)) < 0.7,
    }
