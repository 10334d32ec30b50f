"""Merges a low-rank adapter into its base, and writes an adapter in PEFT's format."""

import json
import pathlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from spirit_jax import checkpoint
from spirit_jax.adapters import Adapter, read_adapter, write_peft
from spirit_jax.config import from_dict
from spirit_jax.convert.errors import UsageError, reading
from spirit_jax.convert.formats import orbax_file
from spirit_jax.convert.formats.arrays import LazyArray, Progress, ReadableArray, StackedArray, nbytes
from spirit_jax.convert.jobs import Job
from spirit_jax.convert.llm_export import find_part
from spirit_jax.core.checksums import write_checksums
from spirit_jax.core.files import write_file
from spirit_jax.models import llama, lora
from spirit_jax.models.llama import LlamaConfig

_CONFIG_KEYS = ("variant", "vocabulary", "model", "generation")
"""Keys of a base's config.json that the merged checkpoint keeps; a run's config has others."""


def _open(base: pathlib.Path, adapter: pathlib.Path) -> tuple[dict[str, Any], LlamaConfig, Adapter]:
    """The config of a base, its network, and an adapter that belongs to it."""
    for option, path in (("--source", base), ("--adapter", adapter)):
        if not path.is_dir():
            raise UsageError(f"{option} {path}: no such directory")
    settings = checkpoint.read_config(base)
    with reading(base / checkpoint.CONFIG, "the config of a language model"):
        network = from_dict(LlamaConfig, settings["model"])
    updates = read_adapter(adapter, network)
    updates.check_base(base)
    return settings, network, updates


@dataclass(frozen=True)
class _MergedLayers:
    """The layers of a stacked weight, each read and merged when its turn comes."""

    path: tuple[str, ...]
    stored: checkpoint.StoredArray
    adapter: Adapter

    def __iter__(self) -> Iterator[tuple[tuple[int | slice, ...], np.ndarray]]:
        for layer in range(self.stored.shape[0]):
            weight = jnp.asarray(self.stored[layer])
            yield (layer,), np.asarray(self.adapter.merged(self.path, weight, layer=layer))


def plan_merge(base: pathlib.Path, adapter: pathlib.Path) -> list[Job]:
    """Plan a checkpoint directory whose weights are those of a base with an adapter's updates added.

    The weights keep the base's types; the tokenizers are copied. It takes the memory of one layer of one weight.

    Args:
        base: the checkpoint directory that the adapter was trained on.
        adapter: a step of a run with a section `lora`, or a directory in PEFT's format.

    Raises:
        UsageError: no such directory.
        CheckpointError, AdapterError: the base or the adapter cannot be read, or they do not belong together.
    """
    settings, network, updates = _open(base, adapter)
    shapes = checkpoint.flatten(llama.abstract_params(network))
    stored = checkpoint.open_arrays(checkpoint.intact_llm(base), shapes)
    arrays: dict[str, ReadableArray] = {path: _merged(path, array, updates) for path, array in stored.items()}
    kept = {key: settings[key] for key in _CONFIG_KEYS if key in settings}

    def write(staged: pathlib.Path, progress: Progress) -> None:
        orbax_file.add_llm(staged, arrays, progress)
        write_file(staged / checkpoint.CONFIG, json.dumps(kept, indent=1) + "\n")
        own = [str(path.relative_to(staged)) for path in staged.rglob("*") if path.is_file()]
        write_checksums(staged, names=own)
        for part in (checkpoint.TOKENIZER, checkpoint.SPEECH_TOKENIZER):
            if (found := find_part(base, part)) is not None:
                shutil.copytree(found, staged / part)

    size = sum(nbytes(array) for array in arrays.values())
    notes = [f"with the updates of {adapter}"]
    return [Job("llm", base, checkpoint.LLM, len(arrays), size, notes, write)]


def _merged(path: str, stored: checkpoint.StoredArray, adapter: Adapter) -> ReadableArray:
    names = tuple(path.split("/"))
    if names[-1] in lora.TARGETS:
        return StackedArray(stored.shape, stored.dtype, _MergedLayers(names, stored, adapter))
    return LazyArray(stored.shape, stored.dtype, lambda: np.asarray(adapter.merged(names, jnp.asarray(stored[...]))))


def plan_peft_export(base: pathlib.Path, adapter: pathlib.Path) -> list[Job]:
    """Plan an adapter in Hugging Face's PEFT format.

    Args:
        base: the checkpoint directory that the adapter was trained on.
        adapter: a step of a run with a section `lora`.

    Raises:
        As `plan_merge`.
    """
    _, network, updates = _open(base, adapter)
    names = lora.row_axes(network) if updates.config.rows_from is not None else {}
    opened = checkpoint.open_arrays(checkpoint.intact_llm(base), names)

    def write(staged: pathlib.Path, progress: Progress) -> None:
        write_peft(
            staged,
            network,
            updates.config,
            updates.arrays,
            base=updates.base,
            base_name=str(base),
            base_rows={name: np.asarray(array) for name, array in opened.items()},
            overwrite=True,
        )
        progress(size)

    size = 4 * lora.parameter_count(network, updates.config)  # float32
    return [Job("adapter", adapter, ".", len(checkpoint.flatten(updates.arrays)), size, [], write)]
