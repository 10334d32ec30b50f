"""Settings for building tokenizers and records before the first step. Importing this module never starts JAX."""

import dataclasses

from spirit_jax.speech.config import SpeechTokenizerConfig


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Tokenizers and records to build from the corpora before training. Existing outputs are kept.

    Raises:
        ValueError: no corpus is named, or a fraction outside 0 to 1.
    """

    corpora: list[str] = dataclasses.field(default_factory=list)
    """Everything that `encode` takes as input: manifests, folders, text, prepared TFDS directories, names of bundled
    corpora. The records of each go to {run}/records/NAME; the name is that of the corpus, the folder, or the file
    without its suffix."""
    validation_fraction: float = 0.05
    """Share to hold out as split validation of a corpus that has no such split; 0 holds nothing out."""
    text_pieces: int = 512
    """Number of pieces of the SentencePiece model that is trained on the text of the corpora."""
    speech_tokenizer: SpeechTokenizerConfig = SpeechTokenizerConfig()
    """Sizes of the speech tokenizer that is trained on the audio of the corpora."""

    def __post_init__(self) -> None:
        if not self.corpora:
            raise ValueError("prepare.corpora: name at least one corpus")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"prepare.validation_fraction must be in [0, 1), found {self.validation_fraction}")
