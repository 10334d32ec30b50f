"""DPO against the formula in PyTorch with autograd, and its values in the log."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spirit_jax.data.preference_config import PreferenceData
from spirit_jax.models import llama
from spirit_jax.training.config import OptimizerConfig, PreferenceConfig
from spirit_jax.training.language_model import AllWeights
from spirit_jax.training.optimizer import make_optimizer
from spirit_jax.training.preferences import PreferenceObjective, PreferenceSummary
from spirit_jax.training.step import UpdateRule
from tests.support.steps import random_params

ROWS, LENGTH, VOCABULARY = 4, 12, 40
MODEL = llama.LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
)
DPO = PreferenceConfig(PreferenceData("data"), beta=0.7)
VARIANTS = {
    "smoothed": {"label_smoothing": 0.2},
    "without_reference": {"reference": False, "length_normalized": True, "beta": 2.0},
}


def _batch(rows: int = ROWS) -> dict[str, np.ndarray]:
    """Two answers of different lengths a row; the last row is padding."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCABULARY, (rows, 2, LENGTH + 1)).astype(np.int32)
    lengths = rng.integers(5, LENGTH + 1, (rows, 2, 1))
    slots = np.arange(LENGTH)
    batch = {
        "inputs": tokens[..., :-1],
        "targets": tokens[..., 1:],
        "segment_ids": (slots < lengths).astype(np.int32),
        "positions": np.broadcast_to(slots, (rows, 2, LENGTH)).astype(np.int32),
        "loss_mask": (slots < lengths) & (slots >= 3),
    }
    batch["loss_mask"][-1] = False
    return batch


@functools.cache
def _models() -> tuple[llama.Params, llama.Params]:
    return random_params(MODEL), random_params(MODEL, 1)


def _objective(config: PreferenceConfig) -> PreferenceObjective:
    reference = {"params": _models()[1]} if config.reference else None
    return PreferenceObjective(MODEL, config, AllWeights(MODEL), reference)


def _formula(config: PreferenceConfig, batch: dict[str, np.ndarray], hidden: torch.Tensor, head: torch.Tensor):
    """Mean loss of the preferences with autograd, from the hidden states of the policy [B, 2, T, D]."""
    targets = torch.tensor(batch["targets"], dtype=torch.long)
    mask = torch.tensor(batch["loss_mask"])

    def log_probability(hidden: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        token = torch.log_softmax(hidden @ head, -1).gather(-1, targets[..., None])[..., 0]
        total = (token * mask).sum(-1)
        return total / mask.sum(-1).clamp(min=1) if config.length_normalized else total

    policy = log_probability(hidden, head)
    if config.reference:
        params = _models()[1]
        policy = policy - log_probability(
            torch.tensor(_hidden(params, batch)), torch.tensor(np.asarray(params["lm_head"]))
        )
    margin = config.beta * (policy[:, 0] - policy[:, 1])
    e = config.label_smoothing
    loss = -(1 - e) * torch.nn.functional.logsigmoid(margin) - e * torch.nn.functional.logsigmoid(-margin)
    return loss[mask.any(-1).any(-1)].mean()


def _hidden(params: llama.Params, batch: dict[str, np.ndarray]) -> np.ndarray:
    inputs, positions, segments = (batch[name].reshape(-1, LENGTH) for name in ("inputs", "positions", "segment_ids"))
    hidden, _ = jax.jit(llama.Llama(MODEL).apply)({"params": params}, inputs, positions, segments)
    return np.asarray(hidden).reshape(-1, 2, LENGTH, MODEL.hidden_size)


@pytest.mark.parametrize("name", VARIANTS)
def test_loss_and_gradients_equal_the_formula(name):
    """Autograd gives the gradients of the head and of the hidden states; those are pulled back through the network."""
    config, batch, (policy, _) = dataclasses.replace(DPO, **VARIANTS[name]), _batch(), _models()
    hidden = torch.tensor(_hidden(policy, batch), requires_grad=True)
    head = torch.tensor(np.asarray(policy["lm_head"]), requires_grad=True)
    loss = _formula(config, batch, hidden, head)
    loss.backward()
    assert hidden.grad is not None
    assert head.grad is not None
    objective, device, pulled_from = _objective(config), jax.device_put(batch), jnp.asarray(hidden.grad.numpy())

    def both(params: llama.Params):
        scale = objective.loss_scale(device)
        (value, metrics), gradients = jax.value_and_grad(objective.loss, has_aux=True)(params, device, scale)
        shaped = {name: batch[name].reshape(-1, LENGTH) for name in ("inputs", "positions", "segment_ids")}
        _, pull = jax.vjp(lambda p: llama.Llama(MODEL).apply({"params": p}, *shaped.values())[0], params)
        (pulled,) = pull(pulled_from.reshape(-1, LENGTH, MODEL.hidden_size))
        return value, metrics, gradients, pulled, objective.evaluate(params, device)

    value, metrics, gradients, pulled, evaluated = jax.jit(both)(policy)
    np.testing.assert_allclose(float(value), loss.item(), rtol=2e-5)
    np.testing.assert_allclose(float(evaluated["loss"]) / 3, loss.item(), rtol=2e-5)
    assert (float(metrics["preferences"]), float(metrics["tokens"])) == (3, (batch["segment_ids"] > 0).sum())
    np.testing.assert_allclose(gradients["lm_head"], head.grad.numpy(), rtol=1e-3, atol=2e-6)
    for name in ("layers", "embed_tokens"):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-6), gradients[name], pulled[name])


def test_accumulation_gives_the_same_gradients():
    rule = UpdateRule(_objective(DPO), make_optimizer(OptimizerConfig(), 10))
    results = [jax.jit(rule.gradients, static_argnums=2)(_models()[0], _batch(), parts) for parts in (1, 2)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), *results)


def test_the_log_holds_means_over_preferences():
    sums = {"loss": 2.0, "preferences": 4.0, "chosen_reward": 2.0, "rejected_reward": -1.0, "wins": 3.0}
    summary = PreferenceSummary(flops_per_unit=1.0)
    assert summary.source_values(sums) == {
        "loss": 0.5, "accuracy": 0.75, "chosen_reward": 0.5, "rejected_reward": -0.25, "reward_margin": 0.75,
    }  # fmt: skip
    assert summary.train_values(sums)["loss"] == 2.0  # a step's loss is a mean already


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"beta": 0.0}, "beta must be positive"), ({"label_smoothing": 0.5}, "label_smoothing must lie in 0..0.5")],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DPO, **changes)
