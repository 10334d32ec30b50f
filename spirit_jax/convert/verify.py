"""Both sides of a conversion compared: every tensor by its bytes, and what Hugging Face's networks and ours compute, if PyTorch is here."""

import dataclasses
import hashlib
import importlib.util
import json
import pathlib
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spirit_jax import checkpoint
from spirit_jax.convert import convert, hf_weights, parts, style
from spirit_jax.convert.files import as_bytes
from spirit_jax.models.llama import Llama, LlamaConfig, abstract_params
from spirit_jax.vocabulary import Variant

_EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


def verify(
    released: pathlib.Path, ours: pathlib.Path, only: Iterable[str] | None = None, model: Variant | None = None
) -> list[tuple]:
    """A row a part that both sides have: (part, tensors, bytes, "yes" or the first difference, sha256 of all tensors, network).

    The tensors are those of the released files and those that an export of ours would write. "network" is the largest difference
    between the outputs of both sides on the same input, relative to the largest output; "-" where there is nothing to run.
    """
    rows = []
    for job in convert.plan_import(released, only, model):
        if job.name == "llm":
            llm = convert.open_our_llm(ours)
            theirs, _ = hf_weights.load_weights(job.source)
            known = min(theirs["model.embed_tokens.weight"].shape[0], llm.config.vocab_size)
            if known != llm.config.vocab_size and llm.vocabulary:  # a plain Llama, extended: what it had is compared
                known = min(known, llm.vocabulary.text_size)
            row = compare(_rows(theirs, known), _rows(llm.tensors, known))
            network = _llm_difference(job.source, ours, llm.config, known)
        else:
            part = next(part for part in parts.PARTS if part.name == job.name)
            directory = checkpoint.find(ours, job.place)
            exported = parts.read_ours(part, directory).tensors
            ours_by_name = {
                f"{file}:{key}": tensor for file, state in exported.items() for key, tensor in state.items()
            }
            row = compare(parts.read_released(part, job.source).tensors, ours_by_name)
            network = _style_difference(job.source, directory) if job.name == "style" else "-"
        rows.append((job.name, *row, network))
    return rows


def _rows(tensors: Mapping[str, Any], known: int) -> dict[str, Any]:
    """The tensors, of the embedding and the head the first `known` rows."""
    cut = {name: np.asarray(tensors[name])[:known] for name in _EMBEDDINGS if name in tensors}
    return {**tensors, **cut}


def compare(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> tuple[int, int, str, str]:
    """(tensors, bytes, "yes" or the first difference, sha256 over names, types, shapes and bytes of ours)."""
    digest, size = hashlib.sha256(), 0
    difference = next((f"no: {name} on one side only" for name in sorted(theirs.keys() ^ ours.keys())), "yes")
    for name in sorted(theirs.keys() & ours.keys()):
        values, expected = np.asarray(ours[name]), theirs[name]
        header = f"{name} {values.dtype} {values.shape}".encode()
        same = header == f"{name} {expected.dtype} {expected.shape}".encode() and as_bytes(values) == as_bytes(expected)
        if not same and difference == "yes":
            difference = f"no: {name}"
        digest.update(header)
        digest.update(as_bytes(values))
        size += values.nbytes
    return len(ours), size, difference, digest.hexdigest()[:16]


def _reference(network: str) -> Any:
    """A class of transformers, None where it or PyTorch is not installed."""
    if not all(importlib.util.find_spec(package) for package in ("torch", "transformers")):
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


def _difference(theirs: np.ndarray, ours: np.ndarray) -> str:
    return f"{np.abs(theirs - ours).max() / np.abs(theirs).max():.1e}"


def _llm_difference(released: pathlib.Path, ours: pathlib.Path, stored: LlamaConfig, known: int) -> str:
    """Logits of the first `known` ids by `LlamaForCausalLM` and by ours, both in float32, after 16 of them."""
    network = _reference("LlamaForCausalLM")
    if network is None:
        return "-"
    import torch

    ids = np.random.default_rng(0).integers(3, known, (1, 16))
    reference = network.from_pretrained(released, dtype=torch.float32)
    with torch.no_grad():
        theirs = reference(torch.from_numpy(ids)).logits[0, :, :known].numpy()
    exact = dataclasses.replace(stored, dtype="float32", param_dtype="float32")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), abstract_params(exact)
    )
    params = {"params": checkpoint.load_llm(checkpoint.find(ours.resolve(), checkpoint.LLM).parent, abstract)}
    ours_network = Llama(exact)
    with jax.default_matmul_precision("float32"):
        hidden, _ = ours_network.apply(params, jnp.asarray(ids, jnp.int32))
        return _difference(theirs, np.asarray(ours_network.apply(params, hidden, method="logits"))[0, :, :known])


def _style_difference(released: pathlib.Path, ours: pathlib.Path) -> str:
    """Logits of `Wav2Vec2ForSequenceClassification` and of ours on a second of noise: one window of its 49 frames."""
    network = _reference("Wav2Vec2ForSequenceClassification")
    if network is None:
        return "-"
    import torch

    audio = np.random.default_rng(0).standard_normal((1, 16_000), np.float32)
    normalized = (audio - audio.mean()) / np.sqrt(audio.var() + 1e-7)
    reference = network.from_pretrained(released).eval()
    reference.config.use_weighted_layer_sum = False  # as upstream, which ignores it
    with torch.no_grad():
        theirs = reference(torch.from_numpy(normalized)).logits.numpy()
    ours_network = style.classifier(json.loads((ours / checkpoint.CONFIG).read_bytes()))
    with jax.default_matmul_precision("float32"):
        logits, _ = ours_network.apply({"params": checkpoint.load_arrays(ours)}, jnp.asarray(audio))
    return _difference(theirs, np.asarray(logits)[:, 0])
