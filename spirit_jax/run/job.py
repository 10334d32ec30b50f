"""The job of a training run: its inputs, first state and loop, and what is printed around them."""

import dataclasses
import math
import pathlib
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import yaml

from spirit_jax import checkpoint, config
from spirit_jax.convert.hugging_face import is_hugging_face, open_hugging_face, read_hugging_face_config
from spirit_jax.core import buckets
from spirit_jax.core.files import write_file
from spirit_jax.core.hardware import GPUS
from spirit_jax.core.paths import as_path, local_path
from spirit_jax.corpora.run_inputs import RunInputs, put_inputs, run_vocabulary
from spirit_jax.costmodel.report import Report
from spirit_jax.costmodel.topology import Topology
from spirit_jax.data.held_out import held_out_batches
from spirit_jax.data.loader import Loader
from spirit_jax.data.packing import HostBatch
from spirit_jax.data.preferences import PreferenceBatches, Preferences, held_out_preferences
from spirit_jax.inference.samples import SampleWriter
from spirit_jax.models import llama
from spirit_jax.models.lora import parameter_count
from spirit_jax.models.lora_config import LoraConfig
from spirit_jax.parallel.mesh import make_mesh
from spirit_jax.parallel.mesh_config import MeshConfig
from spirit_jax.parallel.processes import gather_json, is_primary, report
from spirit_jax.parallel.sharding import BatchLayout, HostShare
from spirit_jax.run.config import MUTABLE_ON_RESUME, TrainConfig
from spirit_jax.run.place import RunPlace, open_place, with_local_paths
from spirit_jax.training import lora
from spirit_jax.training.checkpoints import RunCheckpoints
from spirit_jax.training.checks import (
    RunError,
    check_resumable,
    check_streams,
    check_units,
    check_vocabulary_size,
    stored_config,
)
from spirit_jax.training.compile import abstract_objectives, compile_step
from spirit_jax.training.estimate import Estimate, estimate_step
from spirit_jax.training.goodput import Goodput
from spirit_jax.training.initialize import Weights, adopt_sizes, checkpoint_config, load_initial_params
from spirit_jax.training.language_model import padded_token_kinds, param_shardings
from spirit_jax.training.loop import RunOutputs, train
from spirit_jax.training.metrics import MetricsLog
from spirit_jax.training.objectives import Objectives
from spirit_jax.training.optimizer import make_optimizer, make_schedule
from spirit_jax.training.run_lock import hold_run
from spirit_jax.training.sample_prompts import prompts_from_data, words_from_data
from spirit_jax.training.state import Params, TrainState
from spirit_jax.training.step import TrainStep
from spirit_jax.training.task import Task
from spirit_jax.vocabulary import Vocabulary, added_tokens


def with_sizes(settings: TrainConfig, named: Collection[str]) -> TrainConfig:
    """Return the config with the sizes of the network that it does not name taken from the weights of `init_from`.

    A run that resumes has the network of its own config.

    Args:
        named: dotted names of the options that the user gave.

    Raises:
        SpiritError: there are no such weights or no such tokenizer, or their sizes do not fit those that are named.
    """
    found, fields = settings.resolved(), {name.split(".")[1] for name in named if name.startswith("model.")}
    if found.init_from is None or found.lora is not None:  # an adapter has the network of its base
        return settings
    if found.compile_topology is not None and not as_path(found.init_from).exists():
        return settings
    directory = checkpoint.latest_step(found.run_directory) or as_path(found.init_from)
    if buckets.is_bucket(directory):
        directory = checkpoint.local_directory(directory, "init_from")
    if found.tokenizer is not None and buckets.is_bucket(found.tokenizer):
        found = dataclasses.replace(found, tokenizer=local_path(found.tokenizer, "tokenizer"))
    network = read_hugging_face_config(directory) if is_hugging_face(directory) else checkpoint_config(directory)
    tokens = 0 if "vocab_size" in fields else vocabulary_size(found)
    try:
        model = adopt_sizes(settings.model, network, named=fields, vocabulary_size=tokens)
        settings = dataclasses.replace(settings, model=model)
        settings.check_length()
        return settings
    except ValueError as error:
        raise RunError(f"the sizes of {directory} and those of this config do not go together: {error}") from error


def compile_run(settings: TrainConfig) -> Report | Estimate:
    """Compile the training step of a run for the TPUs of `compile_topology`, or compute its memory on a GPU.

    Raises:
        SpiritError: there is no such topology or no TPU compiler, the mesh does not fit the run, or the run trains on
            preferences.
    """
    topology = settings.compile_topology
    if topology is None:
        raise RunError("compile_topology: name the TPUs to compile for, as in v5e:16x16, or a GPU such as h100")
    if settings.preferences is not None:
        raise RunError("compile_topology: only training on documents; leave out preferences")
    source = settings.resolved().init_from
    if settings.lora is not None and source is not None and as_path(source).exists():
        local = checkpoint.local_directory(source, "init_from")
        settings, _ = with_base(dataclasses.replace(settings, init_from=str(local)), settings.lora)
    if topology in GPUS:
        here = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
        return estimate_step(
            topology,
            abstract_objectives(settings.model, settings.optimizer, here, settings.lora),
            make_optimizer(settings.optimizer, settings.loop.steps),
            rows=settings.global_batch_size,
            length=settings.sequence_length,
            accumulate=settings.accumulate,
        )
    return compile_step(
        Topology.parse(topology),
        settings.model,
        settings.optimizer,
        settings.mesh,
        rows=settings.global_batch_size,
        length=settings.sequence_length,
        accumulate=settings.accumulate,
        steps=settings.loop.steps,
        lora=settings.lora,
    )


def run(settings: TrainConfig) -> TrainState:
    """Train as configured, and return the last state. No other process can train in the run directory meanwhile.

    Raises:
        SpiritError: the config does not fit the devices, the data or the run directory, or the run cannot continue.
    """
    with open_place(settings.run_directory) as place:
        return run_at(settings, place)


def run_at(settings: TrainConfig, place: RunPlace) -> TrainState:
    """Train as configured in the directory of a run.

    Raises:
        SpiritError: as `run`.
    """
    goodput = Goodput(place.directory, is_primary())
    base, local = None, with_local_paths(settings, place.directory)
    if local.lora is not None:
        local, base = with_base(local, local.lora)
        settings = dataclasses.replace(
            settings,
            model=local.model,
            variant=local.variant,
            tokenizer=settings.tokenizer or local.tokenizer,
            speech_tokenizer=settings.speech_tokenizer or local.speech_tokenizer,
        )
    values, settings = config.to_dict(settings), local.resolved()
    mesh = make_mesh(settings.mesh, rows=settings.global_batch_size // settings.accumulate)
    layout = BatchLayout(mesh, settings.global_batch_size, settings.accumulate)
    param_shardings(settings.model, mesh)  # Fails here if the mesh does not divide a weight.
    check_vocabulary_size(vocabulary_size(settings), settings.model.vocab_size)
    with hold_run(place.name) as check:
        return run_held(settings, values, layout, place, check, goodput, base)


def with_base(settings: TrainConfig, config: LoraConfig) -> tuple[TrainConfig, lora.Base]:
    """Return the config of an adapter with the base's network, variant and tokenizers in it, and the base.

    Raises:
        SpiritError: `init_from` is no checkpoint directory, lacks a part, or does not allow what the config asks for.
    """
    source = settings.resolved().init_from
    assert source is not None  # TrainConfig asks for it
    if is_hugging_face(pathlib.Path(source)):
        raise RunError(
            f"init_from {source}: a Llama as Hugging Face stores it; an adapter needs a base with speech tokens: "
            "convert it first (python -m spirit_jax.convert import --source DIR --target DIR --model VARIANT)"
        )
    base = lora.open_base(source, settings.model)
    lora.check_fits(base, config, settings.sequence_length)
    changed = dataclasses.replace(
        settings,
        model=base.model,
        variant=base.variant,
        tokenizer=settings.tokenizer or str(checkpoint.find(source, checkpoint.TOKENIZER)),
        speech_tokenizer=settings.speech_tokenizer or base.speech_tokenizer,
    )
    return changed, base


def run_held(
    settings: TrainConfig,
    values: dict[str, Any],
    layout: BatchLayout,
    place: RunPlace,
    check: Callable[[], None],
    goodput: Goodput,
    base: lora.Base | None = None,
) -> TrainState:
    """Train in a directory that this job holds.

    Args:
        settings: the run, with paths resolved.
        values: its config as plain values, as the user wrote it.
        layout: how a batch is split over the devices.
        place: the directory of the run.
        check: raises if the directory is removed.
        goodput: counts the time of the run.
        base: of the adapter that is trained; None to train all weights.
    """
    directory, mesh = place.directory, layout.mesh
    before = with_defaults(stored_config(directory))
    has_steps = checkpoint.latest_step(place.name) is not None
    if has_steps:
        check_resumable(place.name, before, values, MUTABLE_ON_RESUME)
        if base is not None:
            lora.check_base(directory, base)

    vocabulary = prepare_inputs(settings, place, before, has_steps=has_steps)
    preferences = settings.preferences
    check_units(settings.data, directory, None if preferences is None else preferences.data)
    check_streams(settings.data, settings.variant)
    token_kinds = padded_token_kinds(vocabulary, settings.model.vocab_size)
    trained = reference = None
    if base is not None and settings.lora is not None:
        trained = lora.AdapterWeights(
            settings.model, settings.lora, lora.load_base(base, mesh, settings.lora.quantize), settings.seed
        )
    elif preferences is not None and preferences.reference:
        reference = initial_params(settings, vocabulary, param_shardings(settings.model, mesh))
    objectives = Objectives(
        settings.model, token_kinds, settings.optimizer.z_loss, trained, settings.preferences, reference
    )
    optimizer = make_optimizer(settings.optimizer, settings.loop.steps)
    step = objectives.step(optimizer, settings.faults.spike_sigmas, layout)
    if is_primary():
        checkpoint.write_config(directory, values)
        write_file(directory / "config.yaml", yaml.safe_dump(values, sort_keys=False))
        if base is not None and settings.lora is not None:
            lora.describe_adapter(directory, settings.lora, base)

    metadata = {"config": values, "vocabulary": vocabulary.fingerprint}
    part = checkpoint.LLM if trained is None else checkpoint.ADAPTER
    checkpoints = RunCheckpoints(
        place.name, settings.checkpoint, metadata, params=part, before_seal=place.upload if is_primary() else _nothing
    )
    state, streams = first_state(settings, step, checkpoints, vocabulary, trained)
    if checkpoints.steps:
        warn_of_changes(settings, values, checkpoints.read_metadata(checkpoints.steps[-1])["config"], int(state.step))
    share = layout.share()
    loader = open_batches(settings, vocabulary, share, streams)
    log = MetricsLog(directory, int(state.step), active=is_primary())
    samples = settings.sample
    if samples.prompts is None and settings.loop.sample_every:
        samples = dataclasses.replace(samples, prompts=prompts_from_data(settings.data, settings.variant))
    sampler = SampleWriter(samples, settings.model, vocabulary, directory, mesh=mesh, log=log, seed=settings.seed)
    task = Task(
        step=step,
        summary=objectives.summary(settings.sequence_length),
        batches=loader,
        held_out=lambda: held_out(settings, vocabulary, share),
    )
    sample = sampler if trained is None or not samples.prompts else lora.merging(trained, sampler)
    measure = task_metrics(settings, vocabulary, directory, layout)
    if trained is not None and measure is not None:
        measure = lora.merging(trained, measure)
    outputs = RunOutputs(
        directory=directory,
        log=log,
        checkpoints=checkpoints,
        sample=sample,
        measure=measure,
        check=check,
        goodput=goodput,
    )
    report_start(settings, place.name, int(state.step), layout)
    warn_of_no_evaluation(settings)
    with loader:
        state = train(state, task, outputs, config=settings.loop, faults=settings.faults)
    report_skipped(loader)
    log.close()
    if int(state.step) >= settings.loop.steps:
        report_end(place, int(state.step), words_from_data(settings.data), base)
    return state


def open_batches(
    settings: TrainConfig, vocabulary: Vocabulary, share: HostShare, streams: dict[str, Any] | None
) -> Loader | PreferenceBatches:
    """Open the training data, at the position that `streams` saved."""
    rows, length = settings.global_batch_size, settings.sequence_length
    if settings.preferences is not None:
        data = settings.preferences.data
        preferences = Preferences(data, data.split, vocabulary, length)
        return PreferenceBatches(preferences, rows, settings.seed, share.index, share.count, streams)
    return Loader(
        settings.data,
        vocabulary,
        sequence_length=length,
        global_batch_size=rows,
        seed=settings.seed,
        host_index=share.index,
        host_count=share.count,
        state=streams,
    )


def task_metrics(
    settings: TrainConfig, vocabulary: Vocabulary, directory: pathlib.Path, layout: BatchLayout
) -> Callable[[llama.Params, int], Mapping[str, float]] | None:
    """Return the function that runs `loop.evaluate_tasks` after a step and returns their figures; None without tasks.

    Raises:
        RunError: there are several processes.
        BenchmarkError: an unknown task.
    """
    if not settings.loop.evaluate_tasks:
        return None
    if jax.process_count() > 1:
        raise RunError("loop.evaluate_tasks needs a run of one process; evaluate the steps of a larger run afterwards")
    from spirit_jax.evaluation.during_training import TaskMetrics

    names, items = settings.loop.evaluate_tasks, settings.loop.evaluate_items
    return TaskMetrics(names, items, settings.model, vocabulary, directory, layout.mesh)


def with_defaults(stored: dict[str, Any] | None) -> dict[str, Any] | None:
    """The stored config of a run, with the defaults of fields that an earlier version of this package did not have."""
    try:
        return stored if stored is None else config.to_dict(config.from_dict(TrainConfig, stored))
    except config.ConfigError:  # it has fields or values that this version does not have
        return stored


def run_inputs(settings: TrainConfig) -> RunInputs:
    """The part of the config from which the tokenizers and records of a run are made."""
    return RunInputs(
        variant=settings.variant,
        seed=settings.seed,
        tokenizer=settings.tokenizer,
        speech_tokenizer=settings.speech_tokenizer,
        prepare=settings.prepare,
    )


def vocabulary_size(settings: TrainConfig) -> int:
    """The number of tokens of the run's vocabulary, before anything is written."""
    if settings.tokenizer is not None:
        return run_vocabulary(settings.run_directory, run_inputs(settings)).size
    assert settings.prepare is not None  # TrainConfig asks for one of the two
    return settings.prepare.text_pieces + len(added_tokens(settings.variant))


def _nothing() -> None:
    """What a process does before a seal that another process prepares."""


def prepare_inputs(
    settings: TrainConfig, place: RunPlace, before: Mapping[str, Any] | None, *, has_steps: bool
) -> Vocabulary:
    """Put the tokenizers into the run, build records where the config asks for it, and return the run's vocabulary.

    Args:
        settings: the run.
        place: its directory.
        before: the config that the directory holds; None in a new one.
        has_steps: whether steps were trained with the inputs that are there.
    """
    if is_primary():
        put_inputs(place.directory, run_inputs(settings), before, has_steps=has_steps)
    place.share("prepared")
    return Vocabulary.load(place.directory / checkpoint.TOKENIZER, settings.variant)


def first_state(
    settings: TrainConfig,
    step: TrainStep,
    checkpoints: RunCheckpoints,
    vocabulary: Vocabulary,
    trained: lora.AdapterWeights | None = None,
) -> tuple[TrainState, dict[str, Any] | None]:
    """Return the state to start from and the state of the data streams: of the newest checkpoint, or fresh ones."""
    if checkpoints.steps:
        newest = checkpoints.steps[-1]
        metadata = checkpoints.read_metadata(newest)
        if metadata["vocabulary"] != vocabulary.fingerprint:
            raise RunError(f"{settings.run_directory}: step {newest} was trained with another tokenizer")
        return checkpoints.restore(newest, step.abstract_state), metadata["data"]
    if trained is not None:
        return step.start_from(lora.first_adapter(trained, step.layout.mesh, settings.seed)), None
    if settings.init_from is None:
        return step.init(jax.random.key(settings.seed)), None
    return step.start_from(initial_params(settings, vocabulary, step.shardings.params)), None


def initial_params(settings: TrainConfig, vocabulary: Vocabulary, shardings: Any) -> Params:
    """Load the weights that `init_from` names into their shards.

    Raises:
        SpiritError: they cannot be read, or do not fit the run's network or vocabulary.
    """
    assert settings.init_from is not None
    source, weights = pathlib.Path(settings.init_from), None
    if is_hugging_face(source):
        network, tokenizer, load = open_hugging_face(source)
        weights = Weights(config=network, tokenizer=tokenizer, load=load)
    return load_initial_params(
        source,
        settings.model,
        vocabulary,
        shardings=shardings,
        seed=settings.seed,
        weights=weights,
    )


def held_out(settings: TrainConfig, vocabulary: Vocabulary, share: HostShare) -> Mapping[str, Iterator[HostBatch]]:
    """Return this host's held-out batches of every source that has a held-out split."""
    if settings.preferences is not None:
        data = settings.preferences.data
        if data.held_out_split is None:
            return {}
        preferences = Preferences(data, data.held_out_split, vocabulary, settings.sequence_length)
        batches = held_out_preferences(preferences, settings.global_batch_size, share.index, share.count)
        return {"preferences": batches}
    return {
        name: held_out_batches(
            settings.data,
            vocabulary,
            sequence_length=settings.sequence_length,
            batch_size=settings.global_batch_size,
            source=name,
            host_index=share.index,
            host_count=share.count,
            seed=settings.seed,
        )
        for name, source in settings.data.sources.items()
        if source.held_out_split is not None
    }


def warn_of_changes(settings: TrainConfig, values: dict[str, Any], before: Mapping[str, Any], step: int) -> None:
    """Warn of options that may change on resume, and whose effect is easily overlooked.

    Args:
        settings: the run.
        values: its config as plain values.
        before: the config that the newest step was trained with.
        step: its number.
    """
    old_steps = before["optimizer"].get("schedule_steps") or before["loop"]["steps"]
    old_rule = dataclasses.replace(settings.optimizer, schedule_steps=old_steps)
    old, new = (float(make_schedule(rule, settings.loop.steps)(step)) for rule in (old_rule, settings.optimizer))
    if not math.isclose(old, new, rel_tol=1e-6):
        spans = settings.optimizer.schedule_steps or settings.loop.steps
        report(
            f"warning: the next learning rate is {new:.3g} in place of {old:.3g}, because the "
            f"{settings.optimizer.schedule} schedule spans {spans} updates now and spanned {old_steps}\n"
            f"  --optimizer.schedule_steps {old_steps} keeps the old schedule"
        )
    if values["init_from"] != before.get("init_from"):
        report(f"warning: init_from is not read, because the run continues from its own step {step}")


def warn_of_no_evaluation(settings: TrainConfig) -> None:
    """Warn if evaluation is asked for and no source has data for it."""
    sources = settings.data.sources.values() if settings.preferences is None else [settings.preferences.data]
    held_out = any(source.held_out_split is not None for source in sources)
    if settings.loop.evaluate_every and not held_out:
        report(
            "warning: nothing is evaluated, because no source has a held_out_split; encode --validation-fraction 0.02 "
            "makes one, --loop.evaluate_every 0 asks for none"
        )


def report_skipped(loader: Loader | PreferenceBatches) -> None:
    """Print how many records of each source could not be used, over all processes. Every process must call it."""
    counts = gather_json(loader.skipped)
    for name in loader.source_names:
        if count := sum(each[name] for each in counts):
            records = "1 record" if count == 1 else f"{count} records"
            report(f"source {name}: {records} could not be used and left out; the log above names the first ones")


def report_start(settings: TrainConfig, directory: str, step: int, layout: BatchLayout) -> None:
    """Print what is about to run."""
    count, adapter = llama.parameter_count(settings.model), ""
    if settings.lora is not None:
        adapter = f"an adapter of {parameter_count(settings.model, settings.lora) / 1e6:,.2f} M parameters beside "
    axes = " x ".join(f"{name} {size}" for name, size in layout.mesh.shape.items())
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind} device(s) ({axes})"
    report(
        f"{'Resuming' if step else 'Starting'} {directory} at step {step} of {settings.loop.steps}: "
        f"{adapter}{count / 1e6:,.1f} M parameters on {devices}, "
        f"{layout.rows} rows x {settings.sequence_length} tokens a step"
    )


def report_end(place: RunPlace, step: int, words: str | None, base: lora.Base | None) -> None:
    """Print where the results are and what to type next, with words from the run's data where it has text."""
    directory = place.name
    last, samples = f"{directory}/{checkpoint.STEPS}/{step}", pathlib.Path("samples", str(step))
    has_voice = (place.directory / checkpoint.SPEECH_TOKENIZER).is_dir()
    mute = "" if has_voice else " (units; with speech_tokenizer in the config, sound)"
    model = last if base is None else f"{base.directory} --adapter {last}"
    prompt = shlex.quote(f"text:{words or 'Once upon a time'}")
    lines = [
        f"Done: {step} steps.",
        f"  checkpoints  {directory}/{checkpoint.STEPS}/",
        f"  metrics      {directory}/metrics.jsonl, and: tensorboard --logdir {directory}/tensorboard",
        *([f"  samples      {directory}/{samples}/"] if (place.directory / samples).is_dir() else []),
        f"Next, let it speak{mute}:",
        f"  python -m spirit_jax.generate --checkpoint {model} --input {prompt} "
        f"--output-modality speech --temperature 0.8 --top-p 0.95 --output {directory}/generated",
    ]
    report("\n".join(lines))
