"""AdamW against torch's, schedules against their closed forms."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from spirit_jax.training.config import OptimizerConfig
from spirit_jax.training.optimizer import make_optimizer, make_schedule


def _to_jax(arrays):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), arrays)


def test_updates_equal_torch_adamw_with_clipping():
    rng = np.random.default_rng(0)
    start = {"w": rng.normal(size=(5, 7)), "norm": {"weight": rng.normal(size=7)}}
    config = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1, clip_norm=1.0, warmup_steps=2)
    params: Any = _to_jax(start)
    optimizer = make_optimizer(config, 10)
    state = optimizer.transformation.init(params)
    w = torch.nn.Parameter(torch.tensor(start["w"], dtype=torch.float32))
    norm = torch.nn.Parameter(torch.tensor(start["norm"]["weight"], dtype=torch.float32))
    reference = torch.optim.AdamW(
        [{"params": [w]}, {"params": [norm], "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.95),
        eps=1e-5,
        weight_decay=0.1,
    )
    for step in range(5):
        scale = 10.0 ** (step - 2)  # below and above the clipping norm
        grads = {"w": scale * rng.normal(size=(5, 7)), "norm": {"weight": scale * rng.normal(size=7)}}
        updates, state = optimizer.transformation.update(_to_jax(grads), state, params)
        params = optax.apply_updates(params, updates)
        w_grad = torch.tensor(grads["w"], dtype=torch.float32)
        norm_grad = torch.tensor(grads["norm"]["weight"], dtype=torch.float32)
        total = float(torch.sqrt(w_grad.square().sum() + norm_grad.square().sum()))
        w.grad, norm.grad = min(1.0, 1.0 / total) * w_grad, min(1.0, 1.0 / total) * norm_grad
        for group in reference.param_groups:
            group["lr"] = float(optimizer.schedule(step))
        reference.step()
    # float32 rounding over five updates of size 1e-2
    np.testing.assert_allclose(params["w"], w.detach().numpy(), atol=2e-6)
    np.testing.assert_allclose(params["norm"]["weight"], norm.detach().numpy(), atol=2e-6)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_schedule_without_warmup_starts_at_the_peak(schedule):
    rate = make_schedule(OptimizerConfig(learning_rate=2.0, schedule=schedule, final_fraction=0.1), 10)
    np.testing.assert_allclose([float(rate(step)) for step in (0, 5, 10)], [2.0, 1.1, 0.2], rtol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_schedules_equal_their_closed_forms(schedule):
    config = OptimizerConfig(learning_rate=2.0, schedule=schedule, warmup_steps=4, final_fraction=0.1)
    rate = make_schedule(config, 24)
    np.testing.assert_allclose([float(rate(step)) for step in range(4)], [0.4, 0.8, 1.2, 1.6], rtol=1e-6)
    for step in (4, 9, 14, 24, 30):
        done = min((step - 4) / 20, 1)
        expected = {
            "constant": 2.0,
            "linear": 2.0 + done * (0.2 - 2.0),
            "cosine": 0.2 + (2.0 - 0.2) * (1 + np.cos(np.pi * done)) / 2,
        }[schedule]
        np.testing.assert_allclose(float(rate(step)), expected, rtol=1e-5)
