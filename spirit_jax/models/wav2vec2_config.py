"""The shape of a HuBERT or wav2vec 2.0 encoder. Reading a config needs this, and never starts JAX."""

import dataclasses
import math
import typing
from typing import Any, Literal, TypeVar

if typing.TYPE_CHECKING:
    import numpy as np
    from jax import Array

ConvLayer = tuple[int, int, int]

_Samples = TypeVar("_Samples", int, "Array", "np.ndarray")


@dataclasses.dataclass(frozen=True)
class Wav2Vec2Config:
    """The shape of a HuBERT or wav2vec 2.0 encoder. The defaults are the released 25 Hz HuBERT."""

    conv_layers: tuple[ConvLayer, ...] = ((512, 10, 5),) + ((512, 3, 2),) * 4 + ((512, 2, 2),) * 3
    """(channels, kernel, stride) of each convolution of the feature extractor."""
    conv_norm: Literal["group", "layer"] = "group"
    """Norm of the feature extractor: `group` (over time, first layer only) or `layer` (over channels, every layer)."""
    conv_bias: bool = False
    """Whether the convolutions of the feature extractor have a bias."""
    project_features: bool = True
    """Whether a linear layer maps the features to `hidden_size`. Fairseq has none where the sizes are equal."""
    hidden_size: int = 768
    """Width of the transformer."""
    num_layers: int = 12
    """Number of transformer layers."""
    num_heads: int = 12
    """Number of attention heads."""
    intermediate_size: int = 3072
    """Width of the feed-forward layers."""
    position_kernel: int = 128
    """Width of the positional convolution, in frames."""
    position_groups: int = 16
    """Number of groups of the positional convolution."""
    position_norm: Literal["weight", "batch"] = "weight"
    """Norm of the positional convolution: `weight` (a gain for each tap) or `batch` (of its input, as in inference)."""
    pre_norm: bool = False
    """Layer norm before each sub-layer and after the last layer, instead of after each sub-layer."""
    layer_norm_eps: float = 1e-5
    """Epsilon of every norm."""

    def __post_init__(self) -> None:
        for name, allowed in (("conv_norm", ("group", "layer")), ("position_norm", ("weight", "batch"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"Wav2Vec2Config.{name} is {getattr(self, name)!r}: expected one of {allowed}")
        if self.hidden_size % self.num_heads or self.hidden_size % self.position_groups:
            raise ValueError(
                f"Wav2Vec2Config.hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads} "
                f"and of position_groups {self.position_groups}"
            )

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Wav2Vec2Config":
        """The inverse of `dataclasses.asdict`, also for fields read from JSON."""
        return cls(**{**fields, "conv_layers": tuple(map(tuple, fields["conv_layers"]))})

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return math.prod(stride for _, _, stride in self.conv_layers)

    @property
    def receptive_field(self) -> int:
        """Samples that one frame reads: the length of the shortest clip with a frame."""
        field, hop = 1, 1
        for _, kernel, stride in self.conv_layers:
            field, hop = field + (kernel - 1) * hop, hop * stride
        return field

    def frames(self, samples: _Samples) -> _Samples:
        """Number of frames of a clip of `samples` samples; 0 or less for a clip that is too short."""
        return (samples - self.receptive_field) // self.hop + 1


@dataclasses.dataclass(frozen=True)
class Wav2Vec2Noise:
    """Dropout and layer drop while an encoder trains. The defaults are those of HuBERT Base.

    Raises:
        ValueError: a rate outside [0, 1).
    """

    dropout: float = 0.1
    """Dropout of the encoder's input, and of each sub-layer's output."""
    attention_dropout: float = 0.1
    """Dropout of attention weights."""
    input_dropout: float = 0.1
    """Dropout of the projected features."""
    layer_drop: float = 0.05
    """Probability that a layer is left out of a step."""
    feature_gradient: float = 0.1
    """Factor of the gradient of the feature extractor."""

    def __post_init__(self) -> None:
        for name in ("dropout", "attention_dropout", "input_dropout", "layer_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"noise.{name} must lie in [0, 1), found {getattr(self, name)}")
