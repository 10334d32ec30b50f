"""Decoding options, and the choice of the next token from logits.

The repetition penalty, the temperature and the truncations have the order and the meaning of Hugging Face's logits
processors, which the released code uses.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from spirit_jax.inference.sampling_params import SamplingParams

_LEAST_TEMPERATURE = 1e-6
_SHORTLIST = 64  # sorting this many tokens is cheap; sorting a whole vocabulary takes longer than the last layer


class SamplingArrays(NamedTuple):
    """The options of `SamplingParams` that the device needs, with one entry for each row of a batch."""

    temperature: Float[Array | np.ndarray, " B"]
    top_k: Int[Array | np.ndarray, " B"]
    top_p: Float[Array | np.ndarray, " B"]
    min_p: Float[Array | np.ndarray, " B"]
    repetition_penalty: Float[Array | np.ndarray, " B"]
    seed: UInt32[Array | np.ndarray, " B"]

    @classmethod
    def of(cls, rows: Sequence[SamplingParams]) -> "SamplingArrays":
        """Collect the options of each row."""
        return cls(
            temperature=np.array([_usable(row.temperature) for row in rows], np.float32),
            top_k=np.array([row.top_k for row in rows], np.int32),
            top_p=np.array([row.top_p for row in rows], np.float32),
            min_p=np.array([row.min_p for row in rows], np.float32),
            repetition_penalty=np.array([row.repetition_penalty for row in rows], np.float32),
            seed=np.array([row.seed % 2**32 for row in rows], np.uint32),
        )


def _usable(temperature: float) -> float:
    """The temperature, or its limit 0 where logits divided by it could overflow."""
    return temperature if temperature > _LEAST_TEMPERATURE else 0.0


@dataclasses.dataclass(frozen=True)
class SamplingFeatures:
    """Sampling features of the compiled steps beyond greedy decoding. A feature that is left out costs nothing."""

    shortlist: int | None = None
    """Number of most likely tokens that `truncate` looks at: enough for a top_k up to this. 0 supports greedy decoding
    alone, None every top_k."""
    repetition_penalty: bool = True
    grammar: bool = True

    @classmethod
    def of(cls, rows: Sequence[SamplingParams]) -> "SamplingFeatures":
        """Return the features that these options need together."""
        top_k = [row.top_k for row in rows if row.temperature > 0]
        needs_all = 0 in top_k or max(top_k, default=0) > _SHORTLIST
        return cls(
            shortlist=None if needs_all else _SHORTLIST * bool(top_k),
            repetition_penalty=any(row.repetition_penalty != 1 for row in rows),
            grammar=any(row.grammar for row in rows),
        )

    def cover(self, row: SamplingParams) -> bool:
        """Return whether steps compiled with these features can run a request with these options."""
        needed = SamplingFeatures.of([row])
        enough = self.shortlist is None or (needed.shortlist is not None and needed.shortlist <= self.shortlist)
        return enough and self.repetition_penalty >= needed.repetition_penalty and self.grammar >= needed.grammar


def penalize_repetition(
    logits_bv: Float[Array, "B V"],
    occurred_bv: Bool[Array | np.ndarray, "B V"],
    penalty_b: Float[Array | np.ndarray, " B"],
) -> Float[Array, "B V"]:
    """Make tokens that have occurred less likely: divide their positive logits and multiply their negative ones."""
    penalty_b1 = penalty_b[:, None]
    penalized_bv = jnp.where(logits_bv < 0, logits_bv * penalty_b1, logits_bv / penalty_b1)
    return jnp.where(occurred_bv, penalized_bv, logits_bv)


def truncate(
    logits_bv: Float[Array, "B V"], options: SamplingArrays, shortlist: int | None = None
) -> Float[Array, "B V"]:
    """Divide logits by the temperature and set those to -inf that top-k, then top-p, then min-p leave out.

    Tokens as likely as the last one kept are kept too. Rows of temperature 0 are divided by 1.

    Args:
        shortlist: look only at this many of the most likely tokens, which suffices if no row has a larger top_k; None
            looks at all.
    """
    v = logits_bv.shape[-1]
    temperature_b = jnp.where(options.temperature > 0, options.temperature, 1.0)
    logits_bv = logits_bv / temperature_b[:, None]
    sorted_bv = -jnp.sort(-logits_bv, axis=-1) if shortlist is None else jax.lax.top_k(logits_bv, min(shortlist, v))[0]
    v = sorted_bv.shape[-1]
    k_b = jnp.where(options.top_k > 0, jnp.minimum(options.top_k, v), v)
    threshold_b1 = jnp.take_along_axis(sorted_bv, k_b[:, None] - 1, axis=-1)
    sorted_bv = jnp.where(sorted_bv >= threshold_b1, sorted_bv, -jnp.inf)
    # A token stays while the probability of those before it is below top_p. Hugging Face sums from the least likely up.
    probabilities_bv = jax.nn.softmax(sorted_bv, axis=-1)
    from_here_bv = jnp.cumsum(probabilities_bv[:, ::-1], axis=-1)[:, ::-1]
    top_p_b1 = jnp.asarray(options.top_p)[:, None]
    kept_bv = (from_here_bv > 1 - top_p_b1) | (top_p_b1 >= 1)
    kept_bv = (kept_bv & (sorted_bv > -jnp.inf)).at[:, 0].set(True)
    threshold_b1 = jnp.min(jnp.where(kept_bv, sorted_bv, jnp.inf), axis=-1, keepdims=True)
    threshold_b1 = jnp.maximum(threshold_b1, sorted_bv[:, :1] + jnp.log(options.min_p)[:, None])
    return jnp.where(logits_bv >= threshold_b1, logits_bv, -jnp.inf)


def sample(
    logits_bv: Float[Array, "B V"],
    options: SamplingArrays,
    count_b: Int[Array | np.ndarray, " B"],
    shortlist: int | None,
) -> Int[Array, " B"]:
    """Choose the next token of each row: the most likely one at temperature 0, otherwise one drawn after `truncate`.

    Args:
        count_b: tokens that the row has generated; a draw depends on this and on the row's seed.
        shortlist: as in `SamplingFeatures`; 0 leaves the work of drawing out of the program.
    """
    most_likely_b = jnp.argmax(logits_bv, axis=-1).astype(jnp.int32)
    if shortlist == 0:
        return most_likely_b
    fold = jax.vmap(lambda seed, count: jax.random.fold_in(jax.random.key(seed), count))
    keys_b = fold(options.seed, count_b)
    drawn_b = jax.vmap(jax.random.categorical)(keys_b, truncate(logits_bv, options, shortlist)).astype(jnp.int32)
    return jnp.where(options.temperature > 0, drawn_b, most_likely_b)
