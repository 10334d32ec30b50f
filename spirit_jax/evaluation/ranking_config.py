"""Settings for generating and ranking answers. Importing this module starts no accelerator."""

import dataclasses
from typing import Literal

from spirit_jax.core.checks import check_seed


@dataclasses.dataclass(frozen=True)
class RankConfig:
    """Prompts, how to answer them, and what makes an answer better.

    Raises:
        ValueError: fewer than two answers.
    """

    checkpoint: str
    """Checkpoint that answers: the base of the training that follows."""
    prompts: str
    """JSONL file of prompts."""
    output: str
    """JSONL file of preferences to write: SPLIT.jsonl in the directory that the training config names."""
    by: Literal["wer", "likelihood", "tone"] = "wer"
    """wer: fewest word errors against the line's reference. likelihood: most likely words. tone: the style units of the
    prompt's speech."""
    adapter: str | None = None
    """Low-rank adapter of the checkpoint."""
    samples: int = 4
    """Answers to each prompt."""
    output_modality: Literal["text", "speech", "any"] = "any"
    """Modalities that an answer may hold."""
    max_new_tokens: int = 200
    """Longest answer in tokens."""
    temperature: float = 0.9
    """Temperature of sampling. Higher values make the answers differ more."""
    top_p: float = 0.95
    """Draw from the fewest most likely tokens that together have this probability."""
    seed: int = 0
    """The same seed gives the same answers."""
    recognizer: str = "moonshine"
    """Speech recognizer: moonshine (English, no download) or whisper:DIR."""
    slots: int = 16
    """Answers that are generated at once."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of weights and computation. Null: the checkpoint's."""
    overwrite: bool = False
    """Replace an existing output."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.samples < 2:
            raise ValueError(f"samples must be at least 2, found {self.samples}")
