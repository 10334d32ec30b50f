"""The vocoder network against PyTorch, whose weight norm is torch's own; its receptive field, by NaN; its full size."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spirit_jax.checkpoint import flatten
from spirit_jax.convert.components import hifigan as table
from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.table import tensor_mappings, to_torch
from spirit_jax.kernels import use_kernels
from spirit_jax.models import hifigan
from spirit_jax.models.hifigan import HifiGan, fold_weight_norm, split_weight_norm
from spirit_jax.models.hifigan_config import HifiGanConfig
from tests.support.goldens import golden
from tests.support.small_vocoders import BASE, EXPRESSIVE, random_codes, random_vocoders, tensors
from tests.support.torch_hifigan import TorchHifiGan


@functools.partial(jax.jit, static_argnames=("model", "context"))
def _generate(model, params, *arguments, context=(0, 0)):
    return model.apply({"params": params}, *arguments, context=context, method="generate")


def generate(*arguments, **options):
    return np.asarray(_generate(*arguments, **options))


@functools.partial(jax.jit, static_argnames="model")
def log_durations(model, params, *arguments):
    return model.apply({"params": params}, *arguments, method="log_durations")


@pytest.fixture(scope="module", params=["base", "expressive"])
def pair(request):
    return {"base": BASE, "expressive": EXPRESSIVE}[request.param], *random_vocoders(
        {"base": BASE, "expressive": EXPRESSIVE}[request.param]
    )


def test_audio_and_durations_equal_torch(pair):
    # In float32, 2e-6 is twenty roundings of a value below 1. The audio has a standard deviation of 0.1 to 0.5.
    config, reference, model, params = pair
    arguments = random_codes(config, 2, 13)
    folded = fold_weight_norm(params)
    with torch.inference_mode():
        expected = reference(*tensors(arguments)).numpy()
        expected_log = reference.log_durations(torch.tensor(arguments[0])).numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(generate(model, folded, *arguments), expected, atol=2e-6)
    bounds = np.zeros(2, int), np.full(2, 13)
    log = log_durations(model, folded, arguments[0], *bounds)
    np.testing.assert_allclose(log, expected_log, atol=5e-6)


def test_durations_round_half_to_even_and_last_a_frame_at_least():
    frames = np.array([-3.0, 0.0, 0.4, 1.49, 1.51, 2.5, 3.5, 4.5, 70.4])
    # exp(log(f + 1)) - 1 is f only up to rounding: ties are made exact by asking for those that stay exact.
    logs = np.log(np.maximum(frames, -0.9) + 1).astype(np.float32)
    exact = (np.exp(logs) - 1 == frames.astype(np.float32)) | (frames % 1 != 0.5)
    expected = np.array([1, 1, 1, 1, 2, 2, 4, 4, 70])
    np.testing.assert_array_equal(np.asarray(hifigan.durations(jnp.asarray(logs)))[exact], expected[exact])
    np.testing.assert_array_equal(hifigan.durations(jnp.float32([-20.0, 20.0])), [1, 485165184])


def test_padding_does_not_reach_the_audio(pair):
    # A row of 5 frames beside one of 13, and alone with other padding. Two programs compute them, so bits may differ:
    # 1e-6 is the rounding of one convolution.
    config, _, model, params = pair
    folded = fold_weight_norm(params)
    arguments = random_codes(config, 2, 13)
    first, last = np.array([0, 0]), np.array([5, 13])
    together = generate(model, folded, *arguments, first, last)
    alone = generate(model, folded, *[a if a is None else a[:1, :5] if a.ndim == 2 else a[:1] for a in arguments])
    np.testing.assert_allclose(together[0, : 5 * 6], alone[0], atol=1e-6)
    unbounded = generate(model, folded, *arguments)
    np.testing.assert_allclose(together[1], unbounded[1], atol=1e-6)
    assert np.abs(unbounded[0, : 5 * 6] - alone[0]).max() > 1e-3  # without bounds it does
    units = np.asarray(arguments[0])
    log = log_durations(model, folded, units, first, last)
    short = log_durations(model, folded, units[:1, :5], first[:1], last[:1])
    np.testing.assert_allclose(log[0, :5], short[0], atol=1e-6)


def test_windows_with_context_equal_the_whole(pair):
    config, _, model, params = pair
    folded = fold_weight_norm(params)
    arguments = random_codes(config, 1, 40)
    whole = generate(model, folded, *arguments)[0]
    left, right = model.config.context
    assert max(left, right) < 40
    for start in range(0, 40, 9):
        indices = np.arange(start - left, start + 9 + right)
        window = [a if a is None or a.ndim == 1 else a[:, np.clip(indices, 0, 39)] for a in arguments]
        bounds = np.array([left - start]), np.array([left - start + 40])
        audio = generate(model, folded, *window, *bounds, context=(left, right))[0]
        expected = whole[start * 6 : (start + 9) * 6]
        np.testing.assert_allclose(audio[: len(expected)], expected, atol=1e-6)


@pytest.mark.parametrize(
    "config", [BASE, {**BASE, "upsample_kernel_sizes": [3, 2], "resblock_dilation_sizes": [[1], [1]]}]
)
def test_context_is_the_receptive_field_exactly(config):
    """A unit whose embedding is NaN marks all audio that depends on it.

    The formulas compute it, because an implementation may multiply taps that are zero with the NaN.
    """
    _, model, params = random_vocoders(config)
    folded = fold_weight_norm(params)
    table_ = np.array(folded["unit_embedding"]["embedding"])
    table_[1] = np.nan
    folded = {**folded, "unit_embedding": {"embedding": table_}}
    frames, at = 40, 20
    units = np.zeros((1, frames), int)
    units[0, at] = 1
    run = jax.jit(lambda *arguments: model.apply({"params": folded}, *arguments, method="generate"))
    with use_kernels("reference"):
        audio = np.asarray(run(units, None, None, np.array([0]), np.array([0])))
    (touched,) = np.nonzero(np.isnan(audio.reshape(frames, -1)).any(axis=1))
    left, right = model.config.context
    assert (touched[0], touched[-1]) == (at - right, at + left)


def test_context_of_the_released_vocoders():
    assert HifiGanConfig().context == (20, 20)  # 0.8 s either way


def test_weight_norm_folds_as_torch_and_splits_back(pair):
    config, reference, _, params = pair
    folded = fold_weight_norm(params)
    again = TorchHifiGan(config)
    again.load_state_dict(reference.state_dict())
    state = again.fold().state_dict()  # torch multiplies them out
    up, conv = state["ups.1.weight"].permute(2, 0, 1), state["resblocks.2.convs2.1.weight"].permute(2, 1, 0)
    np.testing.assert_allclose(folded["ups_1"]["kernel"], up, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(folded["resblocks_2"]["convs2_1"]["kernel"], conv, rtol=1e-6, atol=1e-8)
    split = flatten(split_weight_norm(folded))
    assert {path: value.shape for path, value in split.items()} == {p: v.shape for p, v in flatten(params).items()}
    for path, value in flatten(fold_weight_norm(split_weight_norm(folded))).items():
        np.testing.assert_allclose(value, flatten(folded)[path], rtol=1e-6, atol=1e-8)


def test_gradients_reach_both_factors_and_equal_torch():
    small = {**BASE, "upsample_rates": [6], "upsample_kernel_sizes": [8], "resblock_kernel_sizes": [3]}
    small["resblock_dilation_sizes"] = [[1, 2]]
    reference, model, params = random_vocoders(small)
    arguments = random_codes(small, 1, 6)
    reference(*tensors(arguments)).square().sum().backward()

    def energy(params):
        audio = jnp.asarray(model.apply({"params": fold_weight_norm(params)}, *arguments, method="generate"))
        return jnp.sum(audio**2)

    gradients = jax.jit(jax.grad(energy))(jax.tree.map(jnp.asarray, params))
    expected = {name: p.grad for name, p in reference.named_parameters() if p.grad is not None}
    found = to_torch(table.rows({}), {path: np.asarray(value) for path, value in flatten(gradients).items()})
    for name in (
        "ups.0.weight_g",
        "ups.0.weight_v",
        "resblocks.0.convs1.1.weight_g",
        "conv_pre.weight_v",
        "spkr.weight",
    ):
        gradient = expected[name].numpy()
        np.testing.assert_allclose(np.asarray(found[name]), gradient, atol=2e-5 * np.abs(gradient).max(), err_msg=name)


@pytest.mark.parametrize(
    ("name", "parameters"), [("hifigan_spiritlm_base", 14_385_539), ("hifigan_spiritlm_expressive_w2v2", 14_852_483)]
)
def test_full_size_has_the_published_parameters(name, parameters):
    full = json.loads(golden("FULL_SIZE.json").read_text())[f"{name}/generator.pt"]
    config = table.part_config(full["config"])
    shapes = table.shapes(config)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == full["params"] == parameters
    released = {tensor.names[0]: list(tensor.shape) for tensor in tensor_mappings(table.rows(config), shapes)}
    assert released == full["state"]
    model = HifiGan(HifiGanConfig.from_dict(config["hifigan"]))
    units = jax.ShapeDtypeStruct((2, 250), jnp.int32)
    (audio, log), _ = jax.eval_shape(lambda key, x: model.init_with_output(key, x), jax.random.key(0), units)
    assert (audio.shape, log.shape) == ((2, 160_000), (2, 250))


def test_state_dicts_survive_a_round_trip_bit_for_bit(pair):
    config, reference, _, params = pair
    state = reference.state_dict()
    back = to_torch(table.rows(table.part_config(config)), flatten(params), names=list(state))
    assert list(back) == list(state)
    for name, value in back.items():
        np.testing.assert_array_equal(np.asarray(value), state[name].numpy(), err_msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resblock": "2"}, "resblock is '2'"),
        ({"model_in_dim": 31}, "model_in_dim is 31, expected 30"),
        ({"upsample_kernel_sizes": [8, 6]}, "kernel size - rate even"),
        ({"code_hop_size": 7}, "must multiply to code_hop_size 7"),
        ({"resblock_kernel_sizes": [3, 4]}, "must be odd"),
        ({"resblock_dilation_sizes": [[1, 4]]}, "one entry a block"),
        (
            {"dur_predictor_params": {"encoder_embed_dim": 10, "var_pred_hidden_dim": 14, "var_pred_kernel_size": 5}},
            "var_pred_kernel_size is 5",
        ),
    ],
)
def test_networks_that_are_not_ours_are_refused(change, message):
    with pytest.raises(ConversionError, match=message):
        table.part_config({**BASE, **change})


def test_missing_and_unknown_config_fields_are_named():
    with pytest.raises(ConversionError, match="embedding_dim is missing"):
        table.part_config({name: value for name, value in BASE.items() if name != "embedding_dim"})
    with pytest.raises(ValueError, match="unknown HiFi-GAN config field upsample_rate"):
        HifiGanConfig.from_dict({"upsample_rate": [5]})
