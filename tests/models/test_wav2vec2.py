"""HuBERT, the unit quantizer and the style classifier against the reference's outputs and against transformers."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spirit_jax.checkpoint import unflatten
from spirit_jax.convert import table
from spirit_jax.convert.components import hubert, style
from spirit_jax.kernels.common.attention import QUERY_BLOCK
from spirit_jax.models.wav2vec2 import Wav2Vec2Model, truncate
from spirit_jax.models.wav2vec2_config import Wav2Vec2Config
from spirit_jax.models.wav2vec2_heads import LinearQuantizer, nearest_centroid
from tests.support import released
from tests.support.golden_clips import CLIPS, clip, padded
from tests.support.goldens import check_codes, golden, golden_arrays, tolerance
from tests.support.released import HUBERT, STYLE


def check(name, found, expected):
    """Within the tolerance that the golden set states for the array (ten times the reference's own float32 noise)."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance(name), err_msg=name)


@functools.cache
def hubert_outputs(directory):
    """Every golden clip in one noisy padded batch, so that each comparison is also one of batch against alone."""
    config, params = released.hubert_part(golden(directory))
    model, encoder = truncate(Wav2Vec2Config.from_dict(config["encoder"]), params["encoder"], config["layer"])
    fields = {name: config["quantizer"][name] for name in ("dim", "upstream_dim", "units")}

    @jax.jit
    def run(audio, lengths):
        (features, frames), found = model.apply({"params": encoder}, audio, lengths, mutable="intermediates")
        logits = LinearQuantizer(**fields).apply({"params": params["quantizer"]}, features)
        return features, frames, logits, found["intermediates"]

    clips = [clip(name) for name in CLIPS]
    return jax.tree.map(np.asarray, run(*padded(clips))), params


@pytest.mark.parametrize(("row", "clip"), enumerate(CLIPS))
def test_hubert_features_and_units_with_weight_norm(row, clip):
    (features, frames, logits, _), _ = hubert_outputs(HUBERT)
    arrays, key, t = golden_arrays("hubert.npz"), f"{clip}.wav/", frames[row]
    check(f"hubert/{key}feat", features[row, :t], arrays[key + "feat"])
    check_codes(logits[row, :t].argmax(-1), arrays[key + "argmax_with_blank"], arrays[key + "top2_margin"])


def test_hubert_intermediates():
    (_, frames, _, found), params = hubert_outputs(HUBERT)
    arrays, key, t = golden_arrays("hubert.npz"), "espeak_a_22k.wav/", frames[0]
    for name, suffix in (("features", "feat_ln"), ("projected", "proj"), ("encoder_input", "enc_in")):
        check(f"hubert/{key}{suffix}", found[name][0][0, :t], arrays[key + suffix])
    check(f"hubert/{key}conv", found["conv"][0][0, :t].T, arrays[key + "conv"])
    check(f"hubert/{key}layers", found["layers"]["output"][0][:, 0, :t], arrays[key + "layers"])
    assert set(params["encoder"]["position"]) == {"gain", "kernel", "bias"}


@pytest.mark.parametrize(("row", "clip"), list(enumerate(CLIPS))[1:])  # no golden features of the first
def test_hubert_with_batch_norm_in_its_positional_convolution(row, clip):
    (features, frames, logits, _), params = hubert_outputs("variants/hubert_25hz_batch_norm")
    assert {"running_mean", "running_var", "norm_scale"} <= set(params["encoder"]["position"])
    arrays, t = golden_arrays("hubert_batch_norm.npz"), frames[row]
    # ten times the reference's own difference between float32 and float64, as for the other golden arrays
    atol = 10 * float(arrays[f"{clip}/feat_noise_max"])
    np.testing.assert_allclose(features[row, :t], arrays[f"{clip}/feat"], rtol=0, atol=atol)
    check_codes(logits[row, :t].argmax(-1), arrays[f"{clip}/argmax_with_blank"], arrays[f"{clip}/top2_margin"])


@pytest.mark.parametrize("directory", [HUBERT, "variants/hubert_25hz_batch_norm"])
def test_features_of_real_speech_and_of_lengths_around_each_threshold(directory):
    batch_norm = "batch_norm" in directory
    arrays = golden_arrays("hubert_batch_norm.npz" if batch_norm else "hubert.npz")
    names = ["libri_a", "gap_a"] + [f"short_{n}" for n in (1280, 1281, 1359, 1360, 1999, 2000, 2001)] * batch_norm
    suffix = "" if batch_norm else ".wav"
    config, params = released.hubert_part(golden(directory))
    model, encoder = truncate(Wav2Vec2Config.from_dict(config["encoder"]), params["encoder"], config["layer"])
    clips = [clip(name) for name in names]
    features, frames = jax.jit(functools.partial(model.apply, {"params": encoder}))(*padded(clips))
    for row, name in enumerate(names):
        expected = arrays[f"{name}{suffix}/feat"]
        assert frames[row] == len(expected)
        atol = 10 * float(arrays[f"{name}/feat_noise_max"]) if batch_norm else tolerance(f"hubert/{name}.wav/feat")
        np.testing.assert_allclose(features[row, : len(expected)], expected, rtol=0, atol=atol, err_msg=name)


@functools.cache
def style_outputs():
    config, params = released.style_part(golden(STYLE))
    network = style.classifier(config)
    clips = [clip(name) for name in CLIPS]
    run = jax.jit(functools.partial(network.apply, {"params": params}, mutable="intermediates"))
    return jax.tree.map(np.asarray, run(*padded(clips)))


@pytest.mark.parametrize(("row", "clip"), enumerate(CLIPS))
def test_style_classifier(row, clip):
    (logits, windows), found = style_outputs()
    arrays, key, k = golden_arrays("style.npz"), f"{clip}.wav/", windows[row]
    check(f"style/{key}pooled", found["intermediates"]["pooled"][0][row, :k], arrays[key + "pooled"])
    check(f"style/{key}logits", logits[row, :k], arrays[key + "logits"])
    np.testing.assert_array_equal(logits[row, :k].argmax(-1), arrays[key + "codes"])
    if clip == "espeak_a_22k":
        expected = arrays[key + "projected"]
        check(f"style/{key}projected", found["intermediates"]["projected"][0][row, : len(expected)], expected)


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16, 16, 24),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 2, 2),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
VARIANTS = {
    "50 Hz wav2vec2": ("Wav2Vec2", {}),
    "layer norm extractor, biases, pre-norm": (
        "Wav2Vec2",
        {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True},
    ),
    "odd positional kernel": ("Hubert", {"num_conv_pos_embeddings": 15}),
    "batch norm in the positional convolution": ("Hubert", {"conv_pos_batch_norm": True}),
    "more frames than a query block": (
        "Hubert",
        {"conv_dim": (16,), "conv_kernel": (10,), "conv_stride": (5,), "num_hidden_layers": 1},
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_layer_equals_transformers(name):
    """Live PyTorch, random weights. 3e-5: a few float32 roundings of values of order one through two layers."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    family, changes = VARIANTS[name]
    torch.manual_seed(0)
    hf_config = getattr(transformers, f"{family}Config")(**{**SMALL, **changes})
    reference = getattr(transformers, f"{family}Model")(hf_config).eval()
    with torch.no_grad():
        for key, tensor in reference.state_dict().items():
            if tensor.is_floating_point():  # also biases, norms and running statistics, which start as 0 and 1
                tensor.add_(0.1 * torch.rand_like(tensor) if "running_var" in key else 0.1 * torch.randn_like(tensor))
    samples = 5 * (2 * QUERY_BLOCK + 77) if "query block" in name else 3000
    audio = np.random.default_rng(1).normal(size=(2, samples)).astype(np.float32)
    with torch.no_grad():
        expected = reference(torch.from_numpy(audio), output_hidden_states=True)

    config = style.hf_encoder_config({**SMALL, **changes})
    shapes = hubert.encoder_shapes(config)
    tensors = {key: value.numpy() for key, value in reference.state_dict().items()}
    flat, _ = table.to_jax(style.hf_encoder_rows(config, "", ""), tensors, shapes, name)
    params = unflatten({path: np.asarray(array) for path, array in flat.items()})
    run = jax.jit(lambda audio: Wav2Vec2Model(config).apply({"params": params}, audio, mutable="intermediates"))
    (features, frames), found = run(audio)
    assert frames.tolist() == [config.frames(samples)] * 2
    np.testing.assert_allclose(features, expected.last_hidden_state, rtol=0, atol=3e-5)
    layers = found["intermediates"]["layers"]["output"][0]
    for layer in range(1, config.num_layers):
        np.testing.assert_allclose(layers[layer - 1], expected.hidden_states[layer], rtol=0, atol=3e-5)
    model, kept = truncate(config, params, 1)
    first, _ = jax.jit(model.apply)({"params": kept}, audio)
    np.testing.assert_allclose(first, layers[0], rtol=0, atol=3e-5)


@pytest.mark.parametrize(("component", "count"), [("hubert", 96_200_879), ("style", 94_594_276)])
def test_full_size(component, count):
    """Shapes only: every key and shape of the published sizes, and their parameter counts."""
    full = json.loads(golden("FULL_SIZE.json").read_text())
    if component == "hubert":
        released_, quantizer = full["hubert_25hz/mhubert_base_25hz.pt"], full["hubert_25hz/L11_quantizer_500.pt"]
        config = hubert.part_config(released_["model_cfg"], released_["task_cfg"], quantizer["model_cfg"])
        state, module = {**released_["state"], **quantizer["state"]}, hubert
        assert Wav2Vec2Config.from_dict(config["encoder"]) == Wav2Vec2Config()
    else:
        state, module = full["style_encoder_w2v2"]["state"], style
        config = style.part_config({"num_labels": 100, "classifier_proj_size": 256})
    shapes = module.shapes(config)
    found = {
        name: tensor.shape for tensor in table.tensor_mappings(module.rows(config), shapes) for name in tensor.names
    }
    expected = {
        key: tuple(shape) for key, shape in state.items() if not key.endswith(("mask_emb", "masked_spec_embed"))
    }
    assert {key: found[key] for key in expected} == expected
    assert sum(int(np.prod(shape)) for shape in shapes.values()) + 768 == count  # 768: the unused mask vector


def test_quantizer_widths_grow_where_the_upstream_is_small():
    assert LinearQuantizer(768, 768).widths == (702, 635, 501)
    assert LinearQuantizer(32, 32).widths == (32 - (-469 // 4), 32 - (-469 // 2), 501)


def test_nearest_centroid_is_the_nearest():
    rng = np.random.default_rng(0)
    x, centroids = rng.normal(size=(3, 7, 5)).astype(np.float32), rng.normal(size=(11, 5)).astype(np.float32)
    distance = np.square(x[:, :, None] - centroids).sum(-1)
    found = nearest_centroid(jnp.asarray(x), jnp.asarray(centroids))
    np.testing.assert_array_equal(found, distance.argmin(-1))


def test_frames_and_receptive_field():
    config = Wav2Vec2Config()
    assert (config.hop, config.receptive_field) == (640, 720)
    assert [config.frames(n) for n in (719, 720, 1359, 1360, 146_160)] == [0, 1, 1, 2, 228]


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"R >= 720 samples, found shape \(1, 719\)"):
        Wav2Vec2Model(Wav2Vec2Config()).init(jax.random.key(0), jnp.zeros((1, 719)))
    with pytest.raises(ValueError, match="layers 1 to 12"):
        truncate(Wav2Vec2Config(), {}, 13)
    with pytest.raises(ValueError, match="conv_norm is 'batch'"):
        Wav2Vec2Config(conv_norm="batch")
    with pytest.raises(ValueError, match="hidden_size 100"):
        dataclasses.replace(Wav2Vec2Config(), hidden_size=100)
    for text in ("__import__('os')", "[(512,10,5)] * 1000", "[(512,10)]", "[(512,10,0)]", "", "[]"):
        with pytest.raises(ValueError, match="conv_feature_layers"):
            hubert.conv_feature_layers(text)
    with pytest.raises(ValueError, match="normalize is True"):
        hubert.part_config({}, {"normalize": True}, {})
    with pytest.raises(ValueError, match="activation_fn is 'relu'"):
        hubert.part_config({"activation_fn": "relu"}, {}, {})
    with pytest.raises(ValueError, match="add_adapter is True"):
        style.part_config({"add_adapter": True})
