"""Differences between the JAX networks and the released PyTorch networks on the same input, part by part.

The PyTorch side is `reference.py`, or transformers for its own networks. Each comparison returns the largest difference
of an output, relative to the largest output.
"""

import dataclasses
import importlib
import importlib.util
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spirit_jax import checkpoint
from spirit_jax.convert import parts
from spirit_jax.convert.components import ctc, style
from spirit_jax.convert.formats.arrays import SliceableArray
from spirit_jax.convert.formats.numpy_pickle import CENTERS
from spirit_jax.convert.part_import import ImportedPart
from spirit_jax.convert.verification import reference
from spirit_jax.convert.weight_files import FCPE_FILE
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.models.fcpe import FCPE, FCPEConfig, log_mel
from spirit_jax.models.hifigan import HifiGan, fold_weight_norm
from spirit_jax.models.hifigan_config import HifiGanConfig
from spirit_jax.models.llama import Llama, LlamaConfig
from spirit_jax.models.vqvae import VQVAE
from spirit_jax.models.vqvae_config import VQVAEConfig
from spirit_jax.models.wav2vec2 import truncate
from spirit_jax.models.wav2vec2_config import Wav2Vec2Config
from spirit_jax.models.wav2vec2_heads import LinearQuantizer, nearest_centroid

Config = Mapping[str, Any]
Params = dict[str, Any]


def compare_part(name: str, released: ImportedPart, config: Config, params: Params) -> float | None:
    """Compare the network of a speech tokenizer's part.

    Args:
        name: the part, as in `parts.RELEASED_PARTS`.
        released: the released side.
        config, params: the converted side, config.json and the tree of JAX arrays.

    Returns:
        The largest relative difference, None if the PyTorch network is transformers' and that is not installed.
    """
    import torch

    with torch.no_grad():
        return _COMPARISONS[name](released, config, params)


def _relative(expected: Any, found: Any) -> float:
    """The largest difference, relative to the largest expected value."""
    expected, found = np.asarray(expected), np.asarray(found)
    if expected.shape != found.shape:
        return float("inf")
    return float(np.abs(expected - found).max() / np.abs(expected).max())


def _noise() -> np.ndarray:
    """One second of noise with a tone in it, float32 [1, R]."""
    noise = np.random.default_rng(0).standard_normal((1, SAMPLE_RATE), np.float32)
    return 0.1 * noise + 0.1 * np.sin(2 * np.pi * 200 / SAMPLE_RATE * np.arange(SAMPLE_RATE, dtype=np.float32))


def _run_jax(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a JAX function with float32 products."""
    with jax.default_matmul_precision("float32"):
        return jax.jit(function)(*arguments)


def _phonetic(released: ImportedPart, config: Config, params: Params) -> float:
    """HuBERT's features and, from the reference's features, the quantizer's logits.

    For k-means, which gives units, it is the distance by which the chosen centroid is farther than the nearest one.
    """
    import torch

    encoder, quantizer = released.contents[parts.HUBERT_FILE], released.contents[parts.QUANTIZER_FILE]
    audio = _noise()
    state = reference.tensors(encoder["model_weight"])
    features = reference.hubert(state, encoder["model_cfg"], released.config["layer"], torch.from_numpy(audio))
    network, encoder_params = truncate(Wav2Vec2Config.from_dict(config["encoder"]), params["encoder"], config["layer"])
    found, _ = _run_jax(lambda p, x: network.apply({"params": p}, x), encoder_params, audio)
    difference = _relative(features, found)
    if CENTERS in quantizer:
        centers = reference.tensors({CENTERS: quantizer[CENTERS]})[CENTERS]
        distances = reference.centroid_distances(centers, features[0]).numpy()
        chosen = _run_jax(nearest_centroid, features[0].numpy(), params["quantizer"]["centroids"])
        excess = distances[np.arange(len(distances)), np.asarray(chosen)] - distances.min(1)
        return max(difference, float(excess.max() / distances.max()))
    logits = reference.linear_quantizer(reference.tensors(quantizer["model_weight"]), features)
    linear = LinearQuantizer(**{name: config["quantizer"][name] for name in ("dim", "upstream_dim", "units")})
    found = _run_jax(lambda p, x: linear.apply({"params": p}, x), params["quantizer"], features.numpy())
    return max(difference, _relative(logits, found))


def _pitch(released: ImportedPart, config: Config, params: Params) -> float:
    """The VQ-VAE's latents and reconstruction, and FCPE's likelihoods if the checkpoint has FCPE."""
    import torch

    state = reference.tensors(released.contents[parts.VQVAE_FILE]["model"])
    torch_config = released.contents["config.yaml"]
    network = VQVAE(VQVAEConfig(**config["vqvae"]))
    time = np.arange(16 * network.config.hop, dtype=np.float32)
    contour = np.stack([40 * np.sin(time / 9), np.float32(time % 50 < 40)])[None]
    codes = np.random.default_rng(0).integers(0, network.config.codes, (1, 16))

    def latents_and_decoded(p: Params, contour: jax.Array, codes: jax.Array) -> tuple[Any, Any]:
        z, _ = network.apply({"params": p}, contour[:, 0], contour[:, 1], method="latents")
        return z, network.apply({"params": p}, codes, method="decode")

    latents, decoded = _run_jax(latents_and_decoded, params["vqvae"], contour, codes)
    differences = [
        _relative(reference.vqvae_latents(state, torch_config, torch.from_numpy(contour)), latents),
        _relative(reference.vqvae_decode(state, torch_config, torch.from_numpy(codes)).mT, decoded),
    ]
    if "fcpe" in config:
        content, audio = released.contents[FCPE_FILE], _noise()
        fcpe_state = reference.tensors(content["model"])
        likelihood = reference.fcpe(fcpe_state, content["config_dict"], torch.from_numpy(audio))
        extractor = FCPE(FCPEConfig(**config["fcpe"]))
        lengths = np.full(1, audio.shape[1], np.int32)

        def likelihoods(p: Params, audio: jax.Array, lengths: jax.Array) -> Any:
            return extractor.apply({"params": p}, *log_mel(audio, lengths))

        differences.append(_relative(likelihood, _run_jax(likelihoods, params["fcpe"], audio, lengths)))
    return max(differences)


def _vocoder(released: ImportedPart, config: Config, params: Params) -> float:
    """The audio of eight frames of random units in a random voice, and the log durations."""
    import torch

    network, rng = HifiGan(HifiGanConfig.from_dict(config["hifigan"])), np.random.default_rng(0)
    shape, state = network.config, reference.tensors(released.contents[parts.GENERATOR_FILE]["generator"])
    sizes = (shape.num_embeddings, shape.num_f0_tokens, shape.num_style_tokens, shape.num_speakers, shape.num_styles)
    names = ("dict", "f0_dict", "style_dict", "spkr", "style")
    ids = [rng.integers(0, size, (1, 8) if i < 3 else 1) if size else None for i, size in enumerate(sizes)]
    given = {name: torch.from_numpy(rows) for name, rows in zip(names, ids, strict=True) if rows is not None}
    streams = {name: given.pop(name) for name in names[:3] if name in given}
    folded = fold_weight_norm(params)
    audio = _run_jax(lambda p, *codes: network.apply({"params": p}, *codes, method="generate"), folded, *ids)
    expected = reference.hifigan(state, released.contents["config.json"], streams, **given)
    differences = [_relative(expected, audio)]
    if shape.duration_hidden_dim:

        def log_durations(p: Params, *units_and_bounds: jax.Array) -> Any:
            return network.apply({"params": p}, *units_and_bounds, method="log_durations")

        starts, ends = np.zeros(1, np.int32), np.full(1, 8, np.int32)
        found = _run_jax(log_durations, folded, ids[0], starts, ends)
        differences.append(_relative(reference.log_durations(state, streams["dict"]), found))
    return max(differences)


def _style(released: ImportedPart, config: Config, params: Params) -> float | None:
    """The logits of one second of noise, one window of 49 frames, by transformers; None if that is not installed."""
    network = _transformers_class("Wav2Vec2ForSequenceClassification")
    if network is None:
        return None
    import torch

    audio = _noise()
    normalized = (audio - audio.mean()) / np.sqrt(audio.var() + 1e-7)
    loaded = network.from_pretrained(released.folder, dtype=torch.float32).eval()
    loaded.config.use_weighted_layer_sum = False  # the reference ignores it
    logits, _ = _run_jax(lambda p, x: style.classifier(config).apply({"params": p}, x), params, audio)
    return _relative(loaded(torch.from_numpy(normalized)).logits, logits[:, 0])


def _aligner(released: ImportedPart, config: Config, params: Params) -> float | None:
    """The logits of one second of noise, by transformers; None if that is not installed, or for torchaudio's file."""
    architecture = {"wav2vec2": "Wav2Vec2ForCTC", "hubert": "HubertForCTC"}.get(config["layout"])
    network = _transformers_class(architecture) if architecture else None
    if network is None:
        return None
    import torch

    audio = _noise()
    loaded = network.from_pretrained(released.folder, dtype=torch.float32).eval()
    logits, _ = _run_jax(lambda p, x: ctc.network(config).apply({"params": p}, x), params, audio)
    return _relative(loaded(torch.from_numpy(audio)).logits, logits)


_COMPARISONS: dict[str, Callable[[ImportedPart, Config, Params], float | None]] = {
    "phonetic": _phonetic,
    "pitch": _pitch,
    "style": _style,
    "aligner": _aligner,
    "vocoder_base": _vocoder,
    "vocoder_expressive": _vocoder,
}


def compare_llm(
    folder: pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    config: LlamaConfig,
    arrays: Mapping[str, SliceableArray],
    known: int,
) -> float | None:
    """Compare each layer of the language model on the reference's input, and the logits of the first `known` ids.

    Both sides run one layer at a time in float32, so the memory is that of one layer and of the head, whatever the
    number of layers.

    Args:
        folder: the Hugging Face directory.
        tensors: its tensors by name; values are read when they are used.
        config: the converted network.
        arrays: the JAX arrays by path; values are read when they are used.
        known: the number of ids that both sides have.

    Returns:
        The largest relative difference, None if transformers is not installed.
    """
    import torch

    with torch.no_grad():
        return _compare_layers(folder, tensors, config, arrays, known)


def _compare_layers(
    folder: pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    config: LlamaConfig,
    arrays: Mapping[str, SliceableArray],
    known: int,
) -> float | None:
    network_class = _transformers_class("LlamaModel")
    if network_class is None:
        return None
    import torch

    ids = np.random.default_rng(0).integers(3, known, 16)
    torch_config = network_class.config_class.from_pretrained(folder)
    torch_config.num_hidden_layers, torch_config.vocab_size, torch_config.pad_token_id = 1, 1, None
    reference_layer, outputs = network_class(torch_config).float().eval(), []
    reference_layer.layers[0].register_forward_hook(lambda _, __, output: outputs.append(output))
    # The JAX layer reads its input from the embedding: 16 ids, whose rows are that input.
    one_layer = dataclasses.replace(
        config,
        num_hidden_layers=1,
        vocab_size=len(ids),
        tie_word_embeddings=True,
        dtype="float32",
        param_dtype="float32",
    )
    run = jax.jit(lambda params: Llama(one_layer).apply({"params": params}, jnp.arange(len(ids))[None])[0])
    torch_input = np.asarray(tensors["model.embed_tokens.weight"][ids], np.float32)
    jax_input = np.asarray(arrays["embed_tokens"][ids], np.float32)
    differences = []
    with jax.default_matmul_precision("float32"):
        for index in range(config.num_hidden_layers):
            prefix, is_last = f"model.layers.{index}.", index == config.num_hidden_layers - 1
            layer = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            has_buffer = "self_attn.rotary_emb.inv_freq" in layer
            reference_layer.layers[0].load_state_dict(reference.tensors(layer), strict=not has_buffer)
            # The final norm is part of the last layer's output only.
            torch_norm = tensors["model.norm.weight"] if is_last else np.ones(config.hidden_size)
            jax_norm = arrays["norm/weight"] if is_last else np.ones(config.hidden_size)
            reference_layer.norm.weight.copy_(torch.from_numpy(np.array(torch_norm, np.float32)))
            inputs = torch.from_numpy(torch_input)[None]
            expected = reference_layer(inputs_embeds=inputs, use_cache=False).last_hidden_state
            params = {path: array[index : index + 1] for path, array in arrays.items() if path.startswith("layers/")}
            params |= {"embed_tokens": jax_input, "norm/weight": np.asarray(jax_norm)}
            found = run(checkpoint.unflatten({path: np.asarray(array, np.float32) for path, array in params.items()}))
            differences.append(_relative(expected, found))
            torch_input = jax_input = outputs.pop()[0].numpy()
        name = "lm_head.weight" if "lm_head.weight" in tensors else "model.embed_tokens.weight"
        logits = expected @ torch.from_numpy(np.array(tensors[name][:known], np.float32)).T
        is_tied = "lm_head" not in arrays
        head = np.asarray(arrays["embed_tokens"]).T if is_tied else np.asarray(arrays["lm_head"])
        differences.append(_relative(logits, found @ jnp.asarray(head[:, :known], jnp.float32)))
    return max(differences)


def _transformers_class(name: str) -> Any:
    """A class of transformers, None if that is not installed."""
    if importlib.util.find_spec("transformers") is None:
        return None
    # transformers imports an installed torchaudio, which nothing here needs and which fails with another torch.
    hide = "torchaudio" not in sys.modules
    if hide:
        sys.modules["torchaudio"] = None  # pyright: ignore[reportArgumentType] - Python's way to make an import fail
    try:
        transformers = importlib.import_module("transformers")
        transformers.utils.logging.disable_progress_bar()
        return getattr(transformers, name)
    finally:
        if hide:
            del sys.modules["torchaudio"]
