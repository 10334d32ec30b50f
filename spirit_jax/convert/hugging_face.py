"""Loads a Hugging Face Llama directly into the shards of a mesh, without a converted copy on disk.

Every process maps the files into memory and copies only the shards that its devices hold.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from spirit_jax.checkpoint import flatten, unflatten
from spirit_jax.convert.components import llama
from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.extend_vocabulary import check_unused_rows
from spirit_jax.convert.formats import hf_weights
from spirit_jax.convert.formats.arrays import StackedArray
from spirit_jax.convert.table import to_jax
from spirit_jax.convert.tokenizer_files import MODEL_FILES
from spirit_jax.core.files import read_json
from spirit_jax.core.paths import check_links
from spirit_jax.models.llama import LlamaConfig
from spirit_jax.vocabulary import PlainTokenizerError, Vocabulary


def is_hugging_face(directory: pathlib.Path) -> bool:
    """Whether this is a Hugging Face directory and not a checkpoint directory of this package."""
    return any((directory / name).is_file() for name in hf_weights.WEIGHT_NAMES) and not (directory / "llm").exists()


def read_hugging_face_config(directory: pathlib.Path) -> LlamaConfig:
    """The network of a Hugging Face Llama.

    Raises:
        ConversionError: not the config of a Llama.
    """
    return llama.from_hf_config(read_json(directory / "config.json", ConversionError), f"{directory}/config.json")


def open_hugging_face(directory: pathlib.Path) -> tuple[LlamaConfig, pathlib.Path | None, Callable[[Any], Any]]:
    """Open a Hugging Face Llama; its weights are read later.

    Returns:
        The network's config, the directory of its tokenizer (None without one), and a function that takes a tree of
        abstract parameters, each with a sharding, and returns the parameters.

    Raises:
        ConversionError: not a Llama, tensors that do not fit its config, a link that leaves the directory, or trained
            rows of the embedding that the tokenizer does not name.
    """
    check_links(directory, directory, ConversionError)
    config = read_hugging_face_config(directory)
    # Every process would read all files to check them, and needs only its own shards.
    tensors, _ = hf_weights.load_weights(directory, check_content=False)
    arrays, _ = to_jax(llama.rows(config), tensors, llama.shapes(config), str(directory))
    has_tokenizer = any((directory / name).is_file() for name in MODEL_FILES)
    try:
        if has_tokenizer:
            Vocabulary.load(directory)
    except PlainTokenizerError:
        check_unused_rows(arrays["embed_tokens"], Vocabulary.load(directory, "base"), directory)

    def load(abstract: Any) -> Any:
        def one(path: str, wanted: jax.ShapeDtypeStruct) -> jax.Array:
            def shard(index: tuple[slice, ...] | None) -> np.ndarray:
                assert index is not None, "JAX gives the index of every shard"
                return read_block(arrays[path], index).astype(wanted.dtype)

            return jax.make_array_from_callback(wanted.shape, wanted.sharding, shard)

        return unflatten({path: one(path, wanted) for path, wanted in flatten(abstract).items()})

    return config, directory if has_tokenizer else None, load


def read_block(array: np.ndarray | StackedArray, index: tuple[slice, ...]) -> np.ndarray:
    """A block of an array, for which only the block is copied."""
    if not isinstance(array, StackedArray):
        return np.asarray(array[index])
    bounds = [part.indices(size)[:2] for part, size in zip(index, array.shape, strict=True)]
    block = np.empty([stop - start for start, stop in bounds], array.dtype)
    for place, piece in array.pieces:
        target, source = [], []
        for axis, (start, stop) in enumerate(bounds):
            at = place[axis] if axis < len(place) else slice(None)
            if isinstance(at, int):
                inside = start <= at < stop
                target.append(at - start)
            else:
                first, last, _ = at.indices(array.shape[axis])
                low, high = max(start, first), min(stop, last)
                inside = low < high
                target.append(slice(low - start, high - start))
                source.append(slice(low - first, high - first))
            if not inside:
                break
        else:
            block[tuple(target)] = piece[tuple(source)]
    return block
