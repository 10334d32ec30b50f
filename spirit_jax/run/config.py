"""The config of a training run. Reading it never starts JAX."""

import dataclasses

from spirit_jax.core.buckets import is_bucket
from spirit_jax.core.checks import check_seed
from spirit_jax.corpora.prepare_config import PrepareConfig
from spirit_jax.data.config import DataConfig
from spirit_jax.inference.sample_config import SampleConfig
from spirit_jax.models.llama_config import LlamaConfig
from spirit_jax.models.lora_config import LoraConfig
from spirit_jax.parallel.mesh_config import MeshConfig
from spirit_jax.training.config import CheckpointConfig, FaultConfig, LoopConfig, OptimizerConfig, PreferenceConfig
from spirit_jax.vocabulary import Variant

MUTABLE_ON_RESUME = {
    "run_directory",
    "loop",
    "checkpoint",
    "sample",
    "mesh",
    "compile_topology",
    "faults",
    "accumulate",
    "init_from",
    "optimizer/schedule_steps",
    "data/workers",
    "data/prefetch",
    "data/on_bad_record",
    # compared by what they hold, in `corpora.run_inputs`
    "prepare",
    "tokenizer",
    "speech_tokenizer",
}
"""Keys of the config that may change when a run resumes. All others decide its weights or its data."""

_RUN = "{run}"  # A path of the config that starts with this lies in the run directory.


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run. `{run}` at the start of a path means the run directory."""

    run_directory: str
    """Directory for everything that the run writes, also gs://BUCKET/NAME; the same directory resumes it."""
    variant: Variant = "expressive"
    """base: HuBERT units only; expressive: also pitch and style units."""
    seed: int = 0
    """Decides initial weights, order of data and interleaving; the same seed gives the same run."""
    sequence_length: int = 4096
    """Tokens of a row."""
    global_batch_size: int = 256
    """Rows of a step, over all devices of all hosts."""
    accumulate: int = 1
    """Parts that a step works through one after the other to save memory; the result is the same."""
    tokenizer: str | None = None
    """Directory of the text tokenizer, which is extended by the speech tokens if it is a plain Llama's; null: `prepare`
    trains one."""
    speech_tokenizer: str | None = None
    """Checkpoint or run whose speech tokenizer encoded the records. It is copied into this run, so that its steps can
    hear and speak. null: `prepare` trains one, or there is none."""
    init_from: str | None = None
    """Directory of the initial weights: converted weights, a step of another run, or a Llama as Hugging Face stores it
    (.safetensors, .bin); null: random weights."""
    lora: LoraConfig | None = None
    """Train a low-rank adapter of `init_from` instead of all weights. Sizes of the network, the variant and, unless
    named, the tokenizers are then those of `init_from`, a checkpoint directory. null: train all weights."""
    model: LlamaConfig = LlamaConfig()
    """The network. Sizes that are not named are those of `init_from`, or else those of Llama 2 7B. With `lora`, only
    dtype, param_dtype, remat and scan_layers are used."""
    data: DataConfig = DataConfig()
    """The training mixture."""
    preferences: PreferenceConfig | None = None
    """Train on preferences (DPO) instead of `data`, from the weights of `init_from`. null: train on `data`."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer and its learning rate."""
    mesh: MeshConfig = MeshConfig()
    """Number of devices on each axis of the mesh."""
    loop: LoopConfig = LoopConfig()
    """Run length and the intervals of evaluation, logging and sampling."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When steps are saved, and which are kept."""
    faults: FaultConfig = FaultConfig()
    """Handling of bad steps and of processes that hang."""
    sample: SampleConfig = SampleConfig()
    """Samples to generate during training."""
    prepare: PrepareConfig | None = None
    """Tokenizers and records to build from corpora before the first step; null: the data are ready."""
    compile_topology: str | None = None
    """Run nothing: compile the step for these TPUs (v5e:16x16, v5p-128, 2xv6e-256), which need not exist here, and
    print what it will cost there. Needs `pip install 'spirit_jax[tpu]'`, but no data and no tokenizer. For one GPU
    (h100, a100, rtx4090, l4), the memory is computed from shapes, without a compiler. Not for `preferences`."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if "://" in self.run_directory and not is_bucket(self.run_directory):
            raise ValueError(f"run_directory {self.run_directory}: a path that all hosts share or gs://BUCKET/NAME")
        for name in ("sequence_length", "global_batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, found {getattr(self, name)}")
        for name in ("lora", "preferences"):
            if getattr(self, name) is not None and self.init_from is None:
                raise ValueError(f"{name}: name the weights to begin with as init_from")
        if self.lora is not None and self.lora.trains_nothing():
            raise ValueError("lora: nothing to train: rank is 0 or targets is empty, and rows_from is null")
        if self.lora is not None and self.lora.quantize is not None and self.model.remat == "none":
            raise ValueError(
                "lora.quantize: the backward pass would keep every layer of the base in floats; name a model.remat, "
                "such as dots"
            )
        if self.preferences is not None and self.data.sources:
            raise ValueError("preferences: a run trains on preferences or on data.sources, not on both")
        if self.init_from is None:  # else the sizes that this config does not name are read from there
            self.check_length()
        if self.tokenizer is None and self.prepare is None and self.lora is None:
            raise ValueError("tokenizer: name the directory of a tokenizer, or a section prepare that makes one")

    def check_length(self) -> None:
        """Check that a row is no longer than the model allows.

        Raises:
            ValueError: it is.
        """
        if self.sequence_length > self.model.max_position_embeddings:
            raise ValueError(
                f"sequence_length {self.sequence_length} is longer than the model's max_position_embeddings "
                f"{self.model.max_position_embeddings}"
            )

    def resolved(self) -> "TrainConfig":
        """The same config with `{run}` replaced in every path."""

        def path(value: str) -> str:
            return value.replace(_RUN, self.run_directory, 1) if value.startswith(_RUN) else value

        def optional(value: str | None) -> str | None:
            return None if value is None else path(value)

        sources = {
            name: dataclasses.replace(source, path=path(source.path)) for name, source in self.data.sources.items()
        }
        preferences = self.preferences
        if preferences is not None:
            there = dataclasses.replace(preferences.data, path=path(preferences.data.path))
            preferences = dataclasses.replace(preferences, data=there)
        return dataclasses.replace(
            self,
            preferences=preferences,
            tokenizer=optional(self.tokenizer),
            speech_tokenizer=optional(self.speech_tokenizer),
            init_from=optional(self.init_from),
            data=dataclasses.replace(self.data, sources=sources),
        )
