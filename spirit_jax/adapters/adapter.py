"""An adapter that was read from files, and how it changes the weights of its base."""

import dataclasses
import functools
import hashlib
import os
import pathlib
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from spirit_jax import checkpoint
from spirit_jax.adapters import peft_files
from spirit_jax.adapters.errors import AdapterError
from spirit_jax.adapters.fingerprint import base_fingerprint
from spirit_jax.config import ConfigError, from_dict
from spirit_jax.core.files import read_json, shown
from spirit_jax.models import lora
from spirit_jax.models.llama import LlamaConfig, Params

DESCRIPTION = "adapter.json"
"""The file of a run that describes its adapters: `lora` (the fields of `LoraConfig`) and `base` (a fingerprint)."""


@dataclasses.dataclass(frozen=True, eq=False)
class Adapter:
    """A low-rank adapter; `read_adapter` reads one."""

    source: pathlib.Path
    """The directory that it was read from."""
    config: lora.LoraConfig
    """Which weights it updates."""
    base: str | None
    """Fingerprint of the base that it was trained on; None where its files do not name one."""
    arrays: Params
    """The arrays, float32, as `models.lora` describes them."""

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of what the adapter does: its arrays and the options that scale and place them."""
        digest = hashlib.sha256(f"{self.config.scale} {self.config.rows_from}".encode())
        for name, array in sorted(checkpoint.flatten(self.arrays).items()):
            digest.update(f"{name} {list(array.shape)}\n".encode())
            digest.update(np.ascontiguousarray(array, np.float32).data)
        return digest.hexdigest()

    def check_base(self, directory: str | os.PathLike) -> None:
        """Check that a checkpoint directory holds the base of this adapter.

        Adapters that other tools wrote name no base by its weights; only the shapes of these are checked.

        Raises:
            AdapterError: it holds other weights.
        """
        if self.base is not None and self.base != (found := base_fingerprint(directory)):
            raise AdapterError(
                f"{self.source}: this adapter belongs to other weights than those of {directory} (fingerprint "
                f"{self.base[:12]} expected, found {found[:12]}): name the base that it was trained on"
            )

    def merged(self, path: tuple[str, ...], weight: Array, layer: int | None = None) -> Array:
        """Return a weight of the base, or one layer of it, with its update; a weight without one stays as it is.

        Args:
            path: of the parameter, as in ("layers", "self_attn", "q_proj").
            weight: the weight; its sharding is kept.
            layer: the layer that it belongs to; None for all layers, or for a weight without layers.
        """
        rows = self.arrays.get("rows", {})
        if path[-1] in rows:
            start, axis = self.config.rows_from, 0 if path[-1] == "embed_tokens" else 1
            assert start is not None, "an adapter with rows knows where they begin"
            return _jit_replace(start, axis, weight.sharding)(weight, rows[path[-1]])
        pair: Any = self.arrays
        for key in path:
            pair = pair.get(key, {}) if isinstance(pair, dict) else {}
        if "lora_a" not in pair or not self.config.scale:
            return weight
        a, b = pair["lora_a"], pair["lora_b"]
        if layer is not None:
            a, b = a[layer], b[layer]
        return _jit_merge(self.config.scale, weight.sharding)(weight, a, b)


@functools.cache
def _jit_merge(scale: float, sharding: Any) -> Any:
    return jax.jit(lambda weight, a, b: lora.merged_weight(weight, a, b, scale), out_shardings=sharding)


@functools.cache
def _jit_replace(start: int, axis: int, sharding: Any) -> Any:
    return jax.jit(
        lambda weight, rows: jax.lax.dynamic_update_slice_in_dim(weight, rows.astype(weight.dtype), start, axis),
        out_shardings=sharding,
    )


def read_adapter(directory: str | os.PathLike, model: LlamaConfig) -> Adapter:
    """Read an adapter for a network: a directory in PEFT's format, or a step of a run with a section `lora`.

    Raises:
        AdapterError: there is no adapter, a file is damaged, or a name or a shape does not fit the network.
    """
    path = pathlib.Path(directory)
    if not path.is_dir():
        raise AdapterError(f"{path}: no such adapter directory")
    if (path / peft_files.CONFIG).is_file():
        config, base, arrays = peft_files.read_peft(path, model)
        return Adapter(path, config, base, arrays)
    if (path / checkpoint.ADAPTER).is_dir():
        return _read_step(path, model)
    if (path / checkpoint.STEPS).is_dir():
        raise AdapterError(f"{path}: it is a training run: name one of its steps, {path / checkpoint.STEPS}/STEP")
    raise AdapterError(
        f"{path}: no adapter there: neither {peft_files.CONFIG} (PEFT's format) nor {checkpoint.ADAPTER}/ (a step of a "
        "run with a section lora)"
    )


def _read_step(path: pathlib.Path, model: LlamaConfig) -> Adapter:
    """Read the adapter of a training step."""
    from orbax.checkpoint import v1 as ocp

    described = checkpoint.find(path, DESCRIPTION)
    found = read_json(described, AdapterError)
    if not isinstance(found, dict) or not isinstance(found.get("lora"), dict) or not isinstance(found.get("base"), str):
        raise AdapterError(f"{described}: not the description of an adapter: lora and base expected")
    try:
        config = from_dict(lora.LoraConfig, found["lora"])
        lora.check_fits(model, config)
    except ConfigError as error:
        raise AdapterError(f"{described}: {error}") from error
    checkpoint.check_arrays(path, checkpoint.ADAPTER, AdapterError)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), lora.abstract_adapter(model, config)
    )
    try:
        arrays: Any = ocp.load(str(path.resolve()), wanted, checkpointable_name=checkpoint.ADAPTER)
    except Exception as error:  # Orbax passes on the errors of its storage.
        raise AdapterError(f"{path}: its adapter does not fit the network or is damaged ({shown(error)})") from error
    return Adapter(path, config, found["base"], jax.tree.map(np.asarray, arrays))
