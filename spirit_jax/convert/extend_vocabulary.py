"""Extends a plain Llama for speech: its embedding and head get rows for the tokens of Spirit LM."""

from collections.abc import Mapping

import numpy as np

from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.formats.arrays import ReadableArray, StackedArray
from spirit_jax.core.arithmetic import round_up
from spirit_jax.vocabulary import ROW_MULTIPLE, VARIANTS, Vocabulary, added_tokens

_SPREAD = 2.0
"""Factor of the spread of random rows' squared norms. Rows whose squared norms differ more count as trained."""
_MIN_ROWS = 4


def check_unused_rows(embedding: ReadableArray, vocabulary: Vocabulary, where: object) -> None:
    """Check that the rows of a plain Llama's embedding beyond its tokenizer's pieces only pad it.

    An extension gives these rows to the tokens of Spirit LM. A model that has trained rows there has lost a part of its
    tokenizer.

    Raises:
        ConversionError: there are as many rows as a Spirit LM of this tokenizer has, or they differ in norm by more
            than rows that were only initialized.
    """
    known, count = vocabulary.text_size, int(embedding.shape[0])
    sizes = {round_up(known + len(added_tokens(variant)), ROW_MULTIPLE) for variant in VARIANTS}
    if count in sizes:
        what = f"as many as Spirit LM's, with rows for the speech tokens from {known} on, which the tokenizer lacks"
    elif count >= known + _MIN_ROWS and _spread(np.asarray(embedding)[known:]) > _SPREAD:
        what = f"trained from row {known} on, where the tokenizer has no tokens"
    else:
        return
    raise ConversionError(
        f"{where}: the embedding's {count} rows are {what}. To extend the vocabulary would replace them: put the "
        f"model's own tokenizer there, or cut the rows if nothing uses them: model.resize_token_embeddings({known})"
    )


def _spread(rows: np.ndarray) -> float:
    """Standard deviation of the squared norms of rows around their mean, in units of that of Gaussian rows.

    It is about 1 for rows that were drawn at random, whatever their scale, also after weight decay, and far below 1 for
    equal rows.
    """
    centered = rows.astype(np.float64)
    centered -= centered.mean(0)
    squares = (centered**2).sum(1)
    mean = squares.mean()
    return float(squares.std() / mean / np.sqrt(2 / rows.shape[1])) if mean > 0 else 0.0


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
