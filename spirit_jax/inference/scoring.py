"""Log-likelihoods and logits of given tokens: one pass without a cache, in padded batches."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from spirit_jax.inference import network
from spirit_jax.inference.engine import bucket
from spirit_jax.models.llama import LlamaConfig, Params
from spirit_jax.models.losses import next_token_losses
from spirit_jax.parallel.sharding import tracing

_ROWS = 16


@functools.partial(jax.jit, static_argnums=(0, 1))
def _log_likelihoods(config: LlamaConfig, mesh: Mesh, params: Params, tokens_bt, weights_bt) -> Float[Array, " B"]:
    """Sum over tokens 1.. of weight times log-probability; a token's weight stands where the token is."""
    hidden_btd, _ = network.forward(config, params, tokens_bt)
    targets_bt = jnp.roll(tokens_bt, -1, axis=1)
    weights_bt = jnp.roll(weights_bt.at[:, 0].set(0), -1, axis=1)
    head_dv = network.head_weight(config, params)
    nll_bt = next_token_losses(hidden_btd, head_dv, targets_bt, weights_bt).nll_bt
    return jax.lax.with_sharding_constraint(-jnp.sum(nll_bt * weights_bt, axis=1), network.whole(mesh))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logits(config: LlamaConfig, mesh: Mesh, params: Params, tokens_bt) -> Float[Array, "B T V"]:
    hidden_btd, _ = network.forward(config, params, tokens_bt)
    scores = network.logits(config, params, hidden_btd)
    return jax.lax.with_sharding_constraint(scores, network.whole(mesh))


def log_likelihoods(
    config: LlamaConfig, mesh: Mesh, params: Params, documents: Sequence[tuple[Sequence[int], int]]
) -> np.ndarray:
    """The log-probability, in nats, of what comes after the first `start` ids of each document.

    Args:
        documents: (ids, start) of each; rows of similar length are worked on together.

    Returns:
        float64 [N]; a document's number does not depend on the others, but for rounding.
    """
    result = np.zeros(len(documents))
    ways = network.batch_ways(mesh)
    rows = -(-min(_ROWS, 1 << max(len(documents) - 1, 0).bit_length()) // ways) * ways
    order = sorted(range(len(documents)), key=lambda i: len(documents[i][0]))
    with tracing(mesh, config.dtype):
        for first in range(0, len(order), rows):
            chosen = order[first : first + rows]
            length = bucket(len(documents[chosen[-1]][0]))
            tokens_bt, weights_bt = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.float32)
            for row, index in enumerate(chosen):
                ids, start = documents[index]
                tokens_bt[row, : len(ids)] = ids
                weights_bt[row, start : len(ids)] = 1
            result[chosen] = np.asarray(_log_likelihoods(config, mesh, params, tokens_bt, weights_bt))[: len(chosen)]
    return result


def logits(config: LlamaConfig, mesh: Mesh, params: Params, ids_bt: Int[np.ndarray, "B T"]) -> Float[Array, "B T V"]:
    """Scores of the token after each of these, float32; row and column padding is taken off again."""
    b, t = ids_bt.shape
    rows = -(-b // network.batch_ways(mesh)) * network.batch_ways(mesh)
    tokens_bt = np.zeros((rows, bucket(t)), np.int32)
    tokens_bt[:b, :t] = ids_bt
    with tracing(mesh, config.dtype):
        return _logits(config, mesh, params, tokens_bt)[:b, :t]
