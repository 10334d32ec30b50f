"""Compiles the steps of the parts of a config for a pod that need not exist, and reports what they will cost there."""

import time
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import NamedSharding

from spirit_jax.costmodel.report import Report, make_report
from spirit_jax.costmodel.topology import Topology
from spirit_jax.kernels.tpu import kernel_flops
from spirit_jax.parallel.mesh import make_mesh
from spirit_jax.parallel.mesh_config import MeshConfig
from spirit_jax.parallel.sharding import BatchLayout
from spirit_jax.speech_training.config import TrainSpeechConfig
from spirit_jax.speech_training.part import Outline, Part
from spirit_jax.speech_training.parts import parts
from spirit_jax.training.checks import RunError
from spirit_jax.training.step import TrainStep


def compile_parts(settings: TrainSpeechConfig, topology: str) -> Iterator[tuple[str, Report]]:
    """The name and the cost of each part whose step the config decides. Nothing runs; no clip is read.

    Raises:
        SpiritError: there is no such topology or no TPU compiler, the mesh does not fit the rows, or the config has no
            such part.
    """
    pod, compiled = Topology.parse(topology), False
    for part in parts(settings):
        outline = part.outline()
        if outline is not None:
            yield part.name, compile_part(part, outline, pod, settings.mesh)
            compiled = True
    if not compiled:
        raise RunError("compile_topology: the config has no section whose step could be compiled, such as hubert_1")


def abstract_batch(
    outline: Outline, rows: int, sharding: NamedSharding | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and sharding of the arrays of a batch, as `crops.CropBatches` makes it."""
    row = {**outline.row, "weight_b": np.float32(1)}
    return {
        name: jax.ShapeDtypeStruct((rows, *np.shape(array)), np.asarray(array).dtype, sharding=sharding)
        for name, array in row.items()
    }


def compile_part(part: Part, outline: Outline, topology: Topology, mesh: MeshConfig) -> Report:
    """Compile the training step of a part.

    Args:
        part: knows the rows of a step.
        outline: its rule, and the arrays of a row.
        topology: the pod.
        mesh: how many devices each axis of the mesh has.

    Raises:
        SpiritError: there is no TPU compiler, or the mesh does not fit the rows.
    """
    device_mesh = make_mesh(mesh, topology.devices(), part.rows // part.accumulate)
    layout = BatchLayout(device_mesh, part.rows, part.accumulate)
    step = TrainStep(outline.rule, layout)
    lowered = step.lower_train_step(step.abstract_state, abstract_batch(outline, part.rows, layout.sharding))
    start = time.perf_counter()
    compiled = lowered.compile()
    return make_report(
        compiled, topology, device_mesh, kernel=kernel_flops, compile_seconds=time.perf_counter() - start
    )
