"""Which weights an adapter updates. Reading a config needs this, and never starts JAX."""

import dataclasses
import math
from typing import NamedTuple

from spirit_jax.models.llama_config import Quantization


class Target(NamedTuple):
    """A weight that an adapter can update."""

    group: str
    """The part of a layer that holds it."""
    inputs: int
    """Axes of the weight, after that of the layers, which its product sums over."""


TARGETS = {
    "q_proj": Target("self_attn", 1),
    "k_proj": Target("self_attn", 1),
    "v_proj": Target("self_attn", 1),
    "o_proj": Target("self_attn", 2),
    "gate_proj": Target("mlp", 1),
    "up_proj": Target("mlp", 1),
    "down_proj": Target("mlp", 1),
}
"""The weights that an adapter can update, by Hugging Face's names."""


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which weights an adapter updates, and how.

    Raises:
        ValueError: a name that is no weight, or a value out of range.
    """

    rank: int = 16
    """Columns of A and rows of B; 0 for no updates of projections."""
    alpha: float = 32.0
    """Updates are multiplied by alpha / rank."""
    dropout: float = 0.0
    """Probability that training leaves out an input of an update, in 0..1; 1 is excluded."""
    targets: list[str] = dataclasses.field(default_factory=lambda: list(TARGETS))
    """Projections to update, in every layer, by Hugging Face's names."""
    rows_from: int | None = None
    """Ids from this one on have their rows of the embedding and of the head trained in full: 32000 for the speech
    tokens that were added to a Llama 2; null for none."""
    quantize: Quantization | None = None
    """Keep the frozen projections in 8 bits (int8) or 4 bits (int4), as QLoRA does: a half or less than a third of the
    memory of bfloat16. The adapter then corrects their rounding too; use it with a base in the same form."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown:
            raise ValueError(f"lora.targets: {', '.join(unknown)}: no such weights, choose among {', '.join(TARGETS)}")
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(f"lora.targets: a name comes twice in {', '.join(self.targets)}")
        if self.rank < 0:
            raise ValueError(f"lora.rank must not be negative, found {self.rank}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout must lie in 0..1 without 1, found {self.dropout}")
        if not math.isfinite(self.alpha):
            raise ValueError(f"lora.alpha must be a number, found {self.alpha}")
        if self.rows_from is not None and self.rows_from < 0:
            raise ValueError(f"lora.rows_from must not be negative, found {self.rows_from}")

    @property
    def scale(self) -> float:
        """The factor of the updates."""
        return self.alpha / self.rank if self.rank else 0.0

    def trains_nothing(self) -> bool:
        """Whether an adapter has no parameters."""
        return not (self.rank and self.targets) and self.rows_from is None
