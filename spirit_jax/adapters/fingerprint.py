"""The fingerprint of a base: an adapter names the weights that it was trained on by it."""

import hashlib
import os

import numpy as np

from spirit_jax import checkpoint

_WHOLE = 2**20
"""Values up to which a stacked array is read as a whole."""


def base_fingerprint(directory: str | os.PathLike) -> str:
    """Return sha256 (hex) of the weights of a checkpoint directory, as they are stored.

    It covers the path and shape of every array, every value of small arrays and of those without layers, and the first
    and the last layer of large ones, so that a model of billions of parameters need not be read twice. Values count as
    float32: a checkpoint in bfloat16 and its copy in float32 have the same fingerprint.

    Raises:
        CheckpointError: there is no language model, or it cannot be read.
    """
    path = checkpoint.find(directory, checkpoint.LLM).resolve().parent
    shapes = checkpoint.flatten(checkpoint.stored_tree(path))
    digest = hashlib.sha256()
    arrays = checkpoint.open_arrays(path, sorted(shapes))
    for name, array in arrays.items():
        digest.update(f"{name} {list(array.shape)}\n".encode())
        stacked = name.startswith("layers/") and np.prod(array.shape, dtype=np.int64) > _WHOLE
        for index in (0, array.shape[0] - 1) if stacked else (...,):
            digest.update(np.ascontiguousarray(array[index].astype(np.float32)).data)
    return digest.hexdigest()
