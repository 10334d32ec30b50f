"""Training of an adapter against PEFT in PyTorch with the same weights; the base stays as it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
import transformers

from spirit_jax.models import llama, lora
from spirit_jax.models.lora_config import LoraConfig
from spirit_jax.training.config import OptimizerConfig
from spirit_jax.training.language_model import LanguageModelObjective
from spirit_jax.training.lora import AdapterWeights, first_adapter
from spirit_jax.training.optimizer import make_optimizer
from spirit_jax.training.step import Frozen, TrainStep, UpdateRule
from tests.support.adapters import random_adapter
from tests.support.steps import KINDS_V, LENGTH, MODEL, ROWS, VOCABULARY, one_device, random_params, tiny_batch

CONFIG = LoraConfig(rank=4, alpha=8.0)


def _step(config: LoraConfig, base: llama.Params, accumulate: int = 1, **optimizer) -> TrainStep:
    """The step that trains an adapter of the tiny model on one device."""
    weights = AdapterWeights(MODEL, config, base)

    def objective(weights: AdapterWeights) -> LanguageModelObjective:
        return LanguageModelObjective(MODEL, KINDS_V, trained=weights)

    def rule(base: llama.Params) -> UpdateRule:
        bound = objective(dataclasses.replace(weights, base=base))
        return UpdateRule(bound, make_optimizer(OptimizerConfig(**optimizer), 10))

    frozen = Frozen(base, rule)
    return TrainStep(rule(base), one_device(ROWS, accumulate), frozen)


@pytest.fixture(scope="module")
def base():
    return random_params(MODEL)


def _peft_model(base: llama.Params, adapter: llama.Params, config: LoraConfig) -> torch.nn.Module:
    """Hugging Face's model with PEFT's adapter and the same weights."""
    network = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            rms_norm_eps=MODEL.rms_norm_eps,
            attn_implementation="eager",  # pyright: ignore[reportCallIssue]  # an argument of its base class
        )
    )
    model = peft.get_peft_model(
        network,
        peft.LoraConfig(r=config.rank, lora_alpha=int(config.alpha), target_modules=config.targets, lora_dropout=0.0),
    )
    state = {
        "base_model.model.model.embed_tokens.weight": base["embed_tokens"],
        "base_model.model.model.norm.weight": base["norm"]["weight"],
        "base_model.model.lm_head.weight": base["lm_head"].T,
    }
    for layer in range(MODEL.num_hidden_layers):
        prefix = f"base_model.model.model.layers.{layer}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            state[f"{prefix}{name}.weight"] = base["layers"][name]["weight"][layer]
        for name, target in lora.TARGETS.items():
            weight = base["layers"][target.group][name][layer]
            inputs = int(np.prod(weight.shape[: target.inputs]))
            key = f"{prefix}{target.group}.{name}"
            state[f"{key}.base_layer.weight"] = weight.reshape(inputs, -1).T
            pair = adapter["layers"][target.group][name]
            state[f"{key}.lora_A.default.weight"] = pair["lora_a"][layer].reshape(inputs, -1).T
            state[f"{key}.lora_B.default.weight"] = pair["lora_b"][layer].reshape(config.rank, -1).T
    model.load_state_dict({name: torch.tensor(np.array(value)) for name, value in state.items()})
    return model


def test_loss_and_gradients_equal_peft(base):
    adapter, batch = random_adapter(MODEL, CONFIG), tiny_batch()
    step = _step(CONFIG, base, clip_norm=0.0)
    model = _peft_model(base, adapter, CONFIG)
    segments_bt = torch.tensor(batch["segment_ids"])
    sees_bts = (segments_bt[:, :, None] == segments_bt[:, None]) & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    mask_b1ts = torch.where(sees_bts, 0.0, torch.finfo(torch.float32).min)[:, None]
    inputs, positions = (torch.tensor(batch[name], dtype=torch.long) for name in ("inputs", "positions"))
    logits = model(input_ids=inputs, attention_mask=mask_b1ts, position_ids=positions).logits
    targets, mask = torch.tensor(batch["targets"], dtype=torch.long), torch.tensor(batch["loss_mask"])
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    loss = (nll * mask).sum() / mask.sum()
    loss.backward()
    state, metrics = step.train_step(step.start_from(jax.tree.map(jnp.asarray, adapter)), step.put_batch(batch))
    np.testing.assert_allclose(float(metrics["loss"]), loss.item(), rtol=1e-5)
    gradients = optax.tree_utils.tree_get(state.opt_state, "mu")  # 0.1 times the gradient after one step
    expected = {name: value.grad.numpy() for name, value in model.named_parameters() if value.grad is not None}
    assert len(expected) == 2 * 7 * 2
    for layer in range(2):
        for name, target in lora.TARGETS.items():
            pair = gradients["layers"][target.group][name]
            key = f"base_model.model.model.layers.{layer}.{target.group}.{name}"
            a = np.asarray(pair["lora_a"][layer]).reshape(-1, CONFIG.rank).T * 10
            b = np.asarray(pair["lora_b"][layer]).reshape(CONFIG.rank, -1).T * 10
            np.testing.assert_allclose(a, expected[f"{key}.lora_A.default.weight"], rtol=2e-4, atol=2e-7)
            np.testing.assert_allclose(b, expected[f"{key}.lora_B.default.weight"], rtol=2e-4, atol=2e-7)


def test_steps_change_the_adapter_and_not_the_base(base):
    """Rows are trained with the updates; the state and the optimizer hold nothing else."""
    config = dataclasses.replace(CONFIG, dropout=0.3, targets=["q_proj", "down_proj"], rows_from=40)
    before = jax.tree.map(np.array, base)
    step = _step(config, base, learning_rate=1e-2)
    weights = AdapterWeights(MODEL, config, base)
    state = step.start_from(first_adapter(weights, step.layout.mesh, seed=0))
    np.testing.assert_array_equal(state.params["rows"]["lm_head"], base["lm_head"][:, 40:])
    first, batch, losses = jax.tree.map(np.array, state.params), step.put_batch(tiny_batch()), []
    for _ in range(8):
        state, metrics = step.train_step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.1
    jax.tree.map(np.testing.assert_array_equal, base, before)
    changed = jax.tree.map(lambda new, old: bool(np.abs(np.asarray(new) - old).max() > 0), state.params, first)
    assert all(jax.tree.leaves(changed)), changed
    assert {name for group in state.params["layers"].values() for name in group} == {"q_proj", "down_proj"}
    sizes = [leaf.size for leaf in jax.tree.leaves(state.opt_state)]
    assert sum(sizes) < 2.1 * lora.parameter_count(MODEL, config)
    evaluated = step.eval_step(state.params, batch)
    mask = tiny_batch()["loss_mask"]
    merged = lora.merge(MODEL, config, base, state.params)
    plain = LanguageModelObjective(MODEL, KINDS_V).evaluate(merged, batch)
    np.testing.assert_allclose(float(evaluated["loss"]) / mask.sum(), float(plain["loss"]) / mask.sum(), rtol=1e-5)


def test_the_key_of_dropout_depends_on_the_step_and_the_tokens_alone(base):
    weights = AdapterWeights(MODEL, LoraConfig(dropout=0.5), base, seed=3)

    def key(step: int, tokens: int) -> tuple[int, ...]:
        batch = {"step": jnp.full(ROWS, step), "inputs": jnp.asarray(tiny_batch(tokens)["inputs"])}
        return tuple(jax.random.key_data(weights.random_keys(batch)["dropout"]).tolist())

    assert key(1, 0) == key(1, 0)
    assert len({key(step, tokens) for step in (1, 2) for tokens in (0, 1)}) == 4
    assert AdapterWeights(MODEL, LoraConfig(), base).random_keys({}) == {}
