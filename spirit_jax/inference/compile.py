"""Compile prefill and decode for TPUs that need not be present, and report what they will cost."""

import dataclasses
import math
import os
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from jax.sharding import Mesh

from spirit_jax import checkpoint
from spirit_jax.core.files import read_text
from spirit_jax.costmodel.report import Report, make_report
from spirit_jax.costmodel.topology import Topology
from spirit_jax.inference import loading, network, steps
from spirit_jax.inference.grammar import Constraints
from spirit_jax.inference.sampling import SamplingFeatures
from spirit_jax.inference.sampling_params import SamplingParams
from spirit_jax.inference.shapes import bucket, padded_rows
from spirit_jax.inference.steps import DecodeProgram, ModelArrays, PromptChunks, RowOptions
from spirit_jax.models.llama import LlamaConfig, parameter_count
from spirit_jax.models.llama_config import Quantization
from spirit_jax.parallel.mesh import MeshConfig, make_mesh
from spirit_jax.parallel.sharding import tracing, with_shardings

PROMPT_TOKENS = 512
"""Tokens that the prefill reads in each slot."""


def model_config(path: str | os.PathLike, dtype: str | None) -> LlamaConfig:
    """Return the Llama's config of a checkpoint directory, or of a run's YAML config; no weights are read.

    Args:
        dtype: of weights and computation; None means the config's compute dtype.

    Raises:
        CheckpointError: the path is neither.
    """
    path = pathlib.Path(path)
    settings = yaml.safe_load(read_text(path)) if path.is_file() else checkpoint.read_config(path)
    config = loading.model_config(settings, path, dtype)
    return config if dtype is not None else dataclasses.replace(config, param_dtype=config.dtype)


def compile_generation(
    topology: Topology,
    config: LlamaConfig,
    mesh: MeshConfig,
    *,
    slots: int,
    new_tokens: int,
    quantize: Quantization | None = None,
) -> dict[str, Report]:
    """Compile one prefill of 512 tokens in every slot, and one decode step with the cache at its longest.

    Args:
        slots: requests that run at once.
        new_tokens: tokens to generate for each.
        quantize: the form of the weights; None for floats.

    Returns:
        A report for "prefill" and one for "decode".

    Raises:
        TopologyError: there is no TPU compiler.
        MeshError: the mesh does not fit the topology.
    """
    sizes, devices = dataclasses.astuple(mesh), topology.devices()
    if min(sizes) > 0:
        devices = devices[: math.prod(sizes)]
    device_mesh = make_mesh(mesh, devices, slots)
    slots = padded_rows(slots, device_mesh)
    lowered = lower_steps(config, device_mesh, slots=slots, new_tokens=new_tokens, quantize=quantize)
    return {name: compile_step(name, step, topology, config, device_mesh, slots) for name, step in lowered.items()}


def compile_step(
    name: str, lowered: jax.stages.Lowered, topology: Topology, config: LlamaConfig, mesh: Mesh, slots: int
) -> Report:
    """Compile one of the steps that `lower_steps` returns, and report what it costs.

    Args:
        name: prefill or decode.
        slots: requests that run at once.

    Raises:
        jax.errors.JaxRuntimeError: the step needs more memory than a chip has, or the compiler failed.
    """
    # Two FLOPs a weight and token. Attention is left out, and so is a prefill's head, which reads one position.
    head = config.vocab_size * config.hidden_size
    weights = {"prefill": parameter_count(config) - 2 * head, "decode": parameter_count(config) - head}
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    tokens = slots * (PROMPT_TOKENS if name == "prefill" else 1)
    return make_report(compiled, topology, mesh, 2.0 * weights[name] * tokens, compile_seconds=seconds)


def lower_steps(
    config: LlamaConfig, mesh: Mesh, *, slots: int, new_tokens: int, quantize: Quantization | None = None
) -> dict[str, jax.stages.Lowered]:
    """Lower "prefill" and "decode" as generation runs them, from shapes alone; arguments as in `compile_generation`."""
    sampled = SamplingParams(temperature=1.0)
    program = DecodeProgram(config, mesh, end_ids=(2,), features=SamplingFeatures.of([sampled]))
    params = network.sharded_abstract_params(config, mesh, quantize)
    model = ModelArrays(params, _abstract(Constraints.none(config.vocab_size), mesh))
    options = RowOptions.join([RowOptions.of(sampled, "text", max_new_tokens=new_tokens)] * slots)
    chunks = PromptChunks(
        tokens_bt=np.zeros((slots, PROMPT_TOKENS), np.int32),
        slots_b=np.zeros(slots, np.int32),
        start_b=np.zeros(slots, np.int32),
        length_b=np.zeros(slots, np.int32),
        is_last_b=np.zeros(slots, bool),
    )
    limits = {"max_steps": np.int32(new_tokens), "until_free": np.bool_(False)}
    options, chunks, limits = _abstract(options, mesh), _abstract(chunks, mesh), _abstract(limits, mesh)
    length = bucket(PROMPT_TOKENS + new_tokens, config.max_position_embeddings)
    with tracing(mesh, config.dtype):
        state = jax.eval_shape(
            lambda p: steps.init_state(program, p, slots=slots, length=length, new_tokens=bucket(new_tokens)), params
        )
        state = with_shardings(state, steps.state_shardings(program, state))
        return {
            "prefill": steps.prefill.lower(program, model, state, options, chunks, first=False),
            "decode": steps.decode.lower(program, model, state, options, **limits),
        }


def _abstract(tree: Any, mesh: Mesh) -> Any:
    """Return the shapes and dtypes of a tree of arrays that are whole on every device."""
    whole = network.replicated(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x), sharding=whole), tree)
