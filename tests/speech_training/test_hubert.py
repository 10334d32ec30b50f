"""HuBERT's masked prediction: values, gradients and an optimizer step against transformers with the same weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from spirit_jax.checkpoint import flatten
from spirit_jax.convert.components.style import hf_encoder_rows
from spirit_jax.convert.table import Row, to_torch
from spirit_jax.models.band_filters import mel_band_filters
from spirit_jax.models.wav2vec2_config import Wav2Vec2Config, Wav2Vec2Noise
from spirit_jax.parallel.mesh import make_mesh
from spirit_jax.parallel.mesh_config import MeshConfig
from spirit_jax.parallel.sharding import BatchLayout
from spirit_jax.speech.mfcc import label_features
from spirit_jax.speech_training.crops import Crop
from spirit_jax.speech_training.hubert import HubertObjective, HubertRows
from spirit_jax.speech_training.hubert_config import HubertTraining, LabelConfig, MaskConfig
from spirit_jax.speech_training.labels import Labels
from spirit_jax.training.config import LoopConfig, OptimizerConfig
from spirit_jax.training.optimizer import make_optimizer
from spirit_jax.training.step import TrainStep, UpdateRule
from tests.support.torch_hubert import TorchHubert

CLASSES, ROWS, SAMPLES = 7, 3, 1200
ENCODER = Wav2Vec2Config(
    conv_layers=((16, 10, 5), (16, 3, 2), (16, 2, 2)),
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    intermediate_size=48,
    position_kernel=8,
    position_groups=4,
)
CONFIG = HubertTraining(
    encoder=ENCODER,
    labels=LabelConfig(clusters=CLASSES),
    masking=MaskConfig(length=4),
    noise=Wav2Vec2Noise(0, 0, 0, 0, 1.0),
    rows=ROWS,
    samples=SAMPLES,
    shortest=600,
    projection=12,
    unmasked_weight=0.5,
    optimizer=OptimizerConfig(learning_rate=1e-2, beta2=0.98, epsilon=1e-6, weight_decay=0.05, clip_norm=0.5),
    loop=LoopConfig(steps=10),
)
OBJECTIVE = HubertObjective(CONFIG, CLASSES, seed=0)
ROWS_OF_TORCH = (
    *hf_encoder_rows(ENCODER, "hubert."),
    Row("hubert.masked_spec_embed", "mask_embedding", "d -> d"),
    Row("projection.weight", "projection/kernel", "o i -> i o"),
    Row("projection.bias", "projection/bias", "o -> o"),
    Row("classes", "class_embeddings", "k p -> k p"),
)


def _batch(seed=0, samples=SAMPLES):
    """Rows of full length, as the row function makes them."""
    rng = np.random.default_rng(seed)
    frames = ENCODER.frames(samples)
    labels = Labels(rng.integers(0, CLASSES, ROWS * frames), np.arange(ROWS + 1) * frames)
    make = HubertRows(CONFIG, labels)
    rows = []
    for index in range(ROWS):
        audio = np.pad(rng.standard_normal(samples).astype(np.float32), (0, SAMPLES - samples))
        rows.append({**make(Crop(index, 0, samples, audio), rng), "weight_b": np.float32(1)})
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def test_a_crop_that_begins_between_frames_has_the_labels_of_its_own_audio():
    """Labels stand every 10 ms, so those of frames of 20 ms exist for every such begin, as in fairseq."""
    settings = HubertTraining(masking=MaskConfig(length=4), samples=16_000, shortest=8000)
    encoder, hop = settings.encoder, settings.label_hop
    audio = np.random.default_rng(0).standard_normal(40_000).astype(np.float32)
    of_clip = label_features(audio, (audio.size - encoder.receptive_field) // hop + 1, hop, encoder.receptive_field)
    make = HubertRows(settings, Labels(np.arange(len(of_clip)), np.array([0, len(of_clip)])))
    for start in (0, 160, 320, 24_000):
        part = audio[start : start + 16_000]
        row = make(Crop(0, start, part.size, part), np.random.default_rng(0))
        of_crop = label_features(part, encoder.frames(part.size), encoder.hop, encoder.receptive_field)
        found = of_clip[row["label_bt"]]
        # Differences over time and the first sample's preemphasis see what lies beside the crop.
        np.testing.assert_allclose(found[3:-3], of_crop[3:-3], atol=1e-4)


def _loss(params, batch):
    batch = {**batch, "step": np.zeros(ROWS, np.int32)}
    return OBJECTIVE.loss(params, batch, OBJECTIVE.loss_scale(batch))


@pytest.fixture(scope="module")
def params():
    """Random weights, none of which is one or zero."""
    found = jax.jit(OBJECTIVE.init)(jax.random.key(1))
    leaves, tree = jax.tree.flatten(found)
    rng = np.random.default_rng(2)
    return jax.tree.unflatten(tree, [np.asarray(x + 0.1 * rng.standard_normal(x.shape), np.float32) for x in leaves])


@pytest.fixture(scope="module")
def value_and_grad():
    return jax.jit(jax.value_and_grad(_loss, has_aux=True))


def _torch_state(tree):
    return {name: torch.tensor(np.asarray(array)) for name, array in to_torch(ROWS_OF_TORCH, flatten(tree)).items()}


def _close(found, expected, rtol):
    """Equal within a share of the largest value of each tensor; some gradients are zero but for rounding."""
    assert found.keys() == expected.keys()
    least = 1e-3 * max(tensor.abs().max().item() for tensor in expected.values())
    for name in found:
        scale = expected[name].abs().max().item() + least
        assert (found[name] - expected[name]).abs().max().item() <= rtol * scale, name


def test_loss_gradients_and_an_optimizer_step_are_those_of_torch(params, value_and_grad):
    batch, network = _batch(), TorchHubert(CONFIG)
    state = _torch_state(params)
    names = {name.replace("weight_g", "parametrizations.weight.original0") for name in network.state_dict()}
    state = {n.replace("conv.weight_g", "conv.parametrizations.weight.original0"): v for n, v in state.items()}
    state = {n.replace("conv.weight_v", "conv.parametrizations.weight.original1"): v for n, v in state.items()}
    assert names == set(state)
    network.load_state_dict(state)

    (loss, metrics), gradients = value_and_grad(params, batch)
    expected = network.loss(batch)
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    assert metrics["masked"] == batch["masked_bt"].sum()

    def renamed(tree):
        return {
            name.replace("weight_g", "parametrizations.weight.original0").replace(
                "weight_v", "parametrizations.weight.original1"
            ): value
            for name, value in _torch_state(tree).items()
        }

    found = dict(network.named_parameters())
    _close(renamed(gradients), {name: parameter.grad for name, parameter in found.items()}, 1e-3)

    options = CONFIG.optimizer
    groups = [{"params": [p for n, p in found.items() if ("norm" in n) == norms]} for norms in (False, True)]
    groups[1]["weight_decay"] = 0.0
    optimizer = torch.optim.AdamW(
        groups,
        lr=options.learning_rate,
        betas=(options.beta1, options.beta2),
        eps=options.epsilon,
        weight_decay=options.weight_decay,
    )
    torch.nn.utils.clip_grad_norm_(list(found.values()), options.clip_norm)
    optimizer.step()
    ours = make_optimizer(options, CONFIG.loop.steps).transformation
    updates = jax.jit(lambda params, gradients: ours.update(gradients, ours.init(params), params)[0])(params, gradients)
    _close(
        renamed(jax.tree.map(np.add, params, updates)),
        {name: parameter.detach() for name, parameter in found.items()},
        1e-3,
    )


def test_unmasked_frames_count_only_if_their_loss_does():
    batch = _batch()
    masked_alone = HubertObjective(dataclasses.replace(CONFIG, unmasked_weight=0.0), CLASSES, seed=0)
    np.testing.assert_allclose(1 / masked_alone.loss_scale(batch), batch["masked_bt"].sum(), rtol=1e-6)
    np.testing.assert_allclose(1 / OBJECTIVE.loss_scale(batch), ROWS * ENCODER.frames(SAMPLES), rtol=1e-6)


def test_padding_and_rows_without_weight_change_nothing(params, value_and_grad):
    batch = _batch(samples=800)
    (loss, metrics), gradients = value_and_grad(params, batch)
    noise = np.random.default_rng(5).standard_normal((ROWS, SAMPLES - 800))
    noisy = {**batch, "audio_br": batch["audio_br"].copy(), "label_bt": batch["label_bt"].copy()}
    noisy["audio_br"][:, 800:] = noise
    noisy["label_bt"][:, ENCODER.frames(800) :] = 3
    (again, _), others = value_and_grad(params, noisy)
    np.testing.assert_allclose(loss, again, rtol=1e-5)
    _close(_torch_state(gradients), _torch_state(others), 1e-3)
    empty = {**batch, "weight_b": np.array([1, 1, 0], np.float32)}
    fewer = jax.jit(OBJECTIVE.evaluate)(params, empty)
    assert fewer["masked"] == batch["masked_bt"][:2].sum() < metrics["masked"]


def test_one_batch_is_learned_by_heart():
    """The classes are random, so that a masked frame can only be told by its place."""
    options = OptimizerConfig(learning_rate=1e-2, beta2=0.98, clip_norm=10.0, weight_decay=0.0)
    rule = UpdateRule(HubertObjective(CONFIG, CLASSES, seed=0), make_optimizer(options, 150))
    state, step, batch = jax.jit(rule.init)(jax.random.key(0)), jax.jit(rule.train_step), _batch()
    losses = []
    for _ in range(150):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss_masked"] / metrics["masked"]))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_products_of_the_step_have_the_precision_of_the_config(precision):
    """float32 asks accelerators for exact products everywhere, bfloat16 nowhere."""
    config = dataclasses.replace(CONFIG, rows=1, matmul_precision=precision)
    rule = UpdateRule(HubertObjective(config, CLASSES, seed=0), make_optimizer(config.optimizer, 10))
    layout = BatchLayout(make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]), ROWS)
    step = TrainStep(rule, layout)
    text = step.lower_train_step(step.abstract_state, _batch()).as_text()
    products = [
        line for line in text.splitlines() if "stablehlo.dot_general" in line or "stablehlo.convolution" in line
    ]
    assert len(products) > 20
    exact = ["HIGHEST" in line for line in products]
    assert all(exact) if precision == "float32" else not any(exact)


def test_noise_leaves_out_layers_and_scales_the_gradient_of_the_extractor(params):
    batch = {**_batch(), "step": np.zeros(ROWS, np.int32)}
    calm = dataclasses.replace(CONFIG, noise=Wav2Vec2Noise(0, 0, 0, 0, 0.25), feature_penalty=0.0)

    def gradient(config):
        objective = HubertObjective(config, CLASSES, seed=0)
        return jax.jit(jax.grad(lambda p: objective.loss(p, batch, 1.0)[0]))(params)["encoder"]

    whole, scaled = gradient(dataclasses.replace(calm, noise=CONFIG.noise)), gradient(calm)
    np.testing.assert_allclose(
        scaled["feature_extractor"]["conv_0"], 0.25 * whole["feature_extractor"]["conv_0"], rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(scaled["layers"]["up"]["kernel"], whole["layers"]["up"]["kernel"], rtol=1e-4, atol=1e-6)
    dropped = gradient(dataclasses.replace(CONFIG, noise=Wav2Vec2Noise(0, 0, 0, 0.999, 1.0)))
    assert not np.asarray(jnp.abs(dropped["layers"]["up"]["kernel"]).max())


def test_mel_filters_replace_the_first_convolution_and_nothing_else():
    encoder = dataclasses.replace(ENCODER, conv_layers=((16, 100, 50), (16, 2, 2)))
    plain = dataclasses.replace(CONFIG, encoder=encoder)
    random, mel = (
        flatten(
            jax.jit(HubertObjective(dataclasses.replace(plain, filters=filters), CLASSES, seed=0).init)(
                jax.random.key(3)
            )
        )
        for filters in ("random", "mel")
    )
    first = "encoder/feature_extractor/conv_0"
    assert [name for name in random if not np.array_equal(random[name], mel[name])] == [first]
    np.testing.assert_array_equal(mel[first][:, 0], mel_band_filters(100, 16))
    with pytest.raises(ValueError, match="the first convolution of encoder.conv_layers has 10 taps"):
        dataclasses.replace(CONFIG, filters="mel")
