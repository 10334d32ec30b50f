"""Compiles a run's exact training step for a pod that need not exist, and reports what it will cost there."""

import time

import numpy as np

from spirit_jax.costmodel.report import Report, make_report
from spirit_jax.costmodel.topology import Topology
from spirit_jax.kernels.tpu import kernel_flops
from spirit_jax.models import llama
from spirit_jax.parallel.mesh import make_mesh
from spirit_jax.parallel.mesh_config import MeshConfig
from spirit_jax.parallel.sharding import BatchLayout
from spirit_jax.training.config import OptimizerConfig
from spirit_jax.training.language_model import LanguageModelObjective, abstract_batch
from spirit_jax.training.optimizer import make_optimizer
from spirit_jax.training.step import TrainStep, UpdateRule
from spirit_jax.vocabulary import TOKEN_KINDS


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
    """Compile the language model's training step for a topology. Nothing runs; no data or tokenizer is needed.

    Args:
        topology: the pod.
        model: the network.
        optimizer: its optimizer.
        mesh: how many devices each axis of the mesh has.
        rows: rows of the global batch.
        length: tokens of a row.
        accumulate: parts of a step.
        steps: updates of the run, which the learning-rate schedule depends on.

    Raises:
        SpiritError: there is no TPU compiler, or the mesh does not fit the run.
    """
    device_mesh = make_mesh(mesh, topology.devices(), rows // accumulate)
    layout = BatchLayout(device_mesh, rows, accumulate)
    token_kinds = np.arange(model.vocab_size) % len(TOKEN_KINDS)  # The kinds of the ids change no shape.
    objective = LanguageModelObjective(model, token_kinds, optimizer.z_loss)
    step = TrainStep(UpdateRule(objective, make_optimizer(optimizer, steps)), layout)
    lowered = step.lower_train_step(step.abstract_state, abstract_batch(layout, length))
    start = time.perf_counter()
    compiled = lowered.compile()
    return make_report(
        compiled,
        topology,
        device_mesh,
        model_flops=llama.flops_per_token(model, length) * rows * length,
        kernel=kernel_flops,
        compile_seconds=time.perf_counter() - start,
    )
