"""How far our networks are from the released ones on the same input, part by part: ours in JAX, theirs in PyTorch (`reference.py`, or
Hugging Face for its own). Each function gives the largest difference of an output, relative to the largest output."""

import dataclasses
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
from spirit_jax.convert.components import style
from spirit_jax.convert.formats.numpy_pickle import CENTERS
from spirit_jax.convert.verification import reference
from spirit_jax.models.fcpe import FCPE, FCPEConfig, log_mel
from spirit_jax.models.hifigan import HifiGan, HifiGanConfig, fold_weight_norm
from spirit_jax.models.llama import Llama, LlamaConfig
from spirit_jax.models.vqvae import VQVAE, VQVAEConfig
from spirit_jax.models.wav2vec2 import LinearQuantizer, Wav2Vec2Config, nearest_centroid, truncate

Contents = Mapping[str, Any]


def _relative(theirs: Any, ours: Any) -> float:
    theirs, ours = np.asarray(theirs), np.asarray(ours)
    if theirs.shape != ours.shape:
        return float("inf")
    return float(np.abs(theirs - ours).max() / np.abs(theirs).max())


def _noise(samples: int = 16_000) -> np.ndarray:
    """A second of noise with a tone in it, [1, R]."""
    noise = np.random.default_rng(0).standard_normal((1, samples), np.float32)
    return 0.1 * noise + 0.1 * np.sin(2 * np.pi * 200 / 16_000 * np.arange(samples, dtype=np.float32))


def _ours(run: Callable, *arguments: Any) -> Any:
    with jax.default_matmul_precision("float32"):
        return jax.jit(run)(*arguments)


def phonetic(contents: Contents, config: Mapping[str, Any], arrays: Mapping[str, Any]) -> float:
    """Of HuBERT's features and, on these, of the quantizer's logits; of k-means: how much farther than the nearest our choice is."""
    import torch

    encoder, quantizer, audio = contents[parts.HUBERT_FILE], contents[parts.QUANTIZER_FILE], _noise()
    state = reference.tensors(encoder["model_weight"])
    features = reference.hubert(state, encoder["model_cfg"], contents[parts.LAYER], torch.from_numpy(audio))
    network, params = truncate(Wav2Vec2Config.from_dict(config["encoder"]), arrays["encoder"], config["layer"])
    found, _ = _ours(lambda p, x: network.apply({"params": p}, x), params, audio)
    if CENTERS in quantizer:
        distances = reference.centroid_distances(*reference.tensors({"k": quantizer[CENTERS]}).values(), features[0])
        chosen = _ours(nearest_centroid, features[0].numpy(), arrays["quantizer"]["centroids"])
        excess = distances.numpy()[np.arange(len(distances)), np.asarray(chosen)] - distances.numpy().min(1)
        return max(_relative(features, found), float(excess.max() / distances.max()))
    logits = reference.linear_quantizer(reference.tensors(quantizer["model_weight"]), features)
    linear = LinearQuantizer(**{name: config["quantizer"][name] for name in ("dim", "upstream_dim", "units")})
    ours = _ours(lambda p, x: linear.apply({"params": p}, x), arrays["quantizer"], features.numpy())
    return max(_relative(features, found), _relative(logits, ours))


def pitch(contents: Contents, config: Mapping[str, Any], arrays: Mapping[str, Any]) -> float:
    """Of the VQ-VAE's latents and reconstruction, and of FCPE's likelihoods where it is part of the checkpoint."""
    import torch

    state, theirs = reference.tensors(contents["model.pt"]["model"]), contents["config.yaml"]
    network = VQVAE(VQVAEConfig(**config["vqvae"]))
    time = np.arange(16 * network.config.hop, dtype=np.float32)
    contour = np.stack([40 * np.sin(time / 9), np.float32(time % 50 < 40)])[None]
    codes = np.random.default_rng(0).integers(0, network.config.codes, (1, 16))

    def both(p, contour, codes):
        z, _ = network.apply({"params": p}, contour[:, 0], contour[:, 1], method="latents")
        return z, network.apply({"params": p}, codes, method="decode")

    latents, decoded = _ours(both, arrays["vqvae"], contour, codes)
    differences = [
        _relative(reference.vqvae_latents(state, theirs, torch.from_numpy(contour)), latents),
        _relative(reference.vqvae_decode(state, theirs, torch.from_numpy(codes)).mT, decoded),
    ]
    if "fcpe" in config:
        content, audio = contents[parts.FCPE_FILE], _noise()
        likelihood = reference.fcpe(
            reference.tensors(content["model"]), content["config_dict"], torch.from_numpy(audio)
        )
        extractor = FCPE(FCPEConfig(**config["fcpe"]))
        lengths = np.full(1, audio.shape[1], np.int32)
        run = lambda p, *clip: extractor.apply({"params": p}, *log_mel(*clip))  # noqa: E731
        differences.append(_relative(likelihood, _ours(run, arrays["fcpe"], audio, lengths)))
    return max(differences)


def vocoder(contents: Contents, config: Mapping[str, Any], arrays: Mapping[str, Any]) -> float:
    """Of the audio of eight frames of random units in a random voice, and of the log durations."""
    import torch

    network, rng = HifiGan(HifiGanConfig.from_dict(config["hifigan"])), np.random.default_rng(0)
    shape, state = network.config, reference.tensors(contents["generator.pt"]["generator"])
    sizes = (shape.num_embeddings, shape.num_f0_tokens, shape.num_style_tokens, shape.num_speakers, shape.num_styles)
    names = ("dict", "f0_dict", "style_dict", "spkr", "style")
    ids = [rng.integers(0, size, (1, 8) if i < 3 else 1) if size else None for i, size in enumerate(sizes)]
    given = {name: torch.from_numpy(rows) for name, rows in zip(names, ids, strict=True) if rows is not None}
    streams = {name: given.pop(name) for name in names[:3] if name in given}
    params = fold_weight_norm(arrays)
    audio = _ours(lambda p, *codes: network.apply({"params": p}, *codes, method="generate"), params, *ids)
    differences = [_relative(reference.hifigan(state, contents["config.json"], streams, **given), audio)]
    if shape.duration_hidden_dim:
        bounds = np.zeros(1, np.int32), np.full(1, 8, np.int32)
        run = lambda p, *units: network.apply({"params": p}, *units, method="log_durations")  # noqa: E731
        differences.append(
            _relative(reference.log_durations(state, streams["dict"]), _ours(run, params, ids[0], *bounds))
        )
    return max(differences)


def classifier(folder: pathlib.Path, config: Mapping[str, Any], arrays: Mapping[str, Any]) -> float | None:
    """Of the logits on a second of noise, one window of its 49 frames, by Hugging Face; None where it is not installed."""
    network = _hugging_face("Wav2Vec2ForSequenceClassification")
    if network is None:
        return None
    import torch

    audio = _noise()
    normalized = (audio - audio.mean()) / np.sqrt(audio.var() + 1e-7)
    theirs = network.from_pretrained(folder, dtype=torch.float32).eval()
    theirs.config.use_weighted_layer_sum = False  # as upstream, which ignores it
    logits, _ = _ours(lambda p, x: style.classifier(config).apply({"params": p}, x), arrays, audio)
    return _relative(theirs(torch.from_numpy(normalized)).logits, logits[:, 0])


def llm(
    folder: pathlib.Path, tensors: Mapping[str, Any], stored: LlamaConfig, arrays: Mapping[str, Any], known: int
) -> float | None:
    """Of each layer on what Hugging Face's layer before it gave, and of the logits of the first `known` ids; None where it is not installed.

    Memory is that of one layer and of the head in float32 on both sides, however many layers there are. `tensors` are the released
    ones by name, `arrays` ours by path: values are read when used.
    """
    network = _hugging_face("LlamaModel")
    if network is None:
        return None
    import torch

    ids = np.random.default_rng(0).integers(3, known, 16)
    config = network.config_class.from_pretrained(folder)
    config.num_hidden_layers, config.vocab_size, config.pad_token_id = 1, 1, None
    theirs, outputs = network(config).float().eval(), []
    theirs.layers[0].register_forward_hook(lambda _, __, output: outputs.append(output))
    # Ours reads its input out of the embedding: 16 ids, whose rows are that input.
    fields = {"num_hidden_layers": 1, "vocab_size": len(ids), "tie_word_embeddings": True}
    ours = Llama(dataclasses.replace(stored, **fields, dtype="float32", param_dtype="float32"))
    run = jax.jit(lambda params: ours.apply({"params": params}, jnp.arange(len(ids))[None])[0])
    rows = {"theirs": tensors["model.embed_tokens.weight"][ids], "ours": arrays["embed_tokens"][ids]}
    x = {side: np.asarray(values, np.float32) for side, values in rows.items()}
    differences = []
    with jax.default_matmul_precision("float32"):
        for index in range(stored.num_hidden_layers):
            prefix, last = f"model.layers.{index}.", index == stored.num_hidden_layers - 1
            layer = {name.removeprefix(prefix): found for name, found in tensors.items() if name.startswith(prefix)}
            theirs.layers[0].load_state_dict(
                reference.tensors(layer), strict="self_attn.rotary_emb.inv_freq" not in layer
            )
            norms = [np.ones(stored.hidden_size, np.float32)] * 2
            if last:
                norms = [
                    np.asarray(found, np.float32) for found in (tensors["model.norm.weight"], arrays["norm/weight"])
                ]
            theirs.norm.weight.copy_(torch.from_numpy(np.array(norms[0])))
            expected = theirs(inputs_embeds=torch.from_numpy(x["theirs"])[None], use_cache=False).last_hidden_state
            params = {path: array[index : index + 1] for path, array in arrays.items() if path.startswith("layers/")}
            params |= {"embed_tokens": x["ours"], "norm/weight": norms[1]}
            found = run(checkpoint.unflatten({path: np.asarray(array, np.float32) for path, array in params.items()}))
            differences.append(_relative(expected, found))
            x = dict.fromkeys(x, outputs.pop()[0].numpy())
        name = "lm_head.weight" if "lm_head.weight" in tensors else "model.embed_tokens.weight"
        logits = expected @ torch.from_numpy(np.array(tensors[name][:known], np.float32)).T
        tied = "lm_head" not in arrays
        head = np.asarray(arrays["embed_tokens"]).T if tied else np.asarray(arrays["lm_head"])
        differences.append(_relative(logits, found @ jnp.asarray(head[:, :known], jnp.float32)))
    return max(differences)


PARTS = {
    "phonetic": phonetic,
    "pitch": pitch,
    "style": classifier,
    "vocoder_base": vocoder,
    "vocoder_expressive": vocoder,
}


def run(function: Callable, *arguments: Any) -> float | None:
    """One of the functions above, without gradients."""
    import torch

    with torch.no_grad():
        return function(*arguments)


def _hugging_face(network: str) -> Any:
    """A class of transformers, None where it is not installed."""
    if importlib.util.find_spec("transformers") is None:
        return None
    # transformers imports torchaudio where it is there, needed or not; one built for another torch fails on that.
    absent = sys.modules.setdefault("torchaudio", None)
    try:
        transformers = importlib.import_module("transformers")
        transformers.utils.logging.disable_progress_bar()
        return getattr(transformers, network)
    finally:
        if absent is None:
            del sys.modules["torchaudio"]
