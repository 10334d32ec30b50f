"""The pitch VQ-VAE's step: losses by NumPy, AdamW by PyTorch, padding, measures, and that it learns."""

import functools

import jax
import numpy as np
import pytest
import torch

from spirit_jax.models.vqvae_config import VQVAEConfig
from spirit_jax.speech_training.pitch_config import PitchTraining
from spirit_jax.speech_training.pitch_rule import PitchRule
from spirit_jax.training.config import OptimizerConfig
from spirit_jax.training.optimizer import make_optimizer

NETWORK = VQVAEConfig(codes=6, embedding_size=8, width=8, depth=1)
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, beta2=0.999, epsilon=1e-2, weight_decay=0.05, clip_norm=0.0)
CONFIG = PitchTraining(network=NETWORK, samples=4 * 1280, rows=3, optimizer=OPTIMIZER, commitment=0.3, voicing_weight=2)


@pytest.fixture(scope="module")
def rule():
    return PitchRule(CONFIG, make_optimizer(OPTIMIZER, 100), seed=5)


@pytest.fixture(scope="module")
def train_step(rule):
    return jax.jit(rule.train_step)


@pytest.fixture(scope="module")
def evaluate(rule):
    return jax.jit(rule.eval_step)


@pytest.fixture(scope="module")
def start(rule):
    """A first state; its codebook is random."""
    return jax.jit(rule.init)(jax.random.key(0))


def batch_of(rows=3):
    rng = np.random.default_rng(0)
    voiced = (rng.uniform(size=(rows, 64)) < 0.7).astype(np.float32)
    f0 = np.cumsum(rng.normal(0, 3, (rows, 64)), 1).astype(np.float32)
    frames = np.array([64, 40, 64][:rows], np.int32)
    for row, count in enumerate(frames):
        f0[row, count:], voiced[row, count:] = 0, 0
    return {
        "f0_bt": f0,
        "voiced_bt": voiced,
        "mean_b": np.full(rows, 150, np.float32),
        "frames_b": frames,
        "weight_b": np.ones(rows, np.float32),
    }


def test_losses_and_measures_equal_numpy(rule, start, evaluate):
    batch, params = batch_of(), start.params
    metrics = jax.device_get(evaluate(params, batch))
    run = jax.jit(functools.partial(rule.model.apply, {"params": params["vqvae"]}, method="straight_through"))
    squares, distances, hertz, cents, wrong = [], [], [], [], []
    for f0, voiced, count in zip(batch["f0_bt"], batch["voiced_bt"], batch["frames_b"], strict=True):
        f0, voiced = f0[:count], voiced[:count]
        z, codes, _, made = jax.device_get(run(f0[None], voiced[None]))
        made = made[0]
        f0, voiced = f0[: len(made)], voiced[: len(made)]  # a last code that is not full has no frames
        squares.append(np.stack([(made[:, 0] - f0) ** 2, 2 * (made[:, 1] - voiced) ** 2]))
        distances.append(((z - np.asarray(params["vqvae"]["codebook"])[codes]) ** 2).mean(-1)[0])
        is_voiced = voiced > 0.5
        hertz.append(np.abs(made[:, 0] - f0)[is_voiced])
        cents.append(np.abs(1200 * np.log2((made[:, 0] + 150) / (f0 + 150)))[is_voiced])
        wrong.append((made[:, 1] > 0.5) != is_voiced)
    reconstruction = np.concatenate(squares, 1).mean()
    commitment = np.concatenate(distances).mean()
    np.testing.assert_allclose(metrics["loss"], reconstruction + 0.3 * commitment, rtol=1e-4)
    ratios = {"hertz_sum": hertz, "cents_sum": cents, "voicing_sum": wrong, "commitment_sum": distances}
    for name, values in ratios.items():
        np.testing.assert_allclose(metrics[name], np.concatenate(values).sum(), rtol=1e-4, err_msg=name)
    assert metrics["frames"] == 64 + 32 + 64
    assert metrics["codes"] == 4 + 2 + 4


def test_padding_and_rows_that_fill_a_batch_do_not_count(start, evaluate):
    batch, params = batch_of(), start.params
    expected = jax.device_get(evaluate(params, {name: x[:2] for name, x in batch.items()}))
    batch["weight_b"] = np.array([1, 1, 0], np.float32)
    batch["f0_bt"][1, 40:] = 1e4
    batch["voiced_bt"][1, 40:] = 1
    found = jax.device_get(evaluate(params, batch))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)


def test_a_step_equals_torchs_adamw_and_moves_the_codebook_by_averages(rule, start, train_step):
    state, batch = start, batch_of()
    after, metrics = train_step(state, batch)
    trained = {name: tree for name, tree in state.params["vqvae"].items() if name != "codebook"}

    def loss(trained):
        return rule.eval_step({"vqvae": {**state.params["vqvae"], **trained}}, batch)["loss"]

    gradient = jax.tree.leaves(jax.jit(jax.grad(loss))(trained))
    there = [torch.tensor(np.array(leaf), requires_grad=True) for leaf in jax.tree.leaves(trained)]
    optimizer = torch.optim.AdamW(there, lr=1e-2, betas=(0.9, 0.999), eps=1e-2, weight_decay=0.05)
    for leaf, value in zip(there, gradient, strict=True):
        leaf.grad = torch.tensor(np.array(value))
    optimizer.step()
    found = {name: tree for name, tree in after.params["vqvae"].items() if name != "codebook"}
    for leaf, expected in zip(jax.tree.leaves(found), there, strict=True):
        np.testing.assert_allclose(leaf, expected.detach().numpy(), atol=1e-5)
    assert metrics["replaced"] == 6  # the first batch gives every entry
    latents = functools.partial(rule.model.apply, {"params": state.params["vqvae"]}, method="latents")
    z, _ = jax.jit(latents)(batch["f0_bt"], batch["voiced_bt"], batch["frames_b"])
    valid = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]], bool)
    entries = np.asarray(after.params["vqvae"]["codebook"])
    np.testing.assert_allclose(np.abs(entries[:, None] - np.asarray(z)[valid][None]).max(-1).min(1), 0, atol=1e-5)


def test_a_batch_is_learned(start, train_step):
    state, batch = start, batch_of()
    losses, used = [], []
    for _ in range(150):
        state, metrics = train_step(state, batch)
        losses.append(float(metrics["loss"]))
        used.append(float(metrics["in_use"]))
    assert losses[-1] < 0.4 * losses[0]
    assert used[-1] >= 4


def test_a_bad_step_changes_nothing(start, train_step):
    state, batch = start, batch_of()
    batch["f0_bt"][0, 3] = np.inf
    after, metrics = train_step(state, batch)
    assert metrics["bad"]
    same = jax.tree.map(np.array_equal, (state.params, state.opt_state), (after.params, after.opt_state))
    assert all(jax.tree.leaves(same))
