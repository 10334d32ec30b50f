"""Compiles a run's exact training step for a pod that need not exist, and reports what it will cost there."""

import time

import numpy as np
from jax.sharding import Mesh

from spirit_jax.costmodel.report import Report, make_report
from spirit_jax.costmodel.topology import Topology
from spirit_jax.kernels.tpu import kernel_flops
from spirit_jax.models import llama
from spirit_jax.models.lora_config import LoraConfig
from spirit_jax.parallel.mesh import make_mesh
from spirit_jax.parallel.mesh_config import MeshConfig
from spirit_jax.parallel.sharding import BatchLayout
from spirit_jax.training.config import OptimizerConfig
from spirit_jax.training.language_model import abstract_batch
from spirit_jax.training.lora import AdapterWeights, abstract_base
from spirit_jax.training.objectives import Objectives
from spirit_jax.training.optimizer import make_optimizer
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
    lora: LoraConfig | None = None,
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
        lora: the adapter that is trained beside these weights; None to train all of them.

    Raises:
        SpiritError: there is no TPU compiler, or the mesh does not fit the run.
    """
    device_mesh = make_mesh(mesh, topology.devices(), rows // accumulate)
    layout = BatchLayout(device_mesh, rows, accumulate)
    objectives = abstract_objectives(model, optimizer, device_mesh, lora)
    step = objectives.step(make_optimizer(optimizer, steps), spike_sigmas=0.0, layout=layout)
    lowered = step.lower_train_step(step.abstract_state, abstract_batch(layout, length))
    start = time.perf_counter()
    compiled = lowered.compile()
    return make_report(
        compiled,
        topology,
        device_mesh,
        model_flops=objectives.summary(length).flops_per_unit * rows * length,
        kernel=kernel_flops,
        compile_seconds=time.perf_counter() - start,
    )


def abstract_objectives(
    model: llama.LlamaConfig, optimizer: OptimizerConfig, mesh: Mesh, lora: LoraConfig | None
) -> Objectives:
    """Return what a run trains on documents, from shapes alone; the base of an adapter takes no memory."""
    token_kinds = np.arange(model.vocab_size) % len(TOKEN_KINDS)  # The kinds of the ids change no shape.
    trained = None
    if lora is not None:
        trained = AdapterWeights(model, lora, abstract_base(model, mesh, lora.quantize))
    return Objectives(model, token_kinds, optimizer.z_loss, trained)
