"""Shape and numerics of a Llama. Reading a config needs this, and never starts JAX."""

import dataclasses
from typing import Literal

DTYPE_NAMES = ("float32", "bfloat16")
"""Types of weights and computation; `models.llama.DTYPES` has the types of arrays."""
REMAT_NAMES = ("none", "dots", "gate", "mlp", "full")
"""Activations that the backward pass recomputes; `kernels.remat.POLICIES` has the policies."""

Quantization = Literal["int8", "int4"]
"""Forms of weights that take less memory: 8 bits, or 4 bits in groups of 32 (`models.quantized`)."""


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretching of the rotary wavelengths to a longer context ("llama3" in Hugging Face)."""

    factor: float = 8.0
    """Long wavelengths are multiplied by this."""
    low_freq_factor: float = 1.0
    """Wavelengths above original_max_position_embeddings / low_freq_factor are long: stretched in full."""
    high_freq_factor: float = 4.0
    """Wavelengths below original_max_position_embeddings / high_freq_factor are short: left alone."""
    original_max_position_embeddings: int = 8192
    """Context, in tokens, of the model's first training."""

    def __post_init__(self) -> None:
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"rope_scaling: low_freq_factor {self.low_freq_factor} must be positive and below high_freq_factor "
                f"{self.high_freq_factor}"
            )
        if self.factor <= 0 or self.original_max_position_embeddings <= 0:
            raise ValueError("rope_scaling: factor and original_max_position_embeddings must be positive")


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Shape and numerics of a Llama, under Hugging Face's names. The defaults are those of Llama 2 7B."""

    vocab_size: int = 32000
    """Rows of the embedding and of the head, padding rows included."""
    hidden_size: int = 4096
    """Width of the residual stream."""
    intermediate_size: int = 11008
    """Width of the feed-forward layer."""
    num_hidden_layers: int = 32
    """Number of blocks."""
    num_attention_heads: int = 32
    """Query heads."""
    num_key_value_heads: int = 32
    """Key-value heads; each serves num_attention_heads / num_key_value_heads query heads."""
    head_dim: int | None = None
    """Size of a head; null means hidden_size / num_attention_heads."""
    rms_norm_eps: float = 1e-5
    """Added to the mean square in every RMSNorm."""
    rope_theta: float = 10_000.0
    """Base of the rotary position embedding."""
    rope_scaling: RopeScaling | None = None
    """Llama 3's stretching of the rotary wavelengths; null for none."""
    max_position_embeddings: int = 4096
    """Longest sequence, in tokens, that the model is trained for."""
    tie_word_embeddings: bool = False
    """Use the embedding as the head."""
    initializer_range: float = 0.02
    """Standard deviation of the normal distribution that initializes the weight matrices."""
    dtype: str = "float32"
    """Type of matrix products: float32 or bfloat16. Norms, softmax and losses are always float32."""
    param_dtype: str = "float32"
    """Type of the stored parameters: float32 or bfloat16."""
    remat: str = "none"
    """Activations that the backward pass recomputes, from most memory to least: none, dots (all but matrix products and
    attention), gate (also the gate of the feed-forward layer), mlp (also its up projection), full (everything)."""
    scan_layers: bool = True
    """Compile one block and loop over it. False unrolls the layers: slower to compile, sometimes faster to run."""

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
            "rms_norm_eps",
            "rope_theta",
            "initializer_range",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, found {getattr(self, name)}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}: "
                "change one, or set head_dim"
            )
        if self.head_size <= 0 or self.head_size % 2:
            raise ValueError(f"the size of a head must be even for rotary embeddings, found {self.head_size}")
        for name, table in (("dtype", DTYPE_NAMES), ("param_dtype", DTYPE_NAMES), ("remat", REMAT_NAMES)):
            if getattr(self, name) not in table:
                raise ValueError(f"{name} must be one of {', '.join(table)}, found {getattr(self, name)!r}")

    @property
    def head_size(self) -> int:
        """Features of a head: `head_dim`, or its default."""
        return self.hidden_size // self.num_attention_heads if self.head_dim is None else self.head_dim
