"""A vocoder's step against PyTorch's AdamW, padding, and that it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spirit_jax.checkpoint import flatten
from spirit_jax.convert.components import hifigan as table
from spirit_jax.convert.table import to_jax
from spirit_jax.models.hifigan import fold_weight_norm, initialize
from spirit_jax.models.hifigan_config import DiscriminatorConfig, HifiGanConfig, MelConfig
from spirit_jax.models.hifigan_discriminators import iterate_power
from spirit_jax.models.hifigan_losses import inner_runs
from spirit_jax.speech_training.vocoder_config import GanOptimizerConfig, VocoderTraining
from spirit_jax.speech_training.vocoder_rule import DISCRIMINATORS, GENERATOR, RATIOS, VocoderRule, gan_optimizer
from spirit_jax.training.config import LoopConfig
from tests.support import torch_discriminators as reference
from tests.support.small_vocoders import BASE, random_codes, random_vocoders, tensors

NETWORK = BASE | {
    "upsample_rates": [6],
    "upsample_kernel_sizes": [12],
    "upsample_initial_channel": 12,
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3]],
}
FRAMES = 20
START = 30  # step from which the discriminators take part
# An epsilon far above rounding: the first step of Adam is the sign of the gradient, which rounding decides near zero.
OPTIMIZER = GanOptimizerConfig(learning_rate=1e-2, epsilon=1e-2, weight_decay=0.1, decay=0.5)
STEP_NOISE = 1e-4  # a hundredth of the learning rate: the mel loss has a sign in its gradient


@pytest.fixture(scope="module")
def setting():
    """PyTorch's generator, the rule, a first state and the compiled step, which takes both ways by the state's step."""
    torch_generator, model, params = random_vocoders(NETWORK, seed=1)
    config = VocoderTraining(
        network=model.config,
        discriminators=DiscriminatorConfig(periods=(3,), scales=2, channels=32),
        mel=MelConfig(bands=8, window=48, hop=12),
        samples=FRAMES * 6,
        rows=2,
        adversarial_start=START,
        optimizer=OPTIMIZER,
    )
    rule = VocoderRule(config, model.config, gan_optimizer(config.optimizer, 100), spike_sigmas=6.0, initial=params)
    return torch_generator, rule, jax.jit(rule.init)(jax.random.key(0)), jax.jit(rule.train_step)


def batch_of(network_config, rows=2, seed=0):
    units, _, _, speakers, styles = random_codes(network_config, rows, FRAMES)
    units = np.repeat(units[:, ::3], 3, axis=1)[:, :FRAMES].astype(np.int32)
    runs = [inner_runs(row, FRAMES) for row in units]
    rng = np.random.default_rng(seed)
    time = np.arange(FRAMES * 6) / 16_000
    tone = np.sin(2 * np.pi * 700 * time) * 0.3
    return {
        "audio_br": (tone + 0.1 * rng.normal(size=(rows, FRAMES * 6))).astype(np.float32),
        "units_bt": units,
        "pitch_bt": np.zeros_like(units),
        "styles_bt": np.zeros_like(units),
        "speaker_b": speakers.astype(np.int32),
        "style_b": styles.astype(np.int32),
        "runs_bu": np.stack([each[0] for each in runs]),
        "durations_bu": np.stack([each[1] for each in runs]),
        "runs_b": np.array([each[2] for each in runs]),
        "weight_b": np.ones(rows, np.float32),
    }


def test_a_step_equals_torch(setting):
    generator, rule, state, train_step = setting
    config, batch = rule.config, batch_of(NETWORK)
    after, metrics = train_step(state.replace(step=jnp.int32(START)), batch)

    judges = reference.TorchDiscriminators(config.discriminators).eval()
    stacks = reference.load_params(judges, iterate_power(state.params[DISCRIMINATORS]))
    generator = generator.train()
    mel = reference.TorchMel(config.mel)
    options = {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-2, "weight_decay": 0.1}
    of_judges = torch.optim.AdamW(judges.parameters(), **options)
    of_generator = torch.optim.AdamW(generator.parameters(), **options)
    real = torch.tensor(batch["audio_br"])
    codes = [batch["units_bt"], None, None, batch["speaker_b"], batch["style_b"]]
    made = generator(*tensors(codes))
    of_judges.zero_grad()
    loss = reference.discriminator_loss(judges(real), judges(made.detach()))
    loss.backward()
    of_judges.step()
    np.testing.assert_allclose(metrics["discriminator_sum"] / 2, loss.item(), rtol=1e-5)

    of_generator.zero_grad()
    real_outputs, made_outputs = judges(real), judges(made)
    errors = []
    for units, durations, count in zip(batch["runs_bu"], batch["durations_bu"], batch["runs_b"], strict=True):
        logs = generator.log_durations(torch.tensor(units[None, :count]))
        errors.append((logs[0] - torch.log(torch.tensor(durations[:count]) + 1.0)) ** 2)
    parts = {
        "mel": torch.nn.functional.l1_loss(mel(made), mel(real)),
        "duration": torch.cat(errors).mean(),
        "adversarial": reference.adversarial_loss(made_outputs),
        "features": reference.feature_matching_loss(real_outputs, made_outputs),
    }
    total = 45 * parts["mel"] + parts["duration"] + parts["adversarial"] + 2 * parts["features"]
    total.backward()
    of_generator.step()
    # The discriminators have made a step of AdamW, which enlarges the rounding of small gradients.
    for name, value in parts.items():
        np.testing.assert_allclose(metrics[f"{name}_sum"] / 2, value.item(), rtol=1e-3, err_msg=name)
    np.testing.assert_allclose(metrics["loss"], total.item(), rtol=1e-3)

    part = table.part_config(NETWORK)
    values = {name: value.detach().numpy() for name, value in generator.state_dict().items()}
    expected, _ = to_jax(table.rows(part), values, table.shapes(part), "state")
    found = flatten(after.params[GENERATOR])
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_allclose(found[path], np.asarray(array), atol=STEP_NOISE, err_msg=path)
    first = stacks["period_3"].convs[1]
    np.testing.assert_allclose(
        after.params[DISCRIMINATORS]["period_3"]["conv_1"]["weight_v"],
        first.weight_v.detach().numpy().transpose(2, 1, 0),
        atol=STEP_NOISE,
    )
    spectral = stacks["scale_0"].convs[2].parametrizations.weight.original
    np.testing.assert_allclose(
        after.params[DISCRIMINATORS]["scale_0"]["conv_2"]["weight"],
        spectral.detach().numpy().transpose(2, 1, 0),
        atol=STEP_NOISE,
    )
    assert float(rule.optimizer.schedule(99)) == pytest.approx(1e-2)
    assert float(rule.optimizer.schedule(200)) == pytest.approx(1e-2 / 4)


def test_rows_that_fill_a_batch_do_not_count(setting):
    _, rule, state, _ = setting
    batch = batch_of(NETWORK, rows=4)
    twice = {name: np.concatenate([array[:2]] * 2) for name, array in batch.items()}
    batch["weight_b"] = np.array([1, 1, 0, 0], np.float32)
    evaluate = jax.jit(rule.eval_step)
    expected, found = evaluate(state.params, twice), evaluate(state.params, batch)
    for name, (top, below) in RATIOS.items():
        np.testing.assert_allclose(found[top] / found[below], expected[top] / expected[below], rtol=1e-4, err_msg=name)
    assert (found["rows"], expected["rows"]) == (2, 4)


def test_a_batch_is_learned_and_discriminators_wait_for_their_start(setting):
    _, _, state, step = setting
    batch, before = batch_of(NETWORK), jax.device_get(state.params[DISCRIMINATORS])
    losses = []
    for _ in range(START):
        state, metrics = step(state, batch)
        losses.append(float(metrics["mel_sum"]) / 2)
    assert losses[-1] < 0.6 * losses[0]
    same = jax.tree.map(np.array_equal, before, jax.device_get(state.params[DISCRIMINATORS]))
    assert all(jax.tree.leaves(same))
    state, metrics = step(state, batch)
    assert metrics["discriminator_sum"] > 0
    same = jax.tree.map(np.array_equal, before, jax.device_get(state.params[DISCRIMINATORS]))
    # The vector of a power iteration over one output is 1 at any time.
    assert not any(equal for name, equal in flatten(same["scale_0"]).items() if name != "scores/power")


@pytest.mark.parametrize("step", [0, START])
def test_a_bad_step_changes_neither_network(setting, step):
    _, _, state, train_step = setting
    state, batch = state.replace(step=jnp.int32(step)), batch_of(NETWORK)
    batch["audio_br"][0, 7] = np.nan
    after, metrics = train_step(state, batch)
    assert metrics["bad"]
    assert after.step == step + 1
    same = jax.tree.map(np.array_equal, (state.params, state.opt_state), (after.params, after.opt_state))
    assert all(jax.tree.leaves(same))


def test_spikes_are_counted_anew_when_the_discriminators_start(setting):
    _, _, state, train_step = setting
    calm = {"values": jnp.ones_like(state.recent["values"]), "count": jnp.int32(128)}
    for step, bad in ((START - 1, True), (START, False), (START + 1, True)):
        _, metrics = train_step(state.replace(step=jnp.int32(step), recent=calm), batch_of(NETWORK))
        assert metrics["bad"] == bad


def test_discriminators_that_never_take_part_are_not_in_the_step(setting):
    """The step with both ways, before its start, is the independent formula."""
    _, rule, state, both = setting
    alone = dataclasses.replace(rule, config=dataclasses.replace(rule.config, loop=LoopConfig(steps=START)))
    batch = batch_of(NETWORK)
    step = jax.jit(alone.train_step)
    after, metrics = step(state, batch)
    expected, others = both(state, batch)
    np.testing.assert_allclose(metrics["loss"], others["loss"], rtol=1e-5)
    for found, wanted in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(found, wanted, atol=STEP_NOISE)
    later, _ = step(state.replace(step=jnp.int32(START)), batch)
    for found, wanted in zip(
        jax.tree.leaves(later.params[DISCRIMINATORS]), jax.tree.leaves(state.params[DISCRIMINATORS]), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


def test_a_batch_is_not_divided(setting):
    with pytest.raises(ValueError, match="accumulate 2"):
        setting[1].train_step(jax.eval_shape(setting[1].init, jax.random.key(0)), {}, accumulate=2)


def test_narrow_networks_begin_with_the_published_gain():
    config = HifiGanConfig(
        num_embeddings=5,
        num_speakers=0,
        num_styles=0,
        duration_hidden_dim=0,
        upsample_initial_channel=32,
        upsample_rates=(640,),
        upsample_kernel_sizes=(640,),
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1,),),
    )
    params = jax.jit(lambda key: fold_weight_norm(initialize(config, key)))(jax.random.key(0))
    assert jnp.std(params["ups_0"]["kernel"]) == pytest.approx(0.04, rel=0.05)
    assert jnp.std(params["resblocks_0"]["convs1_0"]["kernel"]) == pytest.approx(0.04, rel=0.1)
