"""Starts a run from other weights: a converted Llama, a released Spirit LM, or a step of another run."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp

from spirit_jax import checkpoint
from spirit_jax.config import from_dict
from spirit_jax.core.arithmetic import round_up
from spirit_jax.models import llama
from spirit_jax.parallel.sharding import fitting, with_shardings
from spirit_jax.training.state import Params
from spirit_jax.vocabulary import ROW_MULTIPLE, PlainTokenizerError, Variant, Vocabulary, VocabularyError

_NOT_TAKEN = ("vocab_size", "initializer_range", "dtype", "param_dtype", "remat", "scan_layers")
"""Fields of a LlamaConfig that a run does not take from the checkpoint that it starts from."""

# Fields of a LlamaConfig that decide what its weights mean, except for the size of the vocabulary. RoPE is not among
# them: the paper itself continues from Llama 2 with another base.
_SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_size",
    "tie_word_embeddings",
)


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights that a run can start from, not read yet."""

    config: llama.LlamaConfig
    """The network that they belong to."""
    tokenizer: pathlib.Path | None
    """Directory of the tokenizer that belongs to them, if there is one."""
    load: Callable[[Any], Params]
    """Reads them: abstract parameters, each with a sharding -> parameters in those shards."""
    variant: Variant | None = None
    """The tokens that the weights may know beyond a plain tokenizer's; None if they are not known."""


def adopt_sizes(
    model: llama.LlamaConfig, found: llama.LlamaConfig, *, named: Collection[str], vocabulary_size: int
) -> llama.LlamaConfig:
    """Return a run's network with the fields that its config does not name taken from the weights that it starts from.

    The vocabulary has as many rows as the weights, or as the run's tokens need. What decides memory and speed, such as
    `dtype` and `remat`, stays as it is.

    Args:
        model: the run's network.
        found: the network of the weights.
        named: fields that the run's config names.
        vocabulary_size: number of tokens of the run's vocabulary.
    """
    rows = max(found.vocab_size, round_up(vocabulary_size, ROW_MULTIPLE))
    taken = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    taken = {name: value for name, value in taken.items() if name not in _NOT_TAKEN} | {"vocab_size": rows}
    return dataclasses.replace(model, **{name: value for name, value in taken.items() if name not in named})


def checkpoint_config(directory: str | os.PathLike) -> llama.LlamaConfig:
    """Return the network of a spirit_jax checkpoint directory.

    Raises:
        CheckpointError: there is no such checkpoint, or its config is not that of a language model.
    """
    return from_dict(llama.LlamaConfig, checkpoint.read_config(directory)["model"])


def checkpoint_weights(directory: str | os.PathLike) -> Weights:
    """Return the weights of a spirit_jax checkpoint directory.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    config = checkpoint_config(directory)
    try:
        tokenizer = checkpoint.find(directory, checkpoint.TOKENIZER)
    except checkpoint.CheckpointError:
        tokenizer = None
    load = functools.partial(checkpoint.load_llm, directory)
    variant = checkpoint.read_config(directory).get("variant")
    return Weights(config=config, tokenizer=tokenizer, load=load, variant=variant)


def load_initial_params(
    directory: str | os.PathLike,
    model: llama.LlamaConfig,
    vocabulary: Vocabulary,
    *,
    shardings: Any,
    seed: int,
    weights: Weights | None = None,
) -> Params:
    """Load a checkpoint's parameters for a run with this model and vocabulary, directly into their shards.

    Rows of the embedding and the head whose ids the checkpoint knows are kept bit for bit. The rows of new ids are
    drawn like those of a fresh model.

    Args:
        directory: the checkpoint directory; error messages name it.
        model: the run's network.
        vocabulary: the run's vocabulary.
        shardings: of the run's parameters, leaf by leaf.
        seed: decides the new rows.
        weights: the directory's weights; None for those of a spirit_jax checkpoint directory.

    Raises:
        CheckpointError: there is no such checkpoint, or its network has another shape.
        VocabularyError: the checkpoint's text tokenizer is not the run's.
    """
    weights = checkpoint_weights(directory) if weights is None else weights
    found = weights.config
    differ = [field for field in _SHAPE if getattr(found, field) != getattr(model, field)]
    if differ:
        listed = ", ".join(f"its {field} is {getattr(found, field)}, not {getattr(model, field)}" for field in differ)
        raise checkpoint.CheckpointError(f"{directory}: its network is not the config's model: {listed}")
    known = _known_ids(directory, weights, vocabulary)
    stored = dataclasses.replace(found, param_dtype=model.param_dtype)
    params = weights.load(_abstract(stored, shardings))
    if known >= vocabulary.size and found.vocab_size == model.vocab_size:
        return params  # The same vocabulary: rows that only pad it stay too.

    def extend(name: str, axis: int) -> jax.Array:
        """The old rows and, from `known` on, new ones."""

        def rows(old):
            shape = [*old.shape]
            shape[axis] = model.vocab_size - known
            key = jax.random.fold_in(jax.random.key(seed), axis)
            new = model.initializer_range * jax.random.normal(key, shape, old.dtype)
            return jnp.concatenate([jax.lax.slice_in_dim(old, 0, known, axis=axis), new], axis)

        return jax.jit(rows, out_shardings=shardings[name])(params[name])

    for name, axis in (("embed_tokens", 0), ("lm_head", 1)):
        if name in params:
            params[name] = extend(name, axis)
    return params


def _abstract(config: llama.LlamaConfig, shardings: Any) -> Any:
    """The checkpoint's parameters in the run's shardings; an axis that the devices do not divide is kept whole."""
    shapes = llama.abstract_params(config)
    return with_shardings(shapes, jax.tree.map(lambda shape, split: fitting(split, shape.shape), shapes, shardings))


def _known_ids(directory: str | os.PathLike, weights: Weights, vocabulary: Vocabulary) -> int:
    """Number of ids, from 0 on, that mean the same in the checkpoint and in the run."""
    path, rows = weights.tokenizer, weights.config.vocab_size
    if path is None:
        if rows in (vocabulary.padded_size, vocabulary.text_size):
            return rows  # A Spirit LM or a plain text model of this vocabulary.
        raise VocabularyError(
            f"{directory}: it has no tokenizer that names the {rows} rows of its embedding; the run's vocabulary has "
            f"{vocabulary.text_size} text pieces, {vocabulary.padded_size} rows with speech"
        )
    try:
        other = Vocabulary.load(path)
        has_speech = True
    except PlainTokenizerError:
        other = Vocabulary.load(path, weights.variant or vocabulary.variant)
        has_speech = weights.variant is not None and rows >= other.size  # a run keeps a plain tokenizer as it was
    known = min(other.size, vocabulary.size) if has_speech else other.text_size
    sample = "The quick brown fox: 12 jumps, caf\u00e9!\n"
    if other.text_size != vocabulary.text_size or other.encode_text(sample) != vocabulary.encode_text(sample):
        raise VocabularyError(
            f"{path}: its {other.text_size} text pieces are not those of the run's tokenizer "
            f"({vocabulary.text_size} pieces)"
        )
    return known
