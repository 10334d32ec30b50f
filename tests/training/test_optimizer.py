"""AdamW against torch's, schedules against their closed forms."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from spirit_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule


def test_updates_equal_torch_adamw_with_clipping():
    rng = np.random.default_rng(0)
    start = {"w": rng.normal(size=(5, 7)), "norm": {"weight": rng.normal(size=7)}}
    config = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1, clip_norm=1.0, warmup_steps=2)
    ours = {
        "w": jnp.asarray(start["w"], jnp.float32),
        "norm": {"weight": jnp.asarray(start["norm"]["weight"], jnp.float32)},
    }
    optimizer = make_optimizer(config, 10)
    state = optimizer.init(ours)
    w = torch.nn.Parameter(torch.tensor(start["w"], dtype=torch.float32))
    norm = torch.nn.Parameter(torch.tensor(start["norm"]["weight"], dtype=torch.float32))
    theirs = torch.optim.AdamW(
        [{"params": [w]}, {"params": [norm], "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.95),
        eps=1e-5,
        weight_decay=0.1,
    )
    schedule = make_schedule(config, 10)
    for step in range(5):
        scale = 10.0 ** (step - 2)  # below and above the clipping norm
        grads = {"w": scale * rng.normal(size=(5, 7)), "norm": {"weight": scale * rng.normal(size=7)}}
        updates, state = optimizer.update(
            {
                "w": jnp.asarray(grads["w"], jnp.float32),
                "norm": {"weight": jnp.asarray(grads["norm"]["weight"], jnp.float32)},
            },
            state,
            ours,
        )
        ours = optax.apply_updates(ours, updates)
        w.grad, norm.grad = (
            torch.tensor(grads["w"], dtype=torch.float32),
            torch.tensor(grads["norm"]["weight"], dtype=torch.float32),
        )
        total = torch.sqrt(w.grad.square().sum() + norm.grad.square().sum())
        for parameter in (w, norm):
            parameter.grad *= min(1.0, 1.0 / float(total))
        for group in theirs.param_groups:
            group["lr"] = float(schedule(step))
        theirs.step()
    # float32 rounding over five updates of size 1e-2
    np.testing.assert_allclose(ours["w"], w.detach().numpy(), atol=2e-6)
    np.testing.assert_allclose(ours["norm"]["weight"], norm.detach().numpy(), atol=2e-6)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_schedule_without_warmup_begins_at_the_peak(schedule):
    rate = make_schedule(OptimizerConfig(learning_rate=2.0, schedule=schedule, final_fraction=0.1), 10)
    np.testing.assert_allclose([float(rate(step)) for step in (0, 5, 10)], [2.0, 1.1, 0.2], rtol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_schedules(schedule):
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
