"""A plain Llama made ready for speech: its tokenizer and its vocabulary get the tokens of Spirit LM."""

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np
from sentencepiece import sentencepiece_model_pb2

from spirit_jax.convert.formats.files import ConversionError
from spirit_jax.convert.table import Stacked
from spirit_jax.vocabulary import TEXT_TOKEN, Variant, Vocabulary, added_tokens

TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def copy_tokenizer(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a tokenizer's files unchanged into the directory `target`, which need not exist."""
    target.mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def extend_tokenizer(source: pathlib.Path, target: pathlib.Path, variant: Variant) -> None:
    """Copies a plain Llama's tokenizer, with the tokens of Spirit LM added in the form the released ones have.

    `tokenizer.model` gets user-defined pieces; a Llama 2's `tokenizer.json`, which says the same without them, stays behind. A Llama 3's
    `tokenizer.json` gets added tokens.

    Raises `ConversionError` if the result does not read back with the ids that `Vocabulary` gives the source.
    """
    copy_tokenizer(source, target)
    tokens = added_tokens(variant)
    model, serialized = target / "tokenizer.model", target / "tokenizer.json"
    if model.is_file():
        proto = sentencepiece_model_pb2.ModelProto.FromString(model.read_bytes())
        for token in tokens:
            proto.pieces.add(piece=token, score=0.0, type=proto.SentencePiece.USER_DEFINED)
        proto.trainer_spec.vocab_size = len(proto.pieces)
        model.write_bytes(proto.SerializeToString(deterministic=True))
        serialized.unlink(missing_ok=True)
    else:
        content = json.loads(serialized.read_text())
        start = Vocabulary.load(source, variant).text_size
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        content["added_tokens"] += [{"id": start + i, "content": token, **flags} for i, token in enumerate(tokens)]
        serialized.write_text(json.dumps(content, ensure_ascii=False, indent=1))
    before, after = Vocabulary.load(source, variant), Vocabulary.load(target)
    sample = "The quick brown fox: 12 jumps, caf\u00e9!\n" + TEXT_TOKEN + "a[Speech][Hu3]"
    if (before.size, before.variant, before.encode(sample)) != (after.size, after.variant, after.encode(sample)):
        raise ConversionError(f"{source}: the extended tokenizer does not give the ids it should")


def extend_rows(array: Any, axis: int, known: int, size: int, seed: int) -> Stacked:
    """The embedding (axis 0) or the head (axis 1) with its first `known` rows bit for bit and new ones up to `size`.

    A new row is drawn from the normal distribution that has the mean and the standard deviation, feature by feature, of the known
    rows: new tokens start out as ordinary as the old ones. The generator is Philox with `seed`; float32, then rounded.
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
        return Stacked(shape, old.dtype, tuple(((rows,), piece) for rows, piece in pieces))
    return Stacked(shape, old.dtype, tuple(((slice(None), rows), piece.T) for rows, piece in pieces))


def extend_arrays(arrays: Mapping[str, Any], known: int, size: int, seed: int = 0) -> dict[str, Any]:
    """The Llama's arrays with the embedding, and the head unless tied, extended."""
    extended = dict(arrays)
    for name, axis in (("embed_tokens", 0), ("lm_head", 1)):
        if name in extended:
            extended[name] = extend_rows(extended[name], axis, known, size, seed + axis)
    return extended
