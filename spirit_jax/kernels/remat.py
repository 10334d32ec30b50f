"""Which activations of a transformer block the forward pass saves for the backward pass, which recomputes the rest."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

ATTENTION_RESIDUALS = "attention_out"
"""Name (`checkpoint_name`) of what attention's backward pass needs back: the output and the softmax's denominator."""

# A block names the results of its matrix products. From one policy to the next, one more of them is recomputed.
_SAVED = ("query", "key", "value", ATTENTION_RESIDUALS, "attention_residual")
POLICIES: Mapping[str, Callable[..., bool] | None] = {
    "none": None,  # the compiler saves what it likes
    "dots": jax.checkpoint_policies.save_only_these_names(*_SAVED, "gate", "up"),
    "gate": jax.checkpoint_policies.save_only_these_names(*_SAVED, "up"),
    "mlp": jax.checkpoint_policies.save_only_these_names(*_SAVED),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def rematerialized(block: type[nn.Module], policy: str, scanned: bool) -> Any:
    """The class of a block whose backward pass recomputes what the policy does not save.

    Args:
        block: a module that names its activations with `checkpoint_name`.
        policy: a name of `POLICIES`.
        scanned: whether the block is the body of a loop. Otherwise the compiler would merge the recomputation with the
            forward pass, and must be kept from it.
    """
    if POLICIES[policy] is None:
        return block
    return nn.remat(block, policy=POLICIES[policy], prevent_cse=not scanned)
