"""Compares both sides of a conversion: the bytes of every tensor and, with PyTorch, the outputs of the networks."""

import hashlib
import importlib
import importlib.util
import pathlib
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import NamedTuple

import numpy as np

from spirit_jax import checkpoint
from spirit_jax.convert.components import llama
from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.formats import hf_weights
from spirit_jax.convert.formats.arrays import Progress, ReadableArray, as_bytes
from spirit_jax.convert.jobs import Job
from spirit_jax.convert.llm_export import open_stored_llm
from spirit_jax.convert.part_export import export_part
from spirit_jax.convert.part_import import import_part
from spirit_jax.convert.parts import PARTS
from spirit_jax.convert.plans import plan_import
from spirit_jax.core.files import read_json
from spirit_jax.vocabulary import Variant

TOLERANCE = 1e-4
"""Largest accepted difference between the outputs of both networks, relative to the largest output.

Both sides sum the same thousands of float32 products in another order, in every layer, and differ by some 1e-6. A
misplaced weight,
a wrong axis or a wrong constant gives a difference of 1e-2 or more."""

_EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


class Verified(NamedTuple):
    """The comparison of one part: the released tensors with those that an export would write."""

    part: str
    tensors: int
    bytes: int
    equal: str
    """"yes", or the first tensor that differs."""
    sha256: str
    """Hash of the names, types, shapes and bytes of all tensors."""
    network: float | None
    """Largest difference between the outputs of both networks, relative to the largest output; None without PyTorch."""


def verify(
    released: pathlib.Path,
    converted: pathlib.Path,
    only: Iterable[str] | None = None,
    model: Variant | None = None,
    layer: int | None = None,
    progress: Progress = lambda _: None,
) -> list[Verified]:
    """Compare each part of a released tree with the same part of a checkpoint directory.

    Args:
        only, model, layer: as for `plans.plan_import`.
        progress: called with the bytes of each tensor after its comparison.

    Raises:
        UsageError, ConversionError, CheckpointError: a side that cannot be read; see `plan_import` and `plan_export`.
    """
    return [
        _verify_llm(job.source, converted, progress)
        if job.name == "llm"
        else _verify_part(job, converted, layer, progress)
        for job in plan_import(released, only, model, layer)
    ]


def _differences() -> ModuleType | None:
    """The module that compares the networks, None without PyTorch."""
    if importlib.util.find_spec("torch") is None:
        return None
    return importlib.import_module("spirit_jax.convert.verification.differences")


def _verify_llm(folder: pathlib.Path, converted: pathlib.Path, progress: Progress) -> Verified:
    stored = open_stored_llm(converted)
    released, _ = hf_weights.load_weights(folder)
    known = min(released["model.embed_tokens.weight"].shape[0], stored.config.vocab_size)
    if known != stored.config.vocab_size and stored.vocabulary:  # only the rows that a plain Llama had are compared
        known = min(known, stored.vocabulary.text_size)
    row = compare(_known_rows(released, known), _known_rows(stored.tensors, known), progress)
    network = None
    if differences := _differences():
        directory = checkpoint.find(converted, checkpoint.LLM).parent
        arrays = checkpoint.open_arrays(directory, llama.shapes(stored.config))
        network = differences.compare_llm(folder, released, stored.config, arrays, known)
    return Verified("llm", *row, network)


def _verify_part(job: Job, converted: pathlib.Path, layer: int | None, progress: Progress) -> Verified:
    part = next(part for part in PARTS if part.name == job.name)
    directory = checkpoint.find(converted, job.place)
    exported = export_part(part, directory).tensors
    exported_tensors = {f"{file}:{key}": tensor for file, state in exported.items() for key, tensor in state.items()}
    released = import_part(part, job.source, layer)
    row = compare(released.tensors, exported_tensors, progress)
    network = None
    if differences := _differences():
        config = read_json(directory / checkpoint.CONFIG, ConversionError)
        network = differences.compare_part(part.name, released, config, checkpoint.load_arrays(directory))
    return Verified(job.name, *row, network)


def _known_rows(tensors: Mapping[str, ReadableArray], known: int) -> dict[str, ReadableArray]:
    """The tensors, with the first `known` rows of the embedding and the head."""
    return {**tensors, **{name: np.asarray(tensors[name])[:known] for name in _EMBEDDINGS if name in tensors}}


def compare(
    released: Mapping[str, ReadableArray],
    exported: Mapping[str, ReadableArray],
    progress: Progress = lambda _: None,
) -> tuple[int, int, str, str]:
    """Compare tensors by name, type, shape and bytes.

    Returns:
        The fields `tensors`, `bytes`, `equal` and `sha256` of `Verified`; all but `equal` are those of the exported
        tensors.
    """
    digest, size = hashlib.sha256(), 0
    difference = next((f"no: {name} on one side only" for name in sorted(released.keys() ^ exported.keys())), "yes")
    for name in sorted(released.keys() & exported.keys()):
        values, expected = np.asarray(exported[name]), released[name]
        header = f"{name} {values.dtype} {values.shape}".encode()
        same = header == f"{name} {expected.dtype} {expected.shape}".encode() and as_bytes(values) == as_bytes(expected)
        if not same and difference == "yes":
            difference = f"no: {name}"
        digest.update(header)
        digest.update(as_bytes(values))
        size += values.nbytes
        progress(values.nbytes)
    return len(exported), size, difference, digest.hexdigest()[:16]
