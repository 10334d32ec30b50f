"""Compile prefill and decoding for TPUs that need not be there, and report what they will cost."""

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

from spirit_jax import checkpoint
from spirit_jax.config import from_dict
from spirit_jax.costmodel.report import Report, make_report
from spirit_jax.costmodel.topology import Topology
from spirit_jax.inference import engine, network
from spirit_jax.inference.grammar import Grammar
from spirit_jax.inference.sampling import Sampling
from spirit_jax.models.llama import LlamaConfig, parameter_count
from spirit_jax.parallel.mesh import MeshConfig, make_mesh
from spirit_jax.parallel.sharding import tracing, with_shardings

_PROMPT = 512  # tokens that a prefill reads in each slot


def model_config(path: str | os.PathLike, dtype: str | None) -> LlamaConfig:
    """The network of a checkpoint directory, or of a run's YAML config, set up for inference; no weights are read.

    Raises:
        ValueError: neither.
    """
    path = pathlib.Path(path)
    values = yaml.safe_load(path.read_text()) if path.is_file() else checkpoint.read_config(path)
    if not isinstance(values, dict) or "model" not in values:
        raise ValueError(f"{path}: neither a checkpoint nor a config with a section 'model'")
    config = from_dict(LlamaConfig, values["model"])
    dtype = dtype or config.dtype
    return dataclasses.replace(config, dtype=dtype, param_dtype=dtype, remat="none")


def compile_generation(
    topology: Topology, config: LlamaConfig, mesh: MeshConfig, *, slots: int, new_tokens: int
) -> dict[str, Report]:
    """Reports of one prefill (a prompt of 512 tokens in every slot) and of one decode step, the cache at its longest.

    Args:
        slots: prompts that are worked on at a time.
        new_tokens: to generate for each.

    Raises:
        ValueError: no TPU compiler, or a mesh that does not fit.
    """
    sizes, devices = dataclasses.astuple(mesh), topology.devices()
    if min(sizes) > 0:
        devices = devices[: math.prod(sizes)]
    device_mesh = make_mesh(mesh, devices, slots)
    prompt = _PROMPT
    slots = -(-slots // network.batch_ways(device_mesh)) * network.batch_ways(device_mesh)
    length = engine.bucket(prompt + new_tokens, config.max_position_embeddings)
    program = engine.Program(config, device_mesh, 2, 50, False, False)
    params = network.sharded_abstract_params(config, device_mesh)
    whole = network.whole(device_mesh)

    def abstract(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x), sharding=whole), tree)

    def vector(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((slots, *shape), dtype, sharding=whole)

    v = config.vocab_size
    tables = engine.Tables(
        np.zeros((3, v), bool), Grammar(np.zeros((6, v), bool), np.zeros(v, np.int32), np.zeros((6, 7), np.int32))
    )
    rows = engine.Rows.of([engine.Request((), new_tokens, 0, Sampling(temperature=1.0))] * slots)
    reports = {}
    with tracing(device_mesh, config.dtype):
        state = jax.eval_shape(lambda p: engine._empty(program, p, slots, length, engine.bucket(new_tokens)), params)
        cache_sharding = network.cache_sharding(config, device_mesh, state.cache)
        cache = with_shardings(state.cache, jax.tree.map(lambda _: cache_sharding, state.cache))
        state = abstract(state._replace(cache=None))._replace(cache=cache)
        common = (program, params, abstract(tables), state, abstract(rows))
        integers = vector(jnp.int32)
        programs = {
            "prefill": (
                engine._prefill,
                (integers, vector(jnp.int32, prompt), integers, integers, vector(jnp.bool_)),
                prompt,
            ),
            "decode": (engine._decode, abstract((np.int32(new_tokens), np.bool_(False))), 1),
        }
        for name, (function, arguments, tokens) in programs.items():
            lowered = function.lower(*common, *arguments)
            start = time.perf_counter()
            compiled = lowered.compile()
            seconds = time.perf_counter() - start
            # 2ND; the head, of one position a prompt, is left out of a prefill's as attention is
            weights = parameter_count(config) - config.vocab_size * config.hidden_size * (2 if tokens > 1 else 1)
            flops = 2.0 * weights * slots * tokens
            reports[name] = make_report(compiled, topology, device_mesh, flops, compile_seconds=seconds)
    return reports
