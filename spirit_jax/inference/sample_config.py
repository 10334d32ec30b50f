"""Which samples a training run generates. Reading a config needs this, and never starts JAX."""

import dataclasses

from spirit_jax.inference.modalities import Modality
from spirit_jax.inference.sampling_params import SamplingParams


@dataclasses.dataclass(frozen=True)
class SamplePrompt:
    """A prompt, and what may continue it."""

    prompt: str
    """Token string: `[Text]the cat`, `[Speech][Hu3]...`. Its last modality token says what comes next."""
    output_modality: Modality = "any"
    """Modalities that may be generated."""


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Samples to generate during training, into {run}/samples/STEP/."""

    prompts: list[SamplePrompt] | None = None
    """Prompts; null takes one from each source of the run's data, an empty list makes no samples."""
    max_new_tokens: int = 200
    """Tokens that continue each prompt at most."""
    temperature: float = 0.8
    """Temperature of sampling; 0 takes the most likely tokens. The paper's generations use 0.8."""
    top_p: float = 0.95
    """Tokens are drawn from the most likely ones that together have this probability; the paper uses 0.95."""

    def __post_init__(self) -> None:
        self.sampling(seed=0)

    def sampling(self, seed: int) -> SamplingParams:
        """Return the decoding options of all samples.

        Raises:
            SamplingError: a value is out of range.
        """
        return SamplingParams(
            temperature=self.temperature, top_p=self.top_p, max_new_tokens=self.max_new_tokens, seed=seed
        )
