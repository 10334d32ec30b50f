"""Loading a checkpoint's language model for generation, in little more memory than the loaded parameters take.

Layers are read one at a time, and changed as they are read: into the layout of `llama_cpu`, or to 8 or 4 bits.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from types import EllipsisType
from typing import Any

import jax
import jax.numpy as jnp
import tqdm
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from spirit_jax import checkpoint
from spirit_jax.adapters import Adapter
from spirit_jax.checkpoint import CheckpointError
from spirit_jax.config import ConfigError, from_dict
from spirit_jax.inference import llama_cpu, network
from spirit_jax.models import quantized
from spirit_jax.models.llama import LlamaConfig, Params
from spirit_jax.models.llama_config import Quantization
from spirit_jax.parallel.sharding import apply_split


def model_config(settings: Any, source: str | os.PathLike, dtype: str | None = None) -> LlamaConfig:
    """Return the Llama's config for inference.

    Args:
        settings: the content of a checkpoint's config.json or of a run's YAML config.
        source: the file's name, for messages.
        dtype: of weights and computation; None keeps those of the settings.

    Raises:
        CheckpointError: there is no section `model`, or it does not describe a Llama.
    """
    if not isinstance(settings, Mapping) or not isinstance(settings.get("model"), Mapping):
        raise CheckpointError(f"{source}: neither a checkpoint nor a config with a section 'model'")
    dtypes = {} if dtype is None else {"dtype": dtype, "param_dtype": dtype}
    try:
        return from_dict(LlamaConfig, {**settings["model"], **dtypes, "remat": "none"})
    except ConfigError as error:
        raise CheckpointError(f"{source}: 'model' does not describe a Llama ({error})") from error


def load_params(
    directory: str | os.PathLike,
    config: LlamaConfig,
    mesh: Mesh,
    quantize: Quantization | None = None,
    adapter: Adapter | None = None,
) -> Params:
    """Load the parameters of a converted checkpoint or a training step, laid out as `network.arrange` returns them.

    They have the dtype `config.param_dtype` and are spread over the mesh by the table of sharding rules. On a terminal,
    a progress bar appears if loading takes longer than two seconds.

    Args:
        quantize: keep matrices in 8 or 4 bits; they are quantized on the devices of the mesh.
        adapter: low-rank updates, which are added to the weights as they are read, before they are quantized.

    Raises:
        CheckpointError: as `checkpoint.load_llm`, or the weights cannot have the form of `quantize`.
        AdapterError: the adapter belongs to other weights.
    """
    wanted = network.sharded_abstract_params(config, mesh)
    if adapter is not None:
        adapter.check_base(directory)
    try:
        quantized.check_fits(config, quantize)
    except ValueError as error:
        raise CheckpointError(f"{directory}: {error}") from error
    if quantize is None and adapter is None and not network.runs_llama_cpu(mesh):
        return checkpoint.load_llm(directory, wanted)
    stored = checkpoint.open_llm(directory, wanted)
    size = sum(math.prod(array.shape) * array.dtype.itemsize for array in jax.tree.leaves(stored))
    with tqdm.tqdm(total=size, unit="B", unit_scale=True, desc=f"reading {directory}", disable=None, delay=2) as bar:
        params = jax.tree_util.tree_map_with_path(
            lambda path, array, like: _StoredParameter(path, array, like, quantize, adapter, bar), stored, wanted
        )
        layers = params.pop("layers")
        others = jax.tree.map(lambda parameter: parameter[...], params)
        if network.runs_llama_cpu(mesh):
            return llama_cpu.arrange(config, {**others, "layers": layers})
        return {**others, "layers": jax.tree.map(_StoredParameter.stack_layers, layers)}


def _quantize(weight: Array, path: tuple, kind: Quantization) -> Any:
    return quantized.quantize_leaf(path, weight, kind)


@dataclasses.dataclass(frozen=True)
class _StoredParameter:
    """A parameter in its file: `[index]` reads one layer of it into the layer's shards, `[...]` all of it."""

    path: tuple
    stored: checkpoint.StoredArray
    wanted: jax.ShapeDtypeStruct
    quantize: Quantization | None
    adapter: Adapter | None
    bar: tqdm.tqdm

    def __getitem__(self, index: int | EllipsisType) -> Array | dict[str, Array]:
        sharding = self.wanted.sharding
        assert isinstance(sharding, NamedSharding)
        prefix = () if isinstance(index, EllipsisType) else (index,)
        shape = self.wanted.shape[len(prefix) :]
        placement = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[len(prefix) :]))
        array = jax.make_array_from_callback(shape, placement, lambda at: self.stored[(*prefix, *(at or ()))])
        self.bar.update(array.nbytes)
        if self.adapter is not None:
            names = tuple(key.key for key in self.path)
            array = self.adapter.merged(names, array, layer=None if isinstance(index, EllipsisType) else index)
        array = array.astype(self.wanted.dtype)
        return array if self.quantize is None else apply_split(_quantize, array, self.path, self.quantize)

    def stack_layers(self) -> Array | dict[str, Array]:
        """Read and convert all layers, one after the other; only the result ever exists as a whole."""
        return jax.tree.map(lambda *layers: jnp.stack(layers), *(self[index] for index in range(self.wanted.shape[0])))
