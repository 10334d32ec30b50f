"""Training of a low-rank adapter: the base is frozen, and the run's state and checkpoints hold the adapter alone."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from spirit_jax import checkpoint
from spirit_jax.adapters import base_fingerprint
from spirit_jax.adapters.adapter import DESCRIPTION
from spirit_jax.config import from_dict, to_dict
from spirit_jax.core.files import read_json, write_file
from spirit_jax.models import llama, lora, quantized
from spirit_jax.models.llama_config import Quantization
from spirit_jax.parallel.sharding import abstract_result, apply_split, tracing, tree_shardings, with_shardings
from spirit_jax.training.checks import RunError
from spirit_jax.training.initialize import checkpoint_weights
from spirit_jax.training.language_model import param_shardings
from spirit_jax.training.state import DeviceBatch, Params
from spirit_jax.vocabulary import Variant

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, eq=False)
class AdapterWeights:
    """An adapter is trained beside a frozen base; implements `language_model.TrainedWeights`."""

    model: llama.LlamaConfig
    config: lora.LoraConfig
    base: Params
    """Arrays; empty where only shapes are asked for."""
    seed: int = 0
    """Decides what dropout leaves out."""

    def init(self, key: Array) -> Params:
        """A fresh adapter; `lora.with_rows_of` gives its rows the base's values."""
        return lora.init_adapter(self.model, self.config, key)

    def logical_axes(self) -> Any:
        """The logical axes of each array of the adapter, as a tree of tuples."""
        return lora.logical_axes(self.model, self.config)

    def variables(self, params: Params) -> Params:
        """The variables of the Llama that the base and this adapter make."""
        return lora.variables(self.model, self.config, self.base, params)

    def random_keys(self, batch: DeviceBatch) -> dict[str, Array]:
        """The key of dropout, from the seed, the number of the update and the tokens of this part of the batch.

        A resumed run, and one with another mesh, leaves out the same inputs.
        """
        if not self.config.dropout:
            return {}
        tokens = batch["inputs"].astype(jnp.uint32)
        places = jnp.arange(tokens.size, dtype=jnp.uint32).reshape(tokens.shape)
        key = jax.random.fold_in(jax.random.key(self.seed), batch["step"].reshape(-1)[0])
        return {"dropout": jax.random.fold_in(key, jnp.sum((tokens + 1) * (2 * places + 1)))}


@dataclasses.dataclass(frozen=True)
class Base:
    """The base of an adapter: a checkpoint directory whose vocabulary the run keeps."""

    directory: pathlib.Path
    model: llama.LlamaConfig
    """Its network, with the run's dtypes and choices of memory against time."""
    variant: Variant
    fingerprint: str
    speech_tokenizer: str | None
    """Directory that holds its speech tokenizer; None for a base without a voice."""


def open_base(directory: str | os.PathLike, wanted: llama.LlamaConfig) -> Base:
    """Open the base of an adapter.

    Args:
        directory: converted weights, or a step of a run that trained all weights.
        wanted: `dtype`, `param_dtype`, `remat` and `scan_layers` are taken from it, all sizes from the base.

    Raises:
        CheckpointError: there is no such checkpoint, or it holds no language model.
    """
    path = pathlib.Path(directory)
    settings = checkpoint.read_config(path)
    model = dataclasses.replace(
        from_dict(llama.LlamaConfig, settings["model"]),
        dtype=wanted.dtype,
        param_dtype=wanted.param_dtype,
        remat=wanted.remat,
        scan_layers=wanted.scan_layers,
    )
    checkpoint.find(path, checkpoint.LLM)
    speech_tokenizer = None
    with contextlib.suppress(checkpoint.CheckpointError):
        speech_tokenizer = str(checkpoint.find(path, checkpoint.SPEECH_TOKENIZER).parent)
    return Base(path, model, settings.get("variant") or "expressive", base_fingerprint(path), speech_tokenizer)


def check_fits(base: Base, config: lora.LoraConfig, sequence_length: int) -> None:
    """Check that a base allows what a config asks for.

    Raises:
        RunError: rows beyond the vocabulary, a row longer than the context, or widths that 4 bits cannot divide; names
            the field.
    """
    if sequence_length > base.model.max_position_embeddings:
        raise RunError(
            f"sequence_length {sequence_length} is longer than the base's max_position_embeddings "
            f"{base.model.max_position_embeddings}"
        )
    try:
        lora.check_fits(base.model, config)
        quantized.check_fits(base.model, config.quantize)
    except ValueError as error:
        raise RunError(str(error)) from error


def load_base(base: Base, mesh: Mesh, quantize: Quantization | None = None) -> Params:
    """Load the frozen weights directly into their shards.

    Args:
        base: the base.
        mesh: the devices.
        quantize: keep the projections in 8 or 4 bits (`models.quantized`). They are quantized layer by layer as they
            are read; embedding, head and norms stay in floats.

    Raises:
        CheckpointError: they cannot be read, or do not fit the config beside them.
    """
    shapes = with_shardings(llama.abstract_params(base.model), param_shardings(base.model, mesh))
    if quantize is None:
        return checkpoint_weights(base.directory).load(shapes)
    stored = checkpoint.flatten(checkpoint.open_llm(base.directory, shapes))
    wanted = checkpoint.flatten(shapes)
    return checkpoint.unflatten({path: _load_quantized(path, stored[path], wanted[path], quantize) for path in wanted})


def abstract_base(model: llama.LlamaConfig, mesh: Mesh, quantize: Quantization | None = None) -> Params:
    """Shapes and shardings of what `load_base` returns; takes no memory."""
    shapes = with_shardings(llama.abstract_params(model), param_shardings(model, mesh))
    if quantize is None:
        return shapes

    def leaf(path: tuple, array: jax.ShapeDtypeStruct) -> Any:
        name = path[-1].key
        if name not in lora.TARGETS:
            return array
        return abstract_result(lambda weight: quantized.quantize(name, weight, quantize), array)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def _load_quantized(path: str, stored: checkpoint.StoredArray, wanted: jax.ShapeDtypeStruct, kind: Quantization) -> Any:
    """One parameter, quantized if it is a projection."""
    sharding, name = wanted.sharding, path.split("/")[-1]
    assert isinstance(sharding, NamedSharding)
    if name not in lora.TARGETS:
        whole = jax.make_array_from_callback(wanted.shape, sharding, lambda at: stored[at or ()])
        return whole.astype(wanted.dtype)
    placement = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    layers = []
    for layer in range(wanted.shape[0]):
        weight = jax.make_array_from_callback(
            wanted.shape[1:], placement, functools.partial(_read_layer, stored, layer)
        )
        layers.append(apply_split(_quantize, weight, name, kind))
    return jax.tree.map(lambda *parts: jnp.stack(parts), *layers)


def _read_layer(stored: checkpoint.StoredArray, layer: int, at: tuple[slice, ...] | None) -> np.ndarray:
    return stored[(layer, *(at or ()))]


def _quantize(weight: Array, name: str, kind: Quantization) -> dict[str, Array]:
    return quantized.quantize(name, weight, kind)


def first_adapter(weights: AdapterWeights, mesh: Mesh, seed: int) -> Params:
    """A fresh adapter in its shards: the Llama that it makes is the base."""
    model, config = weights.model, weights.config
    shardings = tree_shardings(mesh, weights.logical_axes(), lora.abstract_adapter(model, config))

    def build(key: Array, base: Params) -> Params:
        return lora.with_rows_of(model, config, lora.init_adapter(model, config, key), base)

    with tracing(mesh, model.dtype):
        return jax.jit(build, out_shardings=shardings)(jax.random.key(seed), weights.base)


def merging(weights: AdapterWeights, use: Callable[[Params, int], Result]) -> Callable[[Params, int], Result]:
    """Return a function of an adapter and a step that merges the weights and calls `use` with them.

    The merged weights, in floats, exist only during the call.

    Args:
        weights: the adapter's kind and its base.
        use: samples or measures all parameters of a Llama.
    """

    @jax.jit
    def merge(base: Params, adapter: Params) -> Params:
        whole = quantized.dequantize(base, llama.DTYPES[weights.model.param_dtype])
        return lora.merge(weights.model, weights.config, whole, adapter)

    return lambda adapter, step: use(merge(weights.base, adapter), step)


def describe_adapter(directory: pathlib.Path, config: lora.LoraConfig, base: Base) -> None:
    """Write the file of a run that says which weights its adapters update and which base they belong to."""
    content = {"lora": to_dict(config), "base": base.fingerprint, "base_directory": str(base.directory)}
    write_file(directory / DESCRIPTION, json.dumps(content, indent=1))


def check_base(directory: pathlib.Path, base: Base) -> None:
    """Check that a run that is resumed, which has steps, has the base that it began with.

    Raises:
        RunError: the base has other weights.
    """
    path = directory / DESCRIPTION
    if not path.is_file():
        return
    found = read_json(path, RunError)
    before = found.get("base") if isinstance(found, dict) else None
    if before != base.fingerprint:
        raise RunError(
            f"init_from {base.directory}: {directory} holds adapters of other weights (fingerprint "
            f"{str(before)[:12]}, found {base.fingerprint[:12]}): name the base that the run began with"
        )
