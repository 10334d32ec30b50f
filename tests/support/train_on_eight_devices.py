"""Trains a small model on several meshes of eight simulated devices and compares the losses with one device's.

    python -m tests.support.train_on_eight_devices

It runs in a process of its own, because the simulated devices must be configured before JAX starts.
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from spirit_jax.models import llama
from spirit_jax.parallel.mesh import MeshConfig, make_mesh
from spirit_jax.parallel.sharding import BatchLayout
from spirit_jax.training.optimizer import OptimizerConfig
from tests.support.steps import language_model_step

ROWS, LENGTH, VOCABULARY = 8, 16, 64
MODEL = llama.LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def losses(mesh_config: MeshConfig, devices: int, accumulate: int, batch: dict[str, np.ndarray]) -> list[float]:
    """Loss, gradient norm and sums by kind of three steps."""
    layout = BatchLayout(make_mesh(mesh_config, jax.devices()[:devices]), ROWS, accumulate)
    optimizer = OptimizerConfig(learning_rate=1e-2, z_loss=1e-3)
    step = language_model_step(MODEL, layout, np.arange(VOCABULARY) % 5, steps=4, optimizer=optimizer)
    state, values = step.init(jax.random.key(0)), []
    for _ in range(3):
        state, metrics = step.train_step(state, step.put_batch(batch))
        values += [float(metrics["loss"]), float(metrics["gradient_norm"]), *np.asarray(metrics["nll"]).tolist()]
    if devices == 8:
        specs = {sharding.spec for sharding in jax.tree.leaves(jax.tree.map(lambda x: x.sharding, state.opt_state))}
        assert len(specs) > 2, "the optimizer's moments are split like the weights"
    return values


def main() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCABULARY, (ROWS, LENGTH + 1)).astype(np.int32)
    segments = np.sort(rng.integers(1, 3, (ROWS, LENGTH)), axis=1).astype(np.int32)
    batch = {
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "segment_ids": segments,
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
        "loss_mask": rng.random((ROWS, LENGTH)) < 0.8,
    }
    reference = losses(MeshConfig(), 1, 1, batch)
    assert reference[-7] < reference[0], "the loss falls"
    for config, devices, accumulate in [
        (MeshConfig(data=8, fsdp=1), 8, 1),
        (MeshConfig(fsdp=8), 8, 1),
        (MeshConfig(data=2, fsdp=2, tensor=2), 8, 2),
    ]:
        found = losses(config, devices, accumulate, batch)
        # float32 sums in another order, through three updates
        np.testing.assert_allclose(found, reference, rtol=2e-5, err_msg=f"{config} x {devices}, {accumulate} parts")


if __name__ == "__main__":
    main()
