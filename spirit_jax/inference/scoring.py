"""Log-likelihoods and logits of given tokens in padded batches: one pass, or two where hypotheses share a beginning."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from spirit_jax.core.arithmetic import ceil_div, next_power_of_two, round_up
from spirit_jax.inference import network
from spirit_jax.inference.shapes import bucket, padded_rows
from spirit_jax.models.llama import LlamaConfig, Params
from spirit_jax.models.losses import next_token_losses
from spirit_jax.parallel.sharding import tracing
from spirit_jax.vocabulary import Vocabulary

_MAX_ROWS = 16
_SHORT, _SHORT_STEP = 64, 16
"""Documents, and parts of them, of up to so many tokens are padded to a multiple of the second number."""
_MIN_SHARED = 32
"""Tokens that the hypotheses of a group have in common before it pays to read them once."""


class TokenScores(NamedTuple):
    """Log-probability of each token given those before it, in nats, float32 [N]; that of the first is 0."""

    all: Float[np.ndarray, " N"]
    """Among all tokens."""
    modality: Float[np.ndarray, " N"]
    """Among the tokens of its own modality: text pieces, or speech units. Modality tokens are as in `all`."""
    best: Bool[np.ndarray, " N"]
    """Whether no other token has a higher score; True for the first."""


class Modalities(NamedTuple):
    """Ranges of the text pieces and the units in a vocabulary; hashable, because programs are compiled for it."""

    text_end: int
    """The id after the last text piece; text begins at 0."""
    units_start: int
    """The id of the first unit."""
    units_end: int
    """The id after the last unit."""

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> "Modalities":
        """Return the ranges of a vocabulary."""
        return cls(vocabulary.text_size, vocabulary.hubert_offset, vocabulary.size)


def log_likelihoods(
    config: LlamaConfig,
    mesh: Mesh,
    params: Params,
    documents: Sequence[tuple[Sequence[int] | Int[np.ndarray, " N"], int]],
) -> Float[np.ndarray, " N"]:
    """Return the log-probability of each document's continuation, in nats, float64 [N].

    A document's value does not depend on the others, except for rounding.

    Args:
        documents: ids, and how many of them belong to the prompt; documents of similar length share a batch.
    """
    result = np.zeros(len(documents))
    rows = padded_rows(min(_MAX_ROWS, next_power_of_two(len(documents))), mesh)
    order = sorted(range(len(documents)), key=lambda i: len(documents[i][0]))
    with tracing(mesh, config.dtype):
        for first in range(0, len(order), rows):
            batch = order[first : first + rows]
            length = bucket(len(documents[batch[-1]][0]))
            tokens_bt, weights_bt = np.zeros((rows, length), np.int32), np.zeros((rows, length), np.float32)
            for row, index in enumerate(batch):
                ids, start = documents[index]
                tokens_bt[row, : len(ids)] = ids
                weights_bt[row, start : len(ids)] = 1
            result[batch] = np.asarray(_log_likelihoods(config, mesh, params, tokens_bt, weights_bt))[: len(batch)]
    return result


def token_scores(
    config: LlamaConfig,
    mesh: Mesh,
    params: Params,
    vocabulary: Vocabulary,
    groups: Sequence[Sequence[Int[np.ndarray, " N"]]],
    batch_tokens: int = 8192,
) -> list[list[TokenScores]]:
    """Return the score of every token of documents.

    Documents of similar length share a batch. Where the documents of a group begin with the same tokens, as the endings
    of one story do, these are read once if that saves at least a quarter of the group's tokens. Where such groups
    follow each other and begin alike, as questions after the same examples do, that beginning is read once for all of
    them. A document's scores do not depend on the others, except for rounding.

    Args:
        groups: ids of the documents, in groups such as the hypotheses of one item.
        batch_tokens: tokens of a batch, padding included; a longer document has a batch for itself.
    """
    single: list[tuple[int, int]] = []
    shared: list[tuple[int, int]] = []  # common tokens, group
    for index, group in enumerate(groups):
        common = _common_tokens(group)
        if common >= _MIN_SHARED and 4 * common * (len(group) - 1) >= sum(map(len, group)):
            shared.append((common, index))
        else:
            single += [(index, place) for place in range(len(group))]
    scorer = _Scorer(_Setup(config, mesh, Modalities.of(vocabulary)), params, groups, batch_tokens)
    with tracing(mesh, config.dtype):
        scorer.score_documents(single)
        for root, cluster in _clusters(groups, shared):
            scorer.score_cluster(root, cluster)
    return [[score for score in group if score is not None] for group in scorer.results]


def _common_tokens(group: Sequence[Int[np.ndarray, " N"]]) -> int:
    """Return how many tokens all documents of a group begin with; each keeps at least one of its own."""
    if len(group) < 2:
        return 0
    shortest = min(map(len, group)) - 1
    equal = np.logical_and.reduce([ids[:shortest] == group[0][:shortest] for ids in group[1:]])
    return shortest if equal.all() else int(np.argmin(equal))


def _clusters(
    groups: Sequence[Sequence[Int[np.ndarray, " N"]]], shared: Sequence[tuple[int, int]]
) -> list[tuple[int, list[tuple[int, int]]]]:
    """Return groups that are scored together, each cluster with the number of tokens that all of it begins with.

    Neighbors whose beginnings agree in at least half of their common tokens form a cluster. All other groups form one
    without a common beginning.

    Args:
        shared: the number of common tokens and the index of each group.
    """
    found: list[tuple[int, list[tuple[int, int]]]] = []
    for common, index in shared:
        if found:
            root, members = found[-1]
            both = min(root, _common_tokens([groups[members[0][1]][0][:common], groups[index][0][:common]]))
            if both >= _MIN_SHARED and 2 * both >= common:
                found[-1] = both, [*members, (common, index)]
                continue
        found.append((common - 1, [(common, index)]))
    alone = [members[0] for _, members in found if len(members) == 1]
    clusters = [(root, members) for root, members in found if len(members) > 1]
    return [*clusters, (0, alone)] if alone else clusters


def _batch_shape(lengths: Sequence[int], batch_tokens: int, mesh: Mesh) -> tuple[int, int]:
    """Return rows and length of the batch of the longest documents; lengths ascend."""
    length = _padded(lengths[-1])
    rows = next_power_of_two(max(batch_tokens // length, 1) + 1) // 2  # rounded down to a power of two
    return padded_rows(min(rows, next_power_of_two(len(lengths))), mesh), length


def _padded(length: int) -> int:
    """Return the padded length of documents and parts of them; words and answers are far shorter than a bucket."""
    return round_up(length, _SHORT_STEP) if length <= _SHORT else bucket(length, steps=2)


def _document_scores(scores: Float[np.ndarray, "3 N"]) -> TokenScores:
    """Return the scores of a document from those of its tokens after the first."""
    everything, modality, best = np.pad(scores, ((0, 0), (1, 0)))
    best[0] = 1
    return TokenScores(everything, modality, best > 0)


class _Setup(NamedTuple):
    """The values that programs are compiled for; hashable."""

    config: LlamaConfig
    mesh: Mesh
    modalities: Modalities


class _Beginning(NamedTuple):
    """The tokens that all documents of a cluster begin with, after the model has read them."""

    size: int
    """Number of tokens."""
    scores: Float[np.ndarray, "3 N"]
    """Scores of its tokens after the first."""
    cache: Any
    """Rows that hold it, all alike."""
    slots: int
    """Slots of the cache, as many as the longest document of the cluster needs."""


class _Scorer:
    """Scores the documents of groups in batches.

    Attributes:
        results: the scores of each document by group, None before it is scored.
    """

    def __init__(
        self, setup: _Setup, params: Params, groups: Sequence[Sequence[Int[np.ndarray, " N"]]], batch_tokens: int
    ):
        self._setup, self._params, self._groups, self._batch_tokens = setup, params, groups, batch_tokens
        self.results: list[list[TokenScores | None]] = [[None] * len(group) for group in groups]

    def score_documents(self, places: list[tuple[int, int]]) -> None:
        """Score documents that share nothing.

        Args:
            places: the group of each and its place in the group.
        """
        groups, mesh = self._groups, self._setup.mesh
        places = sorted(places, key=lambda at: len(groups[at[0]][at[1]]))
        while places:
            rows, length = _batch_shape(
                [len(groups[index][place]) for index, place in places], self._batch_tokens, mesh
            )
            batch, places = places[-rows:], places[:-rows]
            tokens_bt = np.zeros((rows, length), np.int32)
            for row, (index, place) in enumerate(batch):
                tokens_bt[row, : len(groups[index][place])] = groups[index][place]
            scores = np.asarray(_token_scores(self._setup, self._params, tokens_bt))
            for row, (index, place) in enumerate(batch):
                size = len(groups[index][place])
                self.results[index][place] = _document_scores(scores[:, row, : size - 1])

    def score_cluster(self, root: int, cluster: list[tuple[int, int]]) -> None:
        """Score groups whose documents share a beginning.

        Args:
            root: how many tokens all documents of the cluster begin with; they are read once.
            cluster: the number of common tokens and the index of each group.
        """
        groups, mesh = self._groups, self._setup.mesh
        beginning = self._read(root, cluster) if root else None
        cluster = sorted(cluster, key=lambda entry: max(map(len, groups[entry[1]])))
        while cluster:
            most = max(len(groups[index]) for _, index in cluster)
            lengths = [max(map(len, groups[index])) for _, index in cluster for _ in range(most)]
            count = max(_batch_shape(lengths, self._batch_tokens, mesh)[0] // most, 1)
            batch, cluster = cluster[-count:], cluster[:-count]
            self.score_shared(batch, padded_rows(count * most, mesh), most, beginning)

    def _read(self, root: int, cluster: Sequence[tuple[int, int]]) -> _Beginning:
        """Read the first `root` tokens of a cluster's documents."""
        slots = bucket(max(len(ids) for _, index in cluster for ids in self._groups[index]), steps=2)
        root_bt = np.zeros((padded_rows(1, self._setup.mesh), _padded(root)), np.int32)  # equal rows, one a device
        places_bt = np.full(root_bt.shape, -1, np.int32)
        root_bt[:, :root] = self._groups[cluster[0][1]][0][:root]
        places_bt[:, :root] = np.arange(root)
        scores, cache = _root_scores(self._setup, slots, self._params, root_bt, places_bt)
        return _Beginning(root, np.asarray(scores)[:, 0, : root - 1], cache, slots)

    def score_shared(
        self, batch: Sequence[tuple[int, int]], rows: int, group_rows: int, beginning: _Beginning | None
    ) -> None:
        """Score a batch of groups whose documents share a beginning.

        Args:
            batch: the number of common tokens and the index of each group.
            rows: rows of the second pass, which has `group_rows` for each group.
            beginning: the tokens that all groups begin with; None if nothing has been read.
        """
        groups = self._groups
        count = padded_rows(ceil_div(rows, group_rows), self._setup.mesh)
        # the last token that was read before is read again, because it predicts the first of the rest
        start = 0 if beginning is None else beginning.size - 1
        heads_gt = np.zeros((count, _padded(max(common for common, _ in batch) - start)), np.int32)
        positions_gt = np.full(heads_gt.shape, -1, np.int32)  # padding is not stored in the cache
        tail = max(len(ids) - common + 1 for common, index in batch for ids in groups[index])
        tails_bt = np.zeros((rows, _padded(tail)), np.int32)
        places_bt = np.full(tails_bt.shape, -1, np.int32)
        group_b = np.zeros(rows, np.int32)
        for number, (common, index) in enumerate(batch):
            heads_gt[number, : common - start] = groups[index][0][start:common]
            positions_gt[number, : common - start] = np.arange(start, common)
            for place, ids in enumerate(groups[index]):
                row = number * group_rows + place
                rest = ids[common - 1 :]
                tails_bt[row, : len(rest)] = rest
                places_bt[row, : len(rest)] = np.arange(common - 1, len(ids))
                group_b[row] = number
        if beginning is None:
            slots, cache = bucket(max(len(ids) for _, index in batch for ids in groups[index]), steps=2), None
        else:
            slots, cache = beginning.slots, beginning.cache
        found = _shared_scores(
            self._setup, slots, self._params, cache, heads_gt, positions_gt, tails_bt, places_bt, group_b
        )
        heads, tails = (np.asarray(scores) for scores in found)
        before = np.zeros((3, 0), np.float32) if beginning is None else beginning.scores
        for number, (common, index) in enumerate(batch):
            for place, ids in enumerate(groups[index]):
                own = tails[:, number * group_rows + place, : len(ids) - common]
                parts = [before, heads[:, number, : common - 1 - start], own]
                self.results[index][place] = _document_scores(np.concatenate(parts, 1))


def logits(config: LlamaConfig, mesh: Mesh, params: Params, ids_bt: Int[np.ndarray, "B T"]) -> Float[Array, "B T V"]:
    """Return the scores of the token after each of these, float32."""
    b, t = ids_bt.shape
    tokens_bt = np.zeros((padded_rows(b, mesh), bucket(t)), np.int32)
    tokens_bt[:b, :t] = ids_bt
    with tracing(mesh, config.dtype):
        return _logits(config, mesh, params, tokens_bt)[:b, :t]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _log_likelihoods(config: LlamaConfig, mesh: Mesh, params: Params, tokens_bt, weights_bt) -> Float[Array, " B"]:
    """Return the sum over tokens 1.. of weight times log-probability; a token and its weight have the same index."""
    hidden_btd, _ = network.forward(config, params, tokens_bt)
    targets_bt = jnp.roll(tokens_bt, -1, axis=1)
    weights_bt = jnp.roll(weights_bt.at[:, 0].set(0), -1, axis=1)
    head_dv = network.head_weight(config, params)
    nll_bt = next_token_losses(hidden_btd, head_dv, targets_bt, weights_bt).nll_bt
    return jax.lax.with_sharding_constraint(-jnp.sum(nll_bt * weights_bt, axis=1), network.replicated(mesh))


@functools.partial(jax.jit, static_argnums=0)
def _token_scores(setup: _Setup, params: Params, tokens_bt: Int[Array, "B T"]) -> Float[Array, "3 B T"]:
    """Return the scores of the token after each; those of the last of a row are undefined."""
    hidden_btd, _ = network.forward(setup.config, params, tokens_bt)
    return _next_scores(setup, params, hidden_btd, tokens_bt)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _root_scores(
    setup: _Setup, slots: int, params: Params, root_bt: Int[Array, "B T"], places_bt: Int[Array, "B T"]
) -> tuple[Float[Array, "3 B T"], Any]:
    """Return the scores of the token after each of a beginning, and a cache of `slots` slots that holds it."""
    cache = network.init_cache(setup.config, params, root_bt.shape[0], slots)
    hidden_btd, cache = network.forward(setup.config, params, root_bt, places_bt, cache, first=True)
    return _next_scores(setup, params, hidden_btd, root_bt), cache


@functools.partial(jax.jit, static_argnums=(0, 1))
def _shared_scores(
    setup: _Setup,
    slots: int,
    params: Params,
    root_cache: Any,
    heads_gt: Int[Array, "G P"],
    positions_gt: Int[Array, "G P"],
    tails_bt: Int[Array, "B T"],
    places_bt: Int[Array, "B T"],
    group_b: Int[Array, " B"],
) -> tuple[Float[Array, "3 G P"], Float[Array, "3 B T"]]:
    """Return the scores of the token after each, for the common beginnings of groups and for what follows them.

    Args:
        slots: of the cache; as many as the longest document needs.
        root_cache: rows that hold the tokens that all groups begin with; None where the heads begin at position 0.
        positions_gt, places_bt: position of each token in its document, -1 for padding.
        group_b: the beginning that each row continues.
    """
    config, count = setup.config, heads_gt.shape[0]
    rows_axis = 0 if network.is_per_layer(params) else 1
    if root_cache is None:
        cache = network.init_cache(config, params, count, slots)
    else:
        cache = jax.tree.map(lambda array: jnp.repeat(array, count // array.shape[rows_axis], rows_axis), root_cache)
    hidden_gtd, cache = network.forward(config, params, heads_gt, positions_gt, cache, first=root_cache is None)
    cache = jax.tree.map(lambda array: jnp.take(array, group_b, axis=rows_axis), cache)
    hidden_btd, _ = network.forward(config, params, tails_bt, places_bt, cache)
    return _next_scores(setup, params, hidden_gtd, heads_gt), _next_scores(setup, params, hidden_btd, tails_bt)


def _next_scores(
    setup: _Setup, params: Params, hidden_btd: Float[Array, "B T D"], tokens_bt: Int[Array, "B T"]
) -> Float[Array, "3 B T"]:
    """Return the fields of `TokenScores` for the token after each, `best` as 1 and 0."""
    head_dv = network.head_weight(setup.config, params)
    targets_bt = jnp.roll(tokens_bt, -1, axis=1)
    everywhere_bt = jnp.ones(tokens_bt.shape)
    text_end, units_start, units_end = setup.modalities

    def normalizer(start: int, end: int) -> Float[Array, "B T"]:
        nowhere_bt = jnp.zeros_like(targets_bt)  # the targets have no influence on the logsumexp
        return next_token_losses(hidden_btd, head_dv[:, start:end], nowhere_bt, everywhere_bt).logsumexp_bt

    losses = next_token_losses(hidden_btd, head_dv, targets_bt, everywhere_bt)
    own_bt = jnp.where(targets_bt < text_end, normalizer(0, text_end), losses.logsumexp_bt)
    own_bt = jnp.where(targets_bt >= units_start, normalizer(units_start, units_end), own_bt)
    best_bt = losses.correct_bt.astype(jnp.float32)
    scores = jnp.stack([-losses.nll_bt, losses.logsumexp_bt - losses.nll_bt - own_bt, best_bt])
    return jax.lax.with_sharding_constraint(scores, network.replicated(setup.mesh))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logits(config: LlamaConfig, mesh: Mesh, params: Params, tokens_bt) -> Float[Array, "B T V"]:
    hidden_btd, _ = network.forward(config, params, tokens_bt)
    scores = network.logits(config, params, hidden_btd)
    return jax.lax.with_sharding_constraint(scores, network.replicated(mesh))
