"""Extends a plain Llama for speech: its tokenizer, embedding and head get the tokens of Spirit LM."""

import json
import pathlib
import shutil
from collections.abc import Mapping

import numpy as np
from sentencepiece import sentencepiece_model_pb2

from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.formats.arrays import ReadableArray, StackedArray
from spirit_jax.core.files import read_json, write_file
from spirit_jax.vocabulary import TEXT_TOKEN, Variant, Vocabulary, added_tokens

MODEL_FILES = ("tokenizer.model", "tokenizer.json")
"""Files of a tokenizer's model, of which a tokenizer has at least one."""

TOKENIZER_FILES = (*MODEL_FILES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""All files of a Hugging Face tokenizer."""


def copy_tokenizer(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copy a tokenizer's files unchanged into the directory `target`, which need not exist."""
    target.mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def extend_tokenizer(source: pathlib.Path, target: pathlib.Path, variant: Variant) -> None:
    """Copy a plain Llama's tokenizer and add the tokens of Spirit LM in the form that the released tokenizers have.

    A `tokenizer.model` gets user-defined pieces, and a `tokenizer.json` beside it, which would lack them, is not
    copied. A Llama 3's `tokenizer.json` gets added tokens.

    Raises:
        ConversionError: the result does not give the ids that `Vocabulary` gives for the source.
    """
    copy_tokenizer(source, target)
    tokens = added_tokens(variant)
    model, serialized = (target / name for name in MODEL_FILES)
    if model.is_file():
        # protobuf creates its classes when the module loads, where a type checker does not see them.
        message = sentencepiece_model_pb2.ModelProto  # pyright: ignore[reportAttributeAccessIssue]
        proto = message.FromString(model.read_bytes())
        for token in tokens:
            proto.pieces.add(piece=token, score=0.0, type=proto.SentencePiece.USER_DEFINED)
        proto.trainer_spec.vocab_size = len(proto.pieces)
        write_file(model, proto.SerializeToString(deterministic=True))
        serialized.unlink(missing_ok=True)
    else:
        content = read_json(serialized, ConversionError)
        start = Vocabulary.load(source, variant).text_size
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        content["added_tokens"] += [{"id": start + i, "content": token, **flags} for i, token in enumerate(tokens)]
        write_file(serialized, json.dumps(content, ensure_ascii=False, indent=1))
    before, after = Vocabulary.load(source, variant), Vocabulary.load(target)
    sample = "The quick brown fox: 12 jumps, caf\u00e9!\n" + TEXT_TOKEN + "a[Speech][Hu3]"
    if (before.size, before.variant, before.encode(sample)) != (after.size, after.variant, after.encode(sample)):
        raise ConversionError(f"{source}: the extended tokenizer does not give the ids it should")


def extend_rows(array: ReadableArray, axis: int, known: int, size: int, seed: int) -> StackedArray:
    """The embedding [V, D] or the head [D, V] with its first `known` tokens unchanged and new ones up to `size`.

    The features of a new token are drawn from a normal distribution that has, feature by feature, the mean and the
    standard deviation of the known tokens, so that new tokens start out as ordinary as the old ones. The draws are
    float32 from Philox with `seed`, rounded to the type of the array.

    Args:
        axis: the axis of tokens, 0 for the embedding and 1 for the head.
    """
    old = np.moveaxis(np.asarray(array), axis, 0)[:known]
    total, squares = np.zeros(old.shape[1]), np.zeros(old.shape[1])
    for start in range(0, known, 4096):
        block = old[start : start + 4096].astype(np.float64)
        total += block.sum(0)
        squares += (block**2).sum(0)
    mean = total / known
    deviation = np.sqrt(np.maximum(squares / known - mean**2, 0))
    noise = np.random.Generator(np.random.Philox(seed)).standard_normal((size - known, old.shape[1]), np.float32)
    new = (mean.astype(np.float32) + deviation.astype(np.float32) * noise).astype(old.dtype)
    shape = (size, old.shape[1]) if axis == 0 else (old.shape[1], size)
    places = (slice(0, known), slice(known, size))
    pieces = zip(places, (old, new), strict=True)
    if axis == 0:
        return StackedArray(shape, old.dtype, tuple(((rows,), piece) for rows, piece in pieces))
    return StackedArray(shape, old.dtype, tuple(((slice(None), rows), piece.T) for rows, piece in pieces))


def extend_arrays(arrays: Mapping[str, ReadableArray], known: int, size: int) -> dict[str, ReadableArray]:
    """A Llama's arrays by path, with the embedding and, unless it is tied, the head extended by `extend_rows`."""
    extended = dict(arrays)
    for name, axis in (("embed_tokens", 0), ("lm_head", 1)):
        if name in extended:
            extended[name] = extend_rows(extended[name], axis, known, size, seed=axis)
    return extended
