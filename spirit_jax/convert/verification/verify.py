"""Both sides of a conversion compared: every tensor by its bytes, and what the networks compute, if PyTorch is here."""

import hashlib
import importlib.util
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from spirit_jax import checkpoint
from spirit_jax.convert import jobs, parts
from spirit_jax.convert.components import llama
from spirit_jax.convert.formats import hf_weights
from spirit_jax.convert.formats.files import ConversionError, as_bytes
from spirit_jax.core.files import read_json
from spirit_jax.vocabulary import Variant

_EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


TOLERANCE = 1e-4
"""Of the networks: both sides sum the same float32 products, thousands of them, in another order, layer upon layer, and differ by some
1e-6. A weight out of place, a wrong axis or constant differs by 1e-2 and more."""


class Verified(NamedTuple):
    """A part on both sides: the tensors of the released files, and those that an export of ours would write."""

    part: str
    tensors: int
    bytes: int
    equal: str
    """"yes", or the first tensor that differs."""
    sha256: str
    """Of names, types, shapes and bytes of all tensors."""
    network: float | None
    """The largest difference between the outputs of both networks, relative to the largest output; None without PyTorch."""


def verify(
    released: pathlib.Path,
    ours: pathlib.Path,
    only: Iterable[str] | None = None,
    model: Variant | None = None,
    layer: int | None = None,
    progress: Callable[[int], Any] = lambda _: None,
) -> list[Verified]:
    """A row for each part that the released side has; `progress` hears of the bytes of each tensor that has been compared."""
    return [
        _verify_llm(job.source, ours, progress) if job.name == "llm" else _verify_part(job, ours, layer, progress)
        for job in jobs.plan_import(released, only, model, layer)
    ]


def _differences() -> Any:
    """What compares the networks, None without PyTorch."""
    return (
        importlib.import_module("spirit_jax.convert.verification.differences")
        if importlib.util.find_spec("torch")
        else None
    )


def _verify_llm(folder: pathlib.Path, ours: pathlib.Path, progress: Callable[[int], Any]) -> Verified:
    found = jobs.open_our_llm(ours)
    theirs, _ = hf_weights.load_weights(folder)
    known = min(theirs["model.embed_tokens.weight"].shape[0], found.config.vocab_size)
    if known != found.config.vocab_size and found.vocabulary:  # a plain Llama, extended: what it had is compared
        known = min(known, found.vocabulary.text_size)
    row = compare(_rows(theirs, known), _rows(found.tensors, known), progress)
    network = None
    if differences := _differences():
        directory = checkpoint.find(ours, checkpoint.LLM).parent
        arrays = checkpoint.open_arrays(directory, llama.shapes(found.config))
        network = differences.run(differences.llm, folder, theirs, found.config, arrays, known)
    return Verified("llm", *row, network)


def _verify_part(job: jobs.Job, ours: pathlib.Path, layer: int | None, progress: Callable[[int], Any]) -> Verified:
    part = next(part for part in parts.PARTS if part.name == job.name)
    directory = checkpoint.find(ours, job.place)
    exported = parts.read_ours(part, directory).tensors
    ours_by_name = {f"{file}:{key}": tensor for file, state in exported.items() for key, tensor in state.items()}
    found = parts.read_released(part, job.source, layer)
    row = compare(found.tensors, ours_by_name, progress)
    network = None
    if differences := _differences():
        own = read_json(directory / checkpoint.CONFIG, ConversionError), checkpoint.load_arrays(directory)
        function = differences.PARTS[part.name]
        theirs = job.source if function is differences.classifier else found.contents
        network = differences.run(function, theirs, *own)
    return Verified(job.name, *row, network)


def _rows(tensors: Mapping[str, Any], known: int) -> dict[str, Any]:
    """The tensors, of the embedding and the head the first `known` rows."""
    cut = {name: np.asarray(tensors[name])[:known] for name in _EMBEDDINGS if name in tensors}
    return {**tensors, **cut}


def compare(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], progress: Callable[[int], Any] = lambda _: None
) -> tuple[int, int, str, str]:
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
        progress(values.nbytes)
    return len(ours), size, difference, digest.hexdigest()[:16]
