"""The config of the command `train_speech`. Reading it never starts JAX."""

import dataclasses

from spirit_jax.core.checks import check_seed
from spirit_jax.parallel.mesh_config import MeshConfig
from spirit_jax.speech.config import SpeechTokenizerConfig
from spirit_jax.speech_training.hubert_config import HubertTraining
from spirit_jax.speech_training.pitch_config import PitchTraining
from spirit_jax.speech_training.quantizer_config import QuantizerTraining, UnitsConfig
from spirit_jax.speech_training.style_config import ClassifierTraining, StyleTraining
from spirit_jax.speech_training.vocoder_config import VocoderTraining
from spirit_jax.training.config import CheckpointConfig, FaultConfig


@dataclasses.dataclass(frozen=True)
class TrainSpeechConfig:
    """The parts of a speech tokenizer to train, one after the other, in the order of their sections below.

    Each part has a folder in the run with its checkpoints and its log. A part that is finished goes to
    `RUN/speech_tokenizer/`, where `encode`, `train` and `generate` read it and the parts after it use it.

    Raises:
        ValueError: a value out of range, or nothing to train.
    """

    run_directory: str
    """Directory for everything that the run writes; the same directory resumes it."""
    corpora: list[str] = dataclasses.field(default_factory=list)
    """Everything that `encode` takes as input: manifests, folders, prepared TFDS directories, names of bundled
    corpora."""
    validation_fraction: float = 0.05
    """Share to hold out as split validation of a corpus that has no such split; 0 holds nothing out."""
    seed: int = 0
    """Decides initial weights, order of data, crops and masks; the same seed gives the same run."""
    cache_gb: float = 2.0
    """Memory for decoded audio."""
    hubert_1: HubertTraining | None = None
    """First iteration of HuBERT; null: not trained."""
    hubert_2: HubertTraining | None = None
    """Second iteration."""
    hubert_3: HubertTraining | None = None
    """Third iteration."""
    units: UnitsConfig | None = None
    """Phonetic units: k-means on a layer of the last HuBERT; null: none."""
    quantizer: QuantizerTraining | None = None
    """The linear quantizer that gives the same units for noisy or otherwise changed audio; null: k-means quantizes."""
    pitch: PitchTraining | None = None
    """The pitch quantizer: a VQ-VAE over F0 and voicing; null: not trained."""
    style: StyleTraining | None = None
    """The style encoder; null: not trained."""
    classifier: ClassifierTraining | None = None
    """A classifier of labels of clips, which evaluation uses; it is no part of the tokenizer. null: none."""
    vocoder_base: VocoderTraining | None = None
    """The vocoder of phonetic units; null: not trained."""
    vocoder_expressive: VocoderTraining | None = None
    """The vocoder of phonetic, pitch and style units; null: not trained."""
    scratch: SpeechTokenizerConfig | None = None
    """Parts that no section trains are learned from scratch for the trained phonetic units (quantiles of F0, k-means
    of style, Griffin-Lim), so that the tokenizer is complete; without section `units` phonetic units too, by k-means of
    spectra. null: they are missing."""
    mesh: MeshConfig = MeshConfig()
    """How many devices each axis of the mesh has."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When steps are saved, and which are kept."""
    faults: FaultConfig = FaultConfig()
    """What the run does about bad steps and about processes that hang."""
    compile_topology: str | None = None
    """Run nothing: compile the steps of the parts for these TPUs (v5e:4x4, v5p-128), which need not exist here, and
    print what they will cost there. Needs `pip install 'spirit_jax[tpu]'`, but no clips. A quantizer is left out,
    because the parts before it decide its sizes."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if not self.corpora:
            raise ValueError("corpora: name at least one corpus")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must lie in [0, 1), found {self.validation_fraction}")
        if not self.cache_gb > 0:
            raise ValueError(f"cache_gb must be positive, found {self.cache_gb}")
