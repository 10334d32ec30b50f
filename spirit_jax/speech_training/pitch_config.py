"""Configuration of the pitch quantizer's training. Reading it never starts JAX."""

import dataclasses
import math
from typing import Literal

from spirit_jax.models.vqvae_config import VQVAEConfig
from spirit_jax.training.config import LoopConfig, OptimizerConfig


@dataclasses.dataclass(frozen=True)
class PitchTraining:
    """Training of the VQ-VAE over F0 and voicing. The defaults are those of Polyak et al. 2021 (arXiv 2104.00355).

    Clips that have no voiced frame are skipped and counted.

    Raises:
        ValueError: a value out of range.
    """

    network: VQVAEConfig = VQVAEConfig()
    """Shape of the VQ-VAE."""
    f0: Literal["autocorrelation", "pyaapt", "fcpe"] = "autocorrelation"
    """How F0 is found: by the extractor of this package, by pYAAPT (the published recipe's; slow, needs AMFM-decompy),
    or by the FCPE network of `fcpe_from`. The part keeps it."""
    fcpe_from: str | None = None
    """A checkpoint directory whose pitch part holds FCPE's weights, such as the converted released one."""
    interpolate: bool = True
    """Whether unvoiced frames get the line between their voiced neighbors."""
    normalize: bool = True
    """Whether F0 is taken relative to the clip's mean, which leaves the intonation and takes away the voice."""
    samples: int = 16_640
    """Samples of a crop; a multiple of the 1280 samples of a code."""
    rows: int = 16
    """Crops of a step."""
    commitment: float = 0.02
    """Weight of the distance of the latents to their codes."""
    voicing_weight: float = 1.0
    """Weight of the error of voicing, which is small beside that of F0 in Hz; published recipes have 1."""
    decay: float = 0.99
    """Decay of the codebook's moving averages."""
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=2e-4, beta1=0.9, beta2=0.999, epsilon=1e-8, weight_decay=0.01, clip_norm=0.0
    )
    """AdamW with the published values."""
    loop: LoopConfig = LoopConfig(steps=400_000, evaluate_every=5000, sample_every=0)
    """Run length and intervals."""

    def __post_init__(self) -> None:
        hop = 80 * self.network.hop
        if self.samples < hop or self.samples % hop:
            raise ValueError(f"samples must be a multiple of the {hop} samples of a code, found {self.samples}")
        scales = (1.0, self.network.depth**-0.5)
        if not any(math.isclose(self.network.residual_scale, scale, rel_tol=1e-6) for scale in scales):
            raise ValueError(
                f"network.residual_scale must be 1 or depth ** -0.5 = {scales[1]:.6g}, as the released files can store "
                f"it; found {self.network.residual_scale}"
            )
        for name in ("rows", "voicing_weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, found {getattr(self, name)}")
        if self.commitment < 0 or not 0 < self.decay < 1:
            raise ValueError(
                f"commitment must not be negative and decay must lie in (0, 1), found {self.commitment}, {self.decay}"
            )
        if (self.f0 == "fcpe") != (self.fcpe_from is not None):
            raise ValueError("fcpe_from: names the weights for f0 fcpe, and is null for other extractors")
        if self.loop.evaluate_tasks:
            raise ValueError("loop.evaluate_tasks: tasks of language models, not of a part of a speech tokenizer")
