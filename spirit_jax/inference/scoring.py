"""Log-likelihoods and logits of given tokens: one pass without a cache, in padded batches."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from spirit_jax.core.arithmetic import next_power_of_two
from spirit_jax.inference import network
from spirit_jax.inference.shapes import bucket, padded_rows
from spirit_jax.models.llama import LlamaConfig, Params
from spirit_jax.models.losses import next_token_losses
from spirit_jax.parallel.sharding import tracing

_MAX_ROWS = 16


def log_likelihoods(
    config: LlamaConfig,
    mesh: Mesh,
    params: Params,
    documents: Sequence[tuple[Sequence[int] | Int[np.ndarray, " N"], int]],
) -> Float[np.ndarray, " N"]:
    """Return the log-probability of each document's continuation, in nats, float64 [N].

    A document's value does not depend on the others, except for rounding.

    Args:
        documents: ids, and how many of them belong to the prompt; documents of similar length share a batch.
    """
    result = np.zeros(len(documents))
    rows = padded_rows(min(_MAX_ROWS, next_power_of_two(len(documents))), mesh)
    order = sorted(range(len(documents)), key=lambda i: len(documents[i][0]))
    with tracing(mesh, config.dtype):
        for first in range(0, len(order), rows):
            batch = order[first : first + rows]
            length = bucket(len(documents[batch[-1]][0]))
            tokens_bt, weights_bt = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.float32)
            for row, index in enumerate(batch):
                ids, start = documents[index]
                tokens_bt[row, : len(ids)] = ids
                weights_bt[row, start : len(ids)] = 1
            result[batch] = np.asarray(_log_likelihoods(config, mesh, params, tokens_bt, weights_bt))[: len(batch)]
    return result


def logits(config: LlamaConfig, mesh: Mesh, params: Params, ids_bt: Int[np.ndarray, "B T"]) -> Float[Array, "B T V"]:
    """Return the scores of the token after each of these, float32."""
    b, t = ids_bt.shape
    tokens_bt = np.zeros((padded_rows(b, mesh), bucket(t)), np.int32)
    tokens_bt[:b, :t] = ids_bt
    with tracing(mesh, config.dtype):
        return _logits(config, mesh, params, tokens_bt)[:b, :t]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _log_likelihoods(config: LlamaConfig, mesh: Mesh, params: Params, tokens_bt, weights_bt) -> Float[Array, " B"]:
    """Return the sum over tokens 1.. of weight times log-probability; a token and its weight have the same index."""
    hidden_btd, _ = network.forward(config, params, tokens_bt)
    targets_bt = jnp.roll(tokens_bt, -1, axis=1)
    weights_bt = jnp.roll(weights_bt.at[:, 0].set(0), -1, axis=1)
    head_dv = network.head_weight(config, params)
    nll_bt = next_token_losses(hidden_btd, head_dv, targets_bt, weights_bt).nll_bt
    return jax.lax.with_sharding_constraint(-jnp.sum(nll_bt * weights_bt, axis=1), network.replicated(mesh))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logits(config: LlamaConfig, mesh: Mesh, params: Params, tokens_bt) -> Float[Array, "B T V"]:
    hidden_btd, _ = network.forward(config, params, tokens_bt)
    scores = network.logits(config, params, hidden_btd)
    return jax.lax.with_sharding_constraint(scores, network.replicated(mesh))
