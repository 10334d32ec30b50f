"""A checkpoint's parameters in the form that generation runs (`network.arrange`), with little more memory than they take in it.

What changes on the way, weights in other places or in 8 bits, changes a layer at a time as the layers are read.
"""

import dataclasses
import math
import os
from types import EllipsisType

import jax
import jax.numpy as jnp
import tqdm
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from spirit_jax import checkpoint
from spirit_jax.inference import llama_cpu as columns
from spirit_jax.inference import network
from spirit_jax.inference.int8 import quantise_leaf
from spirit_jax.models.llama import LlamaConfig, Params


def load_params(directory: str | os.PathLike, config: LlamaConfig, mesh: Mesh, int8: bool = False) -> Params:
    """The parameters of a converted checkpoint or a step, in `config.param_dtype`, spread over `mesh` by the table of rules.

    On a terminal, a bar shows how much has been read where that takes longer than a second or two.

    Args:
        int8: matrices in 8 bits, quantised on the devices of the mesh.

    Raises:
        CheckpointError: as `checkpoint.load_llm`.
    """
    wanted = network.sharded_abstract_params(config, mesh)
    if not int8 and not network.on_cpu(mesh):
        return checkpoint.load_llm(directory, wanted)
    stored = checkpoint.open_llm(directory, wanted)
    size = sum(math.prod(array.shape) * array.dtype.itemsize for array in jax.tree.leaves(stored))
    with tqdm.tqdm(total=size, unit="B", unit_scale=True, desc=f"reading {directory}", disable=None, delay=2) as bar:
        params = jax.tree_util.tree_map_with_path(
            lambda path, array, like: _Parameter(path, array, like, int8, bar), stored, wanted
        )
        layers = params.pop("layers")
        rest = jax.tree.map(lambda parameter: parameter[...], params)
        if network.on_cpu(mesh):
            return columns.arrange(config, {**rest, "layers": layers})
        return {**rest, "layers": jax.tree.map(_Parameter.stacked, layers)}


_quantised = jax.jit(quantise_leaf, static_argnums=0)


@dataclasses.dataclass(frozen=True)
class _Parameter:
    """A parameter in its file: `[index]` reads a layer of it into the layer's shards, `[...]` all of it."""

    path: tuple
    stored: checkpoint.StoredArray
    wanted: jax.ShapeDtypeStruct
    int8: bool
    bar: tqdm.tqdm

    def __getitem__(self, index: int | EllipsisType) -> Array | dict[str, Array]:
        before = () if index is ... else (index,)
        shape = self.wanted.shape[len(before) :]
        place = NamedSharding(self.wanted.sharding.mesh, PartitionSpec(*self.wanted.sharding.spec[len(before) :]))
        array = jax.make_array_from_callback(shape, place, lambda at: self.stored[before + at])
        self.bar.update(array.nbytes)
        array = array.astype(self.wanted.dtype)
        return _quantised(self.path, array) if self.int8 else array

    def stacked(self) -> Array | dict[str, Array]:
        """All layers, one after the other: only the result is ever whole."""
        return jax.tree.map(lambda *layers: jnp.stack(layers), *(self[index] for index in range(self.wanted.shape[0])))
