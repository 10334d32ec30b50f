"""The shape of the pitch VQ-VAE. Nothing starts JAX."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class VQVAEConfig:
    """The shape of the pitch VQ-VAE. The defaults are those of the released one."""

    codes: int = 64
    """Entries of the codebook."""
    embedding_size: int = 128
    """Width of the codebook entries."""
    width: int = 32
    """Channels of the convolutions."""
    stages: int = 4
    """Number of downsampling stages; each divides the rate by `stride`."""
    stride: int = 2
    """Stride of a stage; its kernel is twice as wide."""
    depth: int = 4
    """Residual blocks of a stage."""
    dilation_growth: int = 3
    """Residual block d has dilation `dilation_growth ** d`."""
    residual_scale: float = 1.0
    """Factor of each residual branch."""
    reverse_decoder_dilation: bool = False
    """Whether the decoder's residual blocks go from the widest dilation to the narrowest."""

    @property
    def hop(self) -> int:
        """F0 frames a code."""
        return self.stride**self.stages
