"""Hugging Face's PEFT format: `adapter_config.json` and `adapter_model.safetensors`.

PEFT names the arrays by the modules of `LlamaForCausalLM` and stores them as PyTorch does, outputs first. With r for
the rank:

    base_model.model.model.layers.{l}.self_attn.q_proj.lora_A.weight [r, inputs]
    base_model.model.model.layers.{l}.self_attn.q_proj.lora_B.weight [outputs, r]
    base_model.model.model.embed_tokens.weight [V, D]                (module to save: trained in full)
    base_model.model.lm_head.weight [V, D]

Files that this module writes name the fingerprint of their base in the metadata of the safetensors file, which PEFT
passes over.
"""

import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from spirit_jax.adapters.errors import AdapterError
from spirit_jax.core.files import atomic_directory, read_bytes, read_json, shown, write_file
from spirit_jax.models import lora
from spirit_jax.models.llama import LlamaConfig, Params

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MAX_RANK = 2**16
_BASE = "spirit_jax_base"  # in the metadata of the weights
_PREFIX = "base_model.model."
_UPDATE = re.compile(r"model\.layers\.(0|[1-9]\d{0,5})\.(self_attn|mlp)\.(\w+)\.lora_([AB])\.weight")
_SAVED = {"model.embed_tokens.weight": "embed_tokens", "lm_head.weight": "lm_head"}
_DTYPES: Mapping[str, Any] = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}

# Options of PEFT that change what an adapter computes, and the values that mean plain LoRA.
_PLAIN = {
    "bias": ("none", None),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "trainable_token_indices": (None,),
    "layer_replication": (None,),
    "alora_invocation_tokens": (None,),
}


def write_peft(
    directory: str | os.PathLike,
    model: LlamaConfig,
    config: lora.LoraConfig,
    arrays: Params,
    *,
    base: str | None,
    base_name: str,
    base_rows: Mapping[str, np.ndarray] | None = None,
    overwrite: bool = False,
) -> None:
    """Write an adapter as an atomic directory that PEFT loads.

    Args:
        directory: the new directory.
        model: the base's network.
        config: which weights the adapter updates.
        arrays: the adapter.
        base: fingerprint of the base.
        base_name: the directory or the name of the base, which PEFT stores for the reader.
        base_rows: `embed_tokens` and `lm_head` of the base, which an adapter with trained rows needs, because PEFT
            stores them in full.
        overwrite: replace an existing directory.

    Raises:
        AdapterError: the adapter trains nothing that PEFT could store.
        FileExistsError: the directory exists.
    """
    if config.trains_nothing():
        raise AdapterError(f"{directory}: the adapter is empty (rank 0): there is nothing to write")
    if not (config.rank and config.targets):  # PEFT needs an update of a projection: one that changes nothing
        config = dataclasses.replace(config, rank=1, targets=["q_proj"])
        updates = lora.abstract_adapter(model, config)["layers"]
        arrays = arrays | {"layers": jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), updates)}
    tensors: dict[str, np.ndarray] = {}
    for group, weights in arrays.get("layers", {}).items():
        for name, pair in weights.items():
            for layer in range(model.num_hidden_layers):
                key = f"{_PREFIX}model.layers.{layer}.{group}.{name}"
                a, b = (np.asarray(pair[side][layer], np.float32) for side in ("lora_a", "lora_b"))
                tensors[f"{key}.lora_A.weight"] = np.ascontiguousarray(a.reshape(-1, config.rank).T)
                tensors[f"{key}.lora_B.weight"] = np.ascontiguousarray(b.reshape(config.rank, -1).T)
    rows: Params = arrays.get("rows", {})
    for key, name in _SAVED.items():
        if name in rows:
            assert base_rows is not None, "rows need those of the base beside them"
            whole = np.array(base_rows[name], np.float32)
            by_id = whole if name == "embed_tokens" else whole.T
            by_id[config.rows_from :] = rows[name] if name == "embed_tokens" else rows[name].T
            tensors[_PREFIX + key] = np.ascontiguousarray(by_id)
    description = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": list(config.targets),
        "modules_to_save": sorted(rows) or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    metadata = {"format": "pt"} | ({} if base is None else {_BASE: base})
    with atomic_directory(directory, overwrite=overwrite) as folder:
        write_file(folder / WEIGHTS, safetensors.numpy.save(tensors, metadata))
        write_file(folder / CONFIG, json.dumps(description, indent=2) + "\n")


def read_peft(directory: pathlib.Path, model: LlamaConfig) -> tuple[lora.LoraConfig, str | None, Params]:
    """Read an adapter in PEFT's format for a network.

    Returns:
        Which weights it updates, the fingerprint of its base if the file names one, and its arrays.

    Raises:
        AdapterError: a file is missing or damaged, an option of PEFT that is not supported, or a name or shape that
            does not fit the network.
    """
    settings = read_json(directory / CONFIG, AdapterError)
    tensors, base = _read_tensors(directory / WEIGHTS)
    config = _read_config(directory / CONFIG, settings)
    updates, saved = _sort(directory / WEIGHTS, tensors)
    targets = [name for name in lora.TARGETS if any(key[1] == name for key in updates)]
    rows_from = 0 if saved else None
    config = dataclasses.replace(config, targets=targets, rank=config.rank if targets else 0, rows_from=rows_from)
    expected = lora.abstract_adapter(model, config)
    where = directory / WEIGHTS
    layers: Params = {}
    for name in targets:
        group = lora.TARGETS[name].group
        wanted = expected["layers"][group][name]
        pair: dict[str, list[np.ndarray]] = {"lora_a": [], "lora_b": []}  # an array of each layer
        for layer in range(model.num_hidden_layers):
            for side in ("a", "b"):
                key = (layer, name, side.upper())
                if key not in updates:
                    raise AdapterError(f"{where}: {name} of layer {layer} has no lora_{side.upper()}")
                tensor, shape = updates.pop(key), wanted[f"lora_{side}"].shape[1:]
                split = len(shape) - 1 if side == "a" else 1  # between inputs and rank, or rank and outputs
                torch_shape = (math.prod(shape[split:]), math.prod(shape[:split]))
                if tensor.shape != torch_shape:
                    raise AdapterError(
                        f"{where}: lora_{side.upper()} of {name} of layer {layer} has shape {list(tensor.shape)}, the "
                        f"network with rank {config.rank} expects {list(torch_shape)}"
                    )
                pair[f"lora_{side}"].append(tensor.T.reshape(shape))
        layers.setdefault(group, {})[name] = {side: np.stack(arrays) for side, arrays in pair.items()}
    if updates:
        layer, name, _ = min(updates)
        raise AdapterError(f"{where}: it updates {name} of layer {layer}, the network has {model.num_hidden_layers}")
    arrays: Params = {"layers": layers} if layers else {}
    if saved:
        arrays["rows"] = _read_rows(where, saved, expected["rows"])
    if not arrays:
        raise AdapterError(f"{where}: it holds no update")
    return config, base, arrays


def _read_config(path: pathlib.Path, settings: Any) -> lora.LoraConfig:
    """The rank, alpha and dropout of a config of PEFT's; refuses variants of LoRA by the name of their option."""
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        found = settings.get("peft_type") if isinstance(settings, dict) else type(settings).__name__
        raise AdapterError(f'{path}: "peft_type": "LORA" expected, found {shown(found)}')
    for name, plain in _PLAIN.items():
        if settings.get(name) not in (*plain, None):
            raise AdapterError(f"{path}: {name} is {shown(settings[name])}: only plain LoRA is supported")
    rank, alpha, dropout = settings.get("r"), settings.get("lora_alpha"), settings.get("lora_dropout", 0.0)
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= _MAX_RANK:
        raise AdapterError(f"{path}: r must be a whole number above 0, found {shown(rank)}; at most {_MAX_RANK}")
    if not isinstance(alpha, int | float) or not isinstance(dropout, int | float):
        raise AdapterError(f"{path}: lora_alpha and lora_dropout must be numbers")
    try:
        if settings.get("use_rslora"):  # alpha / sqrt(rank) in place of alpha / rank
            alpha *= math.sqrt(rank)
        return lora.LoraConfig(rank=rank, alpha=float(alpha), dropout=float(dropout))
    except (ValueError, OverflowError) as error:
        raise AdapterError(f"{path}: {error}") from error


def _read_tensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], str | None]:
    """The tensors of a safetensors file by name, float32, and the fingerprint in its metadata."""
    if not path.is_file():
        raise AdapterError(f"{path}: no such file")
    data = read_bytes(path, AdapterError)
    try:
        found = safetensors.deserialize(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (safetensors.SafetensorError, ValueError) as error:
        raise AdapterError(f"{path}: not a whole safetensors file ({error})") from error
    tensors = {}
    for name, entry in found:
        if entry["dtype"] not in _DTYPES:
            raise AdapterError(f"{path}: {name[:100]} is {entry['dtype']}, {', '.join(_DTYPES)} expected")
        array = np.frombuffer(entry["data"], _DTYPES[entry["dtype"]]).reshape(entry["shape"]).astype(np.float32)
        if not np.isfinite(array).all():
            raise AdapterError(f"{path}: {name[:100]} holds values that are not finite")
        tensors[name] = array
    return tensors, header.get("__metadata__", {}).get(_BASE)


def _sort(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray]
) -> tuple[dict[tuple[int, str, str], np.ndarray], dict[str, np.ndarray]]:
    """The updates by (layer, weight, "A" or "B"), and the arrays that are stored in full by name."""
    updates, saved = {}, {}
    for name, tensor in tensors.items():
        short = name.removeprefix(_PREFIX)
        match = _UPDATE.fullmatch(short)
        if match and match[3] in lora.TARGETS and lora.TARGETS[match[3]].group == match[2]:
            updates[int(match[1]), match[3], match[4]] = tensor
        elif short in _SAVED:
            saved[_SAVED[short]] = tensor
        else:
            raise AdapterError(
                f"{path}: {name[:120]} matches no weight of the network; updates of {', '.join(lora.TARGETS)} and "
                "whole embed_tokens and lm_head are supported"
            )
    return updates, saved


def _read_rows(path: pathlib.Path, saved: Mapping[str, np.ndarray], expected: Params) -> Params:
    """The embedding and the head that are stored in full, as rows."""
    if saved.keys() != expected.keys():
        found, needed = (" and ".join(sorted(names)) for names in (saved, expected))
        raise AdapterError(f"{path}: it holds {found} in full, the network needs {needed}")
    rows = {}
    for name, tensor in saved.items():
        array = tensor if name == "embed_tokens" else tensor.T
        if array.shape != expected[name].shape:
            raise AdapterError(
                f"{path}: {name} has {tensor.shape[0]} rows of {tensor.shape[-1]}, the network's shape is "
                f"{list(expected[name].shape)}"
            )
        rows[name] = array
    return rows
