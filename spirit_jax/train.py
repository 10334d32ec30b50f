"""Train a Spirit LM.

    python -m spirit_jax.train --config configs/tiny.yaml [--section.key value ...]

The run lives in one directory: config, tokenizers, metrics, samples and checkpoints. The same command resumes it.
"""

import dataclasses
import json
import pathlib
import shutil
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from spirit_jax import checkpoint, config
from spirit_jax.convert.hugging_face import is_hugging_face, open_hugging_face
from spirit_jax.core.files import atomic_directory, write_file
from spirit_jax.corpora.prepare import PrepareConfig, prepare
from spirit_jax.costmodel.report import Report
from spirit_jax.costmodel.topology import Topology
from spirit_jax.data.config import DataConfig
from spirit_jax.data.held_out import held_out_batches
from spirit_jax.data.loader import Loader
from spirit_jax.data.records import read_metadata
from spirit_jax.inference.samples import SampleConfig, Sampler
from spirit_jax.models import llama
from spirit_jax.parallel.mesh import MeshConfig, make_mesh
from spirit_jax.parallel.processes import is_primary, join_processes, leave, report, wait_for_all
from spirit_jax.parallel.sharding import local_rows
from spirit_jax.speech import speech_fingerprints
from spirit_jax.training.checkpoints import CheckpointConfig, RunCheckpoints
from spirit_jax.training.compile import compile_step
from spirit_jax.training.faults import FaultConfig
from spirit_jax.training.initialize import Weights, load_initial_params
from spirit_jax.training.loop import Loop, LoopConfig, TrainingError
from spirit_jax.training.metrics import MetricsLog
from spirit_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from spirit_jax.training.step import Program, TrainState, check_mesh, make_program
from spirit_jax.vocabulary import TOKEN_KINDS, Variant, Vocabulary, added_tokens

PROG = "python -m spirit_jax.train"

_RUN = "{run}"  # stands for the run directory in paths of the config


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run. `{run}` at the start of a path stands for the run directory."""

    run_directory: str
    """Where everything of the run goes; the same directory resumes it."""
    variant: Variant = "expressive"
    """base: HuBERT units alone; expressive: pitch and style units too."""
    seed: int = 0
    """Decides initial weights, order of data and interleaving; the same seed gives the same run."""
    sequence_length: int = 4096
    """Tokens of a row."""
    global_batch_size: int = 256
    """Rows of a step, over all devices of all hosts."""
    accumulate: int = 1
    """Parts that a step is worked through in, one after the other, to save memory; the result is the same."""
    tokenizer: str | None = None
    """Directory of the text tokenizer, extended by the speech tokens if it is a plain Llama's; null: made by `prepare`."""
    speech_tokenizer: str | None = None
    """Checkpoint or run whose speech tokenizer the records were encoded with, copied into this run so that its steps can hear and
    speak; null: made by `prepare`, or none."""
    init_from: str | None = None
    """Directory to start from: converted weights, a step of another run, or a Llama of Hugging Face as it is (.safetensors,
    .bin); null: random weights."""
    model: llama.LlamaConfig = llama.LlamaConfig()
    """The network."""
    data: DataConfig = DataConfig()
    """The training mixture."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How the weights move."""
    mesh: MeshConfig = MeshConfig()
    """How many devices each axis of the mesh has."""
    loop: LoopConfig = LoopConfig()
    """How long, and what else, how often."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When steps are saved."""
    faults: FaultConfig = FaultConfig()
    """What is done about bad steps and hosts that hang."""
    sample: SampleConfig = SampleConfig()
    """What is generated during training."""
    prepare: PrepareConfig | None = None
    """Corpora to make tokenizers and unit records of before the first step; null: the data are ready."""
    compile_topology: str | None = None
    """Run nothing: compile the step for these TPUs (v5e:16x16, v5p-128, 2xv6e-256), which need not be there, and print what it
    will cost there. Needs `pip install 'spirit_jax[tpu]'`; no data, no tokenizer."""

    def __post_init__(self) -> None:
        if "://" in self.run_directory:
            raise ValueError(
                f"run_directory {self.run_directory}: a path that all hosts share is needed; mount the bucket (docs/tpu.md)"
            )
        for name in ("sequence_length", "global_batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, found {getattr(self, name)}")
        if self.sequence_length > self.model.max_position_embeddings:
            raise ValueError(
                f"sequence_length {self.sequence_length} is longer than the model's max_position_embeddings {self.model.max_position_embeddings}"
            )
        if self.tokenizer is None and self.prepare is None:
            raise ValueError("tokenizer: name the directory of a tokenizer, or a section prepare that makes one")

    def resolved(self) -> "TrainConfig":
        """The same with `{run}` replaced in every path."""

        def path(value: str | None) -> str | None:
            return value.replace(_RUN, self.run_directory, 1) if value and value.startswith(_RUN) else value

        sources = {
            name: dataclasses.replace(source, path=path(source.path)) for name, source in self.data.sources.items()
        }
        return dataclasses.replace(
            self,
            tokenizer=path(self.tokenizer),
            speech_tokenizer=path(self.speech_tokenizer),
            init_from=path(self.init_from),
            data=dataclasses.replace(self.data, sources=sources),
        )


# What a resumed run may change without a word; a change elsewhere makes another run of it.
_FREE = {
    "run_directory",
    "loop",
    "checkpoint",
    "sample",
    "mesh",
    "compile_topology",
    "faults",
    "accumulate",
    "init_from",
    "prepare",
    "tokenizer",
    "speech_tokenizer",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: exit code 2 for a config that cannot be used, 1 for a run that failed."""
    settings = config.parse(TrainConfig, arguments, PROG, __doc__)
    try:
        if settings.compile_topology is not None:
            print(compile_run(settings))
            return
        join_processes(settings.faults.heartbeat_timeout)
        run(settings.resolved())
    except Exception as error:
        known = isinstance(error, (ValueError, FileExistsError, TrainingError))
        code = config.BAD_ARGUMENT if isinstance(error, (ValueError, FileExistsError)) else config.FAILED_JOB
        if jax.distributed.is_initialized() and jax.process_count() > 1:
            if not known:
                traceback.print_exc()
            leave(PROG, error, code)
        if not known:
            raise
        config.fail(PROG, error, code)


def compile_run(settings: TrainConfig) -> Report:
    """Compile the training step of a run for `compile_topology`."""
    return compile_step(
        Topology.parse(settings.compile_topology),
        settings.model,
        settings.optimizer,
        settings.mesh,
        rows=settings.global_batch_size,
        length=settings.sequence_length,
        accumulate=settings.accumulate,
        steps=settings.loop.steps,
    )


def run(settings: TrainConfig) -> TrainState:
    """Train as configured; returns the last state. Raises what `main` turns into exit codes."""
    directory = pathlib.Path(settings.run_directory)
    mesh = make_mesh(settings.mesh, rows=settings.global_batch_size // settings.accumulate)
    schedule = make_schedule(settings.optimizer, settings.loop.steps)
    check_mesh(settings.model, mesh, settings.global_batch_size, settings.accumulate)
    check_vocabulary_size(settings)
    check_resumable(settings, directory)

    vocabulary = make_tokenizers(settings, directory)
    check_units(settings, directory)
    program = make_program(
        settings.model,
        make_optimizer(settings.optimizer, settings.loop.steps),
        schedule,
        mesh,
        rows=settings.global_batch_size,
        token_kinds=pad_kinds(vocabulary, settings.model.vocab_size),
        accumulate=settings.accumulate,
        z_loss=settings.optimizer.z_loss,
        spike_sigmas=settings.faults.spike_sigmas,
    )
    if is_primary():
        write_file(directory / checkpoint.CONFIG, json.dumps(config.to_dict(settings), indent=1))
        write_file(directory / "config.yaml", config.to_yaml(settings))

    checkpoints = RunCheckpoints(directory, settings.checkpoint)
    state, streams = start(settings, program, checkpoints, vocabulary)
    step = int(state.step)
    share, shares = local_rows(mesh, settings.global_batch_size)
    loader = Loader(
        settings.data,
        vocabulary,
        settings.sequence_length,
        settings.global_batch_size,
        settings.seed,
        share,
        shares,
        streams,
    )
    log = MetricsLog(directory, step, active=is_primary())
    sampler = Sampler(settings.sample, settings.model, vocabulary, directory, mesh, log, settings.seed)
    announce(settings, directory, step, mesh)
    loop = Loop(
        config=settings.loop,
        faults=settings.faults,
        program=program,
        mesh=mesh,
        rows=settings.global_batch_size,
        batches=loader,
        held_out=lambda: held_out(settings, vocabulary, share, shares),
        log=log,
        checkpoints=checkpoints,
        checkpoint_every=settings.checkpoint.every,
        extra={"config": config.to_dict(settings), "vocabulary": vocabulary.fingerprint},
        sample=sampler,
        flops_per_token=llama.flops_per_token(settings.model, settings.sequence_length),
        token_kinds=pad_kinds(vocabulary, settings.model.vocab_size),
        directory=directory,
    )
    with loader:
        state = loop.run(state)
    for name, count in loader.skipped.items():
        if count:
            report(f"source {name}: {count} records could not be used and were skipped")
    log.close()
    farewell(settings, directory, int(state.step))
    return state


def check_vocabulary_size(settings: TrainConfig) -> None:
    """Refuse, before anything is written, a vocabulary that the model has no rows for."""
    if settings.prepare is not None and settings.tokenizer is None:
        size = settings.prepare.text_pieces + len(added_tokens(settings.variant))
    else:
        size = Vocabulary.load(settings.tokenizer, settings.variant).size
    if size > settings.model.vocab_size:
        raise ValueError(
            f"model.vocab_size {settings.model.vocab_size} is less than the {size} tokens of the vocabulary"
        )


def check_resumable(settings: TrainConfig, directory: pathlib.Path) -> None:
    """Refuse to resume a run whose config decided other weights or other data; start another run with `init_from` instead."""
    path = directory / checkpoint.CONFIG
    if not path.is_file():
        return
    before, now = checkpoint.flatten(json.loads(path.read_text())), checkpoint.flatten(config.to_dict(settings))
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    changed = [key for key in changed if key.split("/")[0] not in _FREE]
    if changed and checkpoint.latest_step(directory) is not None:
        listed = ", ".join(f"{key.replace('/', '.')} {before.get(key)} -> {now.get(key)}" for key in changed[:5])
        raise ValueError(
            f"{directory} holds a run with another config ({listed}): choose another run_directory, and init_from to go on from its weights"
        )


def make_tokenizers(settings: TrainConfig, directory: pathlib.Path) -> Vocabulary:
    """The run's vocabulary, and its speech tokenizer, kept in the run; then corpora are prepared where the config says so."""
    path, speech = directory / checkpoint.TOKENIZER, directory / checkpoint.SPEECH_TOKENIZER
    if is_primary():
        if settings.tokenizer is not None and not path.exists():
            Vocabulary.load(settings.tokenizer, settings.variant).save(path)
        if settings.speech_tokenizer is not None and not speech.exists():
            with atomic_directory(speech) as scratch:
                source = checkpoint.find(settings.speech_tokenizer, checkpoint.SPEECH_TOKENIZER)
                shutil.copytree(source, scratch, dirs_exist_ok=True)
        if settings.prepare is not None:
            prepare(settings.prepare, directory, settings.variant, settings.seed)
    wait_for_all("prepared")
    return Vocabulary.load(path, settings.variant)


def check_units(settings: TrainConfig, directory: pathlib.Path) -> None:
    """Refuse records of several speech tokenizers, or of another one than the run's: their units mean other sounds."""
    makers = {}
    for name in settings.data.source_names:
        path = settings.data.sources[name].path
        makers.setdefault(read_metadata(path).get("units") or None, f"{name} ({path})")
    makers.pop(None, None)  # text
    if len(makers) > 1:
        raise ValueError(
            f"data.sources: {' and '.join(makers.values())} hold units of different speech tokenizers: encode all with one"
        )
    known = speech_fingerprints(directory)
    if known and not makers.keys() <= known:
        raise ValueError(
            f"data.sources: {' and '.join(makers.values())} was not encoded with the speech tokenizer in {directory}: "
            "encode it again, or name the one that did as speech_tokenizer"
        )


def pad_kinds(vocabulary: Vocabulary, rows: int) -> np.ndarray:
    """Kinds of all rows of the embedding; those beyond the vocabulary are control."""
    return np.pad(
        vocabulary.token_kinds[:rows],
        (0, max(rows - vocabulary.padded_size, 0)),
        constant_values=TOKEN_KINDS.index("control"),
    )


def start(
    settings: TrainConfig, program: Program, checkpoints: RunCheckpoints, vocabulary: Vocabulary
) -> tuple[TrainState, dict[str, Any] | None]:
    """The state to go on from, and where the data streams stand: the newest step, other weights, or fresh ones."""
    if checkpoints.steps:
        step = checkpoints.steps[-1]
        extra = checkpoints.read_extra(step)
        if extra["vocabulary"] != vocabulary.fingerprint:
            raise ValueError(
                f"{settings.run_directory}: its tokenizer is not the one that step {step} was trained with"
            )
        return checkpoints.restore(step, program.abstract_state), extra["data"]
    if settings.init_from is None:
        return program.init(jax.random.key(settings.seed)), None
    source = pathlib.Path(settings.init_from)
    weights = Weights(*open_hugging_face(source)) if is_hugging_face(source) else None
    params = load_initial_params(source, settings.model, vocabulary, program.shardings.params, settings.seed, weights)
    return program.start_from(params), None


def held_out(settings: TrainConfig, vocabulary: Vocabulary, share: int, shares: int) -> Mapping[str, Iterator[dict]]:
    """Held-out batches of every source that has a held-out split."""
    return {
        name: held_out_batches(
            settings.data,
            vocabulary,
            settings.sequence_length,
            settings.global_batch_size,
            name,
            share,
            shares,
            settings.seed,
        )
        for name, source in settings.data.sources.items()
        if source.held_out_split is not None
    }


def announce(settings: TrainConfig, directory: pathlib.Path, step: int, mesh: Mesh) -> None:
    """Say what is about to run."""
    count = llama.parameter_count(settings.model)
    device = jax.devices()[0]
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    report(
        f"{'Resuming' if step else 'Starting'} {directory} at step {step} of {settings.loop.steps}: {count / 1e6:,.1f} M parameters "
        f"on {jax.device_count()} {device.device_kind} device(s) ({axes}), "
        f"{settings.global_batch_size} rows x {settings.sequence_length} tokens a step"
    )


def farewell(settings: TrainConfig, directory: pathlib.Path, step: int) -> None:
    """Say where things are and what to type next."""
    if step < settings.loop.steps:
        return
    last, samples = directory / checkpoint.STEPS / str(step), directory / "samples" / str(step)
    mute = (
        ""
        if (directory / checkpoint.SPEECH_TOKENIZER).is_dir()
        else " (units; with speech_tokenizer in the config, sound)"
    )
    lines = [
        f"Done: {step} steps.",
        f"  checkpoints  {directory / checkpoint.STEPS}/",
        f"  metrics      {directory}/metrics.jsonl, and: tensorboard --logdir {directory}/tensorboard",
        *([f"  samples      {samples}/"] if samples.is_dir() else []),
        f"Next, let it speak{mute}:",
        f'  python -m spirit_jax.generate --checkpoint {last} --input text:"The conductor stopped the steam engine near the tunnel, and then" '
        f"--output-modality speech --temperature 0.8 --top-p 0.95 --output {directory}/generated",
    ]
    report("\n".join(lines))


if __name__ == "__main__":
    main()
