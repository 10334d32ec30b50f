"""Memory of a training step on one GPU, computed from shapes: nothing is compiled, and no GPU is needed."""

import collections
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from spirit_jax.core.constants import GIB
from spirit_jax.core.hardware import GPUS
from spirit_jax.models import llama
from spirit_jax.training.objectives import Objectives
from spirit_jax.training.optimizer import Optimizer
from spirit_jax.training.state import Params
from spirit_jax.training.step import UpdateRule

_HEAD_POSITIONS = 512  # positions whose logits exist at once on GPUs (`kernels`)
_SPARE = 0.1
"""Fraction of the memory that should be left for the driver and fragmentation."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a step holds in memory, in bytes, and the least time that it can take."""

    card: str
    """Name in `hardware.GPUS`."""
    frozen: float
    """Weights that are not trained."""
    state: float
    """Trained weights, the optimizer's moments, and gradients."""
    saved: float
    """Activations that the forward pass keeps for the backward pass."""
    working: float
    """What one layer, or one part of the head, needs while it is computed, in both passes."""
    seconds: float
    """The model's FLOPs at the card's peak."""

    @property
    def total(self) -> float:
        """Bytes that the step needs."""
        return self.frozen + self.state + self.saved + self.working

    @property
    def spare(self) -> float:
        """Fraction of the card's memory that is left over."""
        return 1 - self.total / GPUS[self.card].memory

    def __str__(self) -> str:
        """The estimate as text."""
        memory = GPUS[self.card].memory
        lines = [
            f"{self.card}: computed from shapes, nothing was compiled or run",
            f"memory   {self.total / GIB:6.2f} of {memory / GIB:.2f} GiB, {self.spare:.0%} to spare: frozen weights "
            f"{self.frozen / GIB:.2f}, trained ones with optimizer and gradients {self.state / GIB:.2f}, saved "
            f"activations {self.saved / GIB:.2f}, one layer at work {self.working / GIB:.2f}",
            f"time     at least {self.seconds:.2f} s a step, the model's FLOPs at the card's peak",
        ]
        if self.spare < _SPARE:
            lines.append(f"warning: less than {_SPARE:.0%} of the memory to spare")
        return "\n".join(lines)


def estimate_step(
    card: str, objectives: Objectives, optimizer: Optimizer, *, rows: int, length: int, accumulate: int = 1
) -> Estimate:
    """Compute the memory of one step on one GPU.

    Args:
        card: a name of `hardware.GPUS`.
        objectives: what is trained; the base of an adapter may be abstract.
        optimizer: its optimizer.
        rows: rows of the batch.
        length: tokens of a row.
        accumulate: parts of a step.
    """
    frozen: Params = {} if objectives.trained is None else objectives.trained.base
    objective = objectives.bind(frozen)
    state = jax.eval_shape(UpdateRule(objective, optimizer).init, jax.random.key(0))
    part = rows // accumulate
    batch = {
        name: jax.ShapeDtypeStruct((part, length), jnp.int32)
        for name in ("inputs", "targets", "segment_ids", "positions")
    }
    batch |= {"loss_mask": jax.ShapeDtypeStruct((part, length), jnp.bool_)}
    batch |= {name: jax.ShapeDtypeStruct((part,), jnp.int32) for name in ("sources", "step")}

    def loss(trained: Params, frozen: Params, batch: Params) -> Any:
        return objectives.bind(frozen).loss(trained, batch, jnp.ones(()))[0]

    model = objectives.model
    logits = 2 * 4 * part * min(length, _HEAD_POSITIONS) * model.vocab_size  # and their gradient, float32
    return Estimate(
        card=card,
        frozen=_bytes(frozen),
        state=_bytes(state) + _bytes(state.params),
        saved=saved_bytes(loss, state.params, frozen, batch),
        working=max(_layer_bytes(model, part, length), logits),
        seconds=objectives.summary(length).flops_per_unit * rows * length / GPUS[card].flops,
    )


def saved_bytes(loss: Callable[..., Any], trained: Params, *others: Any) -> float:
    """Bytes that the forward pass of a loss keeps for its gradient, beside its arguments.

    Args:
        loss: a function of the trained weights and of `others`.
        trained: shapes of what the gradient is taken of.
        others: shapes of the other arguments.
    """

    def kept(trained: Params, *others: Any) -> Any:
        return jax.vjp(lambda trained: loss(trained, *others), trained)[1]

    counts = collections.Counter((x.shape, x.dtype) for x in jax.tree.leaves((trained, others)))
    total = 0.0
    for leaf in jax.tree.leaves(jax.eval_shape(kept, trained, *others)):
        key = (leaf.shape, leaf.dtype)
        if counts[key]:  # an argument itself
            counts[key] -= 1
        else:
            total += _bytes(leaf)
    return total


def _layer_bytes(model: llama.LlamaConfig, rows: int, length: int) -> float:
    """Bytes of one layer at work: all its activations, their gradients, and its weights in floats.

    The gradient of attention is that of a fused kernel, so that scores of all pairs do not count.
    """
    tokens, width = rows * length, 4 if model.dtype == "float32" else 2
    heads = model.head_size * (model.num_attention_heads + model.num_key_value_heads)
    activations = 4 * model.hidden_size + 2 * heads + 4 * model.intermediate_size
    layer = jax.tree.map(lambda leaf: leaf.size // leaf.shape[0], llama.abstract_params(model)["layers"])
    return width * (2 * tokens * activations + sum(jax.tree.leaves(layer)))


def _bytes(tree: Any) -> float:
    return float(sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)))
