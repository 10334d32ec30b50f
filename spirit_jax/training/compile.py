"""Compile a run's exact training step for a pod that need not be owned, and report what it will cost there."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from spirit_jax.costmodel.report import Report, make_report
from spirit_jax.costmodel.topology import Topology
from spirit_jax.kernels import flash_attention
from spirit_jax.models import llama
from spirit_jax.parallel.mesh import MeshConfig, make_mesh
from spirit_jax.parallel.sharding import batch_sharding
from spirit_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from spirit_jax.training.step import Batch, make_program
from spirit_jax.vocabulary import TOKEN_KINDS


def abstract_batch(mesh: jax.sharding.Mesh, rows: int, length: int) -> Batch:
    """Shapes and shardings of what the loader gives a step."""
    sharding = batch_sharding(mesh, rows)
    shapes = dict.fromkeys(("inputs", "targets", "segment_ids", "positions"), ((rows, length), jnp.int32))
    shapes |= {"loss_mask": ((rows, length), jnp.bool_), "sources": ((rows,), jnp.int32)}
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, (shape, dtype) in shapes.items()}


def compile_step(
    topology: Topology,
    model: llama.LlamaConfig,
    optimizer: OptimizerConfig,
    mesh: MeshConfig,
    *,
    rows: int,
    length: int,
    accumulate: int = 1,
    steps: int = 100_000,
) -> Report:
    """Compile `Program.train_step` for a topology; nothing runs, and no data or tokenizer is needed.

    Raises:
        ValueError: no TPU compiler, or a mesh that does not fit the run.
    """
    device_mesh = make_mesh(mesh, topology.devices(), rows // accumulate)
    program = make_program(
        model,
        make_optimizer(optimizer, steps),
        make_schedule(optimizer, steps),
        device_mesh,
        rows=rows,
        token_kinds=np.arange(model.vocab_size) % len(TOKEN_KINDS),  # which id is of which kind changes no shape
        accumulate=accumulate,
        z_loss=optimizer.z_loss,
    )
    lowered = program.lower_train_step(program.abstract_state, abstract_batch(device_mesh, rows, length))
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    flops = llama.flops_per_token(model, length) * rows * length
    return make_report(compiled, topology, device_mesh, flops, flash_attention.kernel_flops, seconds)
