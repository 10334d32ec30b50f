"""From logits to the next token: penalties, temperature and the truncations, in the order and with the meaning of Hugging Face's."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

RELEASED_TOP_K = 50
"""What the released code samples from when no top_k is given (Hugging Face's default)."""

_NEVER = -jnp.inf
_FEW = 64


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.0
    """Divides the logits; 0 takes the most likely token."""
    top_k: int | None = None
    """Keep this many most likely tokens; null is the released 50, 0 keeps all."""
    top_p: float = 1.0
    """Keep the fewest most likely tokens that together have at least this probability."""
    min_p: float = 0.0
    """Keep tokens of at least this fraction of the most likely one's probability."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens that have occurred, in the prompt too."""
    seed: int = 0
    """Draws depend on this and on the position alone, not on the batch."""

    def __post_init__(self) -> None:
        for name, valid, expected in (
            ("temperature", self.temperature >= 0, "0 or more"),
            ("top_k", self.top_k is None or self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
        ):
            if not valid:
                raise ValueError(f"{name} must be {expected}, found {getattr(self, name)}")

    @classmethod
    def of_checkpoint(cls, generation: dict[str, Any]) -> "Sampling":
        """What a checkpoint recommends: the fields of Hugging Face's generation_config.json, greedy without `do_sample`.

        Raises:
            ValueError: a value that makes no sense; names its key.
        """
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        found = {name: generation[name] for name in names if generation.get(name) is not None}
        for name, value in found.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"generation: {name} must be a number, found {value!r}")
        return cls(**({"temperature": 1.0} | found if generation.get("do_sample") else found | {"temperature": 0.0}))


class Knobs(NamedTuple):
    """`Sampling` of each row of a batch, as arrays."""

    temperature: Float[Array, " B"]
    top_k: Int[Array, " B"]
    top_p: Float[Array, " B"]
    min_p: Float[Array, " B"]
    repetition_penalty: Float[Array, " B"]
    seed: Int[Array, " B"]

    @classmethod
    def of(cls, samplings: list[Sampling]) -> "Knobs":
        """One row for each."""
        top_k = [RELEASED_TOP_K if s.top_k is None else s.top_k for s in samplings]
        floats = {
            name: np.array([getattr(s, name) for s in samplings], np.float32)
            for name in ("temperature", "top_p", "min_p", "repetition_penalty")
        }
        seeds = np.array([s.seed % 2**32 for s in samplings], np.uint32)
        return cls(top_k=np.array(top_k, np.int32), seed=seeds, **floats)


def penalise(
    logits_bv: Float[Array, "B V"], occurred_bv: Bool[Array, "B V"], penalty_b: Float[Array, " B"]
) -> Float[Array, "B V"]:
    """Make tokens that have occurred less likely (repetition penalty)."""
    penalty = penalty_b[:, None]
    penalised = jnp.where(logits_bv < 0, logits_bv * penalty, logits_bv / penalty)
    return jnp.where(occurred_bv, penalised, logits_bv)


def candidates(samplings: list[Sampling]) -> int | None:
    """How many of the most likely tokens suffice to truncate by: 0 where nothing is drawn, None where all are needed."""
    most = [RELEASED_TOP_K if s.top_k is None else s.top_k for s in samplings if s.temperature > 0]
    return None if 0 in most or max(most, default=0) > _FEW else _FEW * bool(most)


def truncate(logits_bv: Float[Array, "B V"], knobs: Knobs, few: int | None = None) -> Float[Array, "B V"]:
    """Logits divided by the temperature, -inf for tokens that top-k, then top-p, then min-p leave out.

    Tokens as likely as the last one kept are kept too. Rows of temperature 0 come back with a temperature of 1.

    Args:
        few: look only at this many most likely tokens, which is enough where every row's top_k is at most that.
    """
    v = logits_bv.shape[-1]
    logits_bv = logits_bv / jnp.where(knobs.temperature > 0, knobs.temperature, 1.0)[:, None]
    # sorting a whole vocabulary takes longer than the network's last layer
    falling_bv = -jnp.sort(-logits_bv, axis=-1) if few is None else jax.lax.top_k(logits_bv, min(few, v))[0]
    v = falling_bv.shape[-1]
    k_b = jnp.where(knobs.top_k > 0, jnp.minimum(knobs.top_k, v), v)
    least_b1 = jnp.take_along_axis(falling_bv, k_b[:, None] - 1, axis=-1)
    falling_bv = jnp.where(falling_bv >= least_b1, falling_bv, _NEVER)
    # a token stays while the probability of those before it is below top_p: summed from the least likely up, as in HF
    probabilities_bv = jax.nn.softmax(falling_bv, axis=-1)
    from_here_bv = jnp.cumsum(probabilities_bv[:, ::-1], axis=-1)[:, ::-1]
    stays_bv = (from_here_bv > 1 - knobs.top_p[:, None]) | (knobs.top_p[:, None] >= 1)
    stays_bv = (stays_bv & (falling_bv > _NEVER)).at[:, 0].set(True)
    least_b1 = jnp.min(jnp.where(stays_bv, falling_bv, jnp.inf), axis=-1, keepdims=True)
    least_b1 = jnp.maximum(least_b1, falling_bv[:, :1] + jnp.log(knobs.min_p)[:, None])
    return jnp.where(logits_bv >= least_b1, logits_bv, _NEVER)


def choose(
    logits_bv: Float[Array, "B V"], knobs: Knobs, count_b: Int[Array, " B"], few: int | None
) -> Int[Array, " B"]:
    """The next token of each row.

    Args:
        count_b: how many tokens the row has generated: with its seed, what the draw depends on.
        few: as `candidates` says; 0 leaves the work of sampling out of the program.
    """
    best_b = jnp.argmax(logits_bv, axis=-1).astype(jnp.int32)
    if few == 0:
        return best_b
    keys_b = jax.vmap(lambda seed, count: jax.random.fold_in(jax.random.key(seed), count))(knobs.seed, count_b)
    drawn_b = jax.vmap(jax.random.categorical)(keys_b, truncate(logits_bv, knobs, few)).astype(jnp.int32)
    return jnp.where(knobs.temperature > 0, drawn_b, best_b)
