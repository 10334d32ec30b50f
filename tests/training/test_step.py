"""The training step against torch's autograd on Hugging Face's Llama, and its sums against counting by hand."""

import functools

import jax
import numpy as np
import optax
import pytest
import torch
import transformers

from spirit_jax.training.language_model import means_by_kind, unigram_entropy
from spirit_jax.vocabulary import TOKEN_KINDS
from tests.support.steps import KINDS_V, LENGTH, MODEL, VOCABULARY, tiny_batch, tiny_step


def _to_torch(params):
    """Hugging Face's model with the given parameters."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=MODEL.rms_norm_eps,
        attn_implementation="eager",  # pyright: ignore[reportCallIssue]  # an argument of its base class
    )
    model = transformers.LlamaForCausalLM(config)
    state = {
        "model.embed_tokens.weight": params["embed_tokens"],
        "model.norm.weight": params["norm"]["weight"],
        "lm_head.weight": params["lm_head"].T,
    }
    layers = params["layers"]
    for index in range(2):
        prefix = f"model.layers.{index}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            state[f"{prefix}{name}.weight"] = layers[name]["weight"][index]
        for name, weight in layers["self_attn"].items():
            inner = weight[index].reshape(-1, 32) if name == "o_proj" else weight[index].reshape(32, -1)
            state[f"{prefix}self_attn.{name}.weight"] = inner.T
        for name, weight in layers["mlp"].items():
            state[f"{prefix}mlp.{name}.weight"] = weight[index].T
    model.load_state_dict({name: torch.tensor(np.array(value)) for name, value in state.items()})
    return model


def _logits(model, batch):
    """Logits of Hugging Face's model for the same documents and positions."""
    segments_bt = torch.tensor(batch["segment_ids"])
    sees_bts = (segments_bt[:, :, None] == segments_bt[:, None]) & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    mask_b1ts = torch.where(sees_bts, 0.0, torch.finfo(torch.float32).min)[:, None]
    inputs, positions = (torch.tensor(batch[name], dtype=torch.long) for name in ("inputs", "positions"))
    return model(inputs, attention_mask=mask_b1ts, position_ids=positions).logits


def _gradient_norm(model):
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt().item()


def test_loss_and_gradient_norm_equal_torch():
    step, batch = tiny_step(clip_norm=0.0), tiny_batch()
    state = step.init(jax.random.key(1))
    model = _to_torch(jax.device_get(state.params))
    _, metrics = step.train_step(state, step.put_batch(batch))
    logits = _logits(model, batch)
    nll = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), torch.tensor(batch["targets"], dtype=torch.long), reduction="none"
    )
    mask = torch.tensor(batch["loss_mask"])
    loss = (nll * mask).sum() / mask.sum()
    loss.backward()
    np.testing.assert_allclose(float(metrics["loss"]), loss.item(), atol=1e-5)  # float32 noise of 50-way logits
    np.testing.assert_allclose(float(metrics["gradient_norm"]), _gradient_norm(model), rtol=1e-4)
    nll, kinds = (nll * mask).detach().numpy(), KINDS_V[batch["targets"]]
    values = means_by_kind(metrics)
    for index, kind in enumerate(TOKEN_KINDS):
        here = (kinds == index) & batch["loss_mask"]
        np.testing.assert_allclose(values[f"loss_{kind}"], nll[here].mean(), atol=1e-5)
        hits = (logits.argmax(-1).numpy() == batch["targets"])[here]
        np.testing.assert_allclose(values[f"accuracy_{kind}"], hits.mean(), atol=1e-7)


def test_z_loss_equals_torch():
    """The loss and the gradient norm include the square of the log-partition; the losses by kind do not."""
    step, batch = tiny_step(clip_norm=0.0, z_loss=0.1), tiny_batch()
    state = step.init(jax.random.key(1))
    model = _to_torch(jax.device_get(state.params))
    _, metrics = step.train_step(state, step.put_batch(batch))
    logits, mask = _logits(model, batch), torch.tensor(batch["loss_mask"])
    targets = torch.tensor(batch["targets"], dtype=torch.long)
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    loss = ((nll + 0.1 * torch.logsumexp(logits, -1) ** 2) * mask).sum() / mask.sum()
    loss.backward()
    np.testing.assert_allclose(float(metrics["loss"]), loss.item(), rtol=1e-5)  # float32 noise
    np.testing.assert_allclose(float(metrics["gradient_norm"]), _gradient_norm(model), rtol=1e-4)
    np.testing.assert_allclose(means_by_kind(metrics)["loss"], ((nll * mask).sum() / mask.sum()).item(), rtol=1e-5)


@pytest.mark.parametrize("accumulate", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_accumulation_weighs_parts_by_their_tokens(accumulate):
    """Some parts have almost no token to learn. Metrics and first moments (the gradient times a constant) equal those
    of the step without accumulation within float32 noise."""
    batch = tiny_batch()
    batch["loss_mask"][1:] = False
    batch["loss_mask"][1, 3] = batch["loss_mask"][2, 5] = True
    results = []
    for parts in (1, accumulate):
        step = tiny_step(accumulate=parts, clip_norm=0.0)
        state, metrics = step.train_step(step.init(jax.random.key(1)), step.put_batch(batch))
        results.append(jax.device_get((metrics, optax.tree_utils.tree_get(state.opt_state, "mu"))))
    assert results[0][0]["tokens"].sum() == batch["loss_mask"].sum()
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), *results)


def test_the_reported_learning_rate_follows_the_schedule():
    step = tiny_step(warmup_steps=4, learning_rate=1e-3)
    state, rates = step.init(jax.random.key(1)), []
    for _ in range(6):
        state, metrics = step.train_step(state, step.put_batch(tiny_batch()))
        rates.append(float(metrics["learning_rate"]))
    np.testing.assert_allclose(rates, [2e-4, 4e-4, 6e-4, 8e-4, 1e-3, 1e-3], rtol=1e-6)


def test_masked_positions_do_not_change_the_weights():
    step = tiny_step()
    batch, other = tiny_batch(), tiny_batch()
    other["targets"] = np.where(batch["loss_mask"], batch["targets"], 7).astype(np.int32)
    results = []
    for each in (batch, other):
        state, _ = step.train_step(step.init(jax.random.key(1)), step.put_batch(each))
        results.append(jax.device_get(state.params))
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_loss_within_a_kind_equals_torch():
    step, batch = tiny_step(), tiny_batch()
    params = step.init(jax.random.key(1)).params
    metrics = step.eval_step(params, step.put_batch(batch))
    with torch.no_grad():
        logits = _logits(_to_torch(jax.device_get(params)), batch).numpy()
    kinds, values = KINDS_V[batch["targets"]], means_by_kind(metrics)
    for index, kind in enumerate(TOKEN_KINDS):
        here = (kinds == index) & batch["loss_mask"]
        own = torch.log_softmax(torch.tensor(logits[here][:, KINDS_V == index]), -1).numpy()
        position = np.searchsorted(np.flatnonzero(KINDS_V == index), batch["targets"][here])
        np.testing.assert_allclose(values[f"loss_within_{kind}"], -own[np.arange(len(own)), position].mean(), atol=1e-5)


def test_evaluation_counts_targets():
    step, batch = tiny_step(), tiny_batch()
    counts = np.asarray(step.eval_step(step.init(jax.random.key(0)).params, step.put_batch(batch))["targets"])
    np.testing.assert_array_equal(counts, np.bincount(batch["targets"][batch["loss_mask"]], minlength=VOCABULARY))


def test_unigram_entropy_by_hand():
    kinds = np.array([0, 0, 0, 1, 1])
    values = unigram_entropy(np.array([2.0, 2.0, 0.0, 1.0, 3.0]), kinds)
    assert set(values) == {"unigram_entropy_text", "unigram_entropy_hubert"}
    np.testing.assert_allclose(values["unigram_entropy_text"], np.log(2))
    np.testing.assert_allclose(values["unigram_entropy_hubert"], -(0.25 * np.log(0.25) + 0.75 * np.log(0.75)))
