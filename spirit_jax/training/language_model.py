"""The language model as an objective of training: next-token losses by kind of token, on devices and in the log."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from spirit_jax.models import llama
from spirit_jax.models.losses import next_token_losses
from spirit_jax.parallel.sharding import BatchLayout, tree_shardings
from spirit_jax.training.state import DeviceBatch, Metrics, Params
from spirit_jax.vocabulary import TOKEN_KINDS, Vocabulary


def padded_token_kinds(vocabulary: Vocabulary, rows: int) -> Int[np.ndarray, " V"]:
    """The kind of every row of an embedding of `rows` rows; rows beyond the vocabulary are control tokens."""
    return np.pad(
        vocabulary.token_kinds[:rows],
        (0, max(rows - vocabulary.padded_size, 0)),
        constant_values=TOKEN_KINDS.index("control"),
    )


def param_shardings(model: llama.LlamaConfig, mesh: Mesh) -> Any:
    """The shardings of a Llama's parameters.

    Raises:
        ShardingError: the mesh does not divide a weight; names it.
    """
    return tree_shardings(mesh, llama.logical_axes(model), llama.abstract_params(model))


def abstract_batch(layout: BatchLayout, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and shardings of the arrays of a batch, as the loader makes it, for lowering a step."""
    shapes = dict.fromkeys(("inputs", "targets", "segment_ids", "positions"), ((layout.rows, length), jnp.int32))
    shapes |= {"loss_mask": ((layout.rows, length), jnp.bool_), "sources": ((layout.rows,), jnp.int32)}
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=layout.sharding) for name, (shape, dtype) in shapes.items()
    }


class TrainedWeights(Protocol):
    """Which weights of a Llama a run trains: all of them (`AllWeights`) or an adapter (`lora.AdapterWeights`)."""

    def init(self, key: Array) -> Params:
        """Fresh values of what is trained."""
        ...

    def logical_axes(self) -> Any:
        """The logical axes of each trained array, as a tree of tuples."""
        ...

    def variables(self, params: Params) -> Params:
        """The variables of `llama.Llama` with these values; its collection "params" holds all weights."""
        ...

    def random_keys(self, batch: DeviceBatch) -> dict[str, Array]:
        """The random keys that a forward pass in training needs, by name."""
        ...


@dataclasses.dataclass(frozen=True)
class AllWeights:
    """All weights of a Llama are trained; implements `TrainedWeights`."""

    model: llama.LlamaConfig

    def init(self, key: Array) -> Params:
        """Fresh parameters."""
        return llama.init_params(self.model, key)

    def logical_axes(self) -> Any:
        """The logical axes of each parameter, as a tree of tuples."""
        return llama.logical_axes(self.model)

    def variables(self, params: Params) -> Params:
        """The parameters are the variables."""
        return {"params": params}

    def random_keys(self, batch: DeviceBatch) -> dict[str, Array]:
        """Nothing is random."""
        del batch
        return {}


class LanguageModelObjective:
    """Next-token prediction by a Llama, summed over tokens and divided by their number; implements `step.Objective`.

    A batch holds `inputs`, `targets`, `segment_ids`, `positions` int32 [B, T] and `loss_mask` bool [B, T].

    Args:
        model: the network.
        token_kinds: the kind of each id, an index into `vocabulary.TOKEN_KINDS`; losses are reported by kind.
        z_loss: coefficient of the squared log-partition.
        trained: which weights are trained; None for all.
    """

    def __init__(
        self,
        model: llama.LlamaConfig,
        token_kinds: Int[np.ndarray, " V"],
        z_loss: float = 0.0,
        trained: TrainedWeights | None = None,
    ):
        self.model, self.z_loss = model, z_loss
        self.trained: TrainedWeights = AllWeights(model) if trained is None else trained
        self._kinds_v = jnp.asarray(token_kinds, jnp.int32)
        self._kinds_count = int(token_kinds.max()) + 1

    @property
    def dtype(self) -> str:
        """Data type of the computation."""
        return self.model.dtype

    def init(self, key: Array) -> Params:
        """Fresh values of the trained parameters."""
        return self.trained.init(key)

    def logical_axes(self) -> Any:
        """The logical axes of each trained parameter, as a tree of tuples."""
        return self.trained.logical_axes()

    def loss_scale(self, batch: DeviceBatch) -> Float[Array, ""]:
        """One over the number of tokens of the whole batch."""
        return 1 / jnp.maximum(batch["loss_mask"].sum(), 1).astype(jnp.float32)

    def loss(self, params: Params, batch: DeviceBatch, scale: Float[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        """The summed loss times `scale`; `nll`, `correct` and `tokens` are sums by kind, float32 [kinds]."""
        variables, keys = self.trained.variables(params), self.trained.random_keys(batch)
        metrics = self._forward(variables, batch, scale, keys)[1]
        return metrics["loss"], metrics

    def evaluate(self, params: Params, batch: DeviceBatch) -> Metrics:
        """The sums of `loss` and two more, for the loss within a kind and the unigram entropy in the log.

        `within` float32 [kinds] sums by kind each token's loss among the ids of its own kind. `targets` float32 [V]
        counts how often each id is a target.
        """
        mask_bt = batch["loss_mask"].astype(jnp.float32)
        variables = self.trained.variables(params)
        hidden_btd, metrics = self._forward(variables, batch)
        head_dv = llama.head_weight(self.model, variables["params"])
        kinds_v = self._kinds_v

        def loss_within_kind(row: tuple[Array, Array]) -> Float[Array, " T"]:
            """The loss of each target of one row among the ids of its kind; the logits exist only row by row."""
            hidden_td, targets_t = row
            logits_tv = jnp.einsum(
                "td,dv->tv", hidden_td, head_dv.astype(hidden_td.dtype), preferred_element_type=jnp.float32
            )
            same_tv = kinds_v == kinds_v[targets_t][:, None]
            total_t = jax.nn.logsumexp(jnp.where(same_tv, logits_tv, -jnp.inf), axis=-1)
            return total_t - jnp.take_along_axis(logits_tv, targets_t[:, None], axis=-1)[:, 0]

        within_bt = jax.lax.map(loss_within_kind, (hidden_btd, batch["targets"]))
        return metrics | {
            "within": self._sums_by_kind(within_bt, batch),
            "targets": jnp.zeros(self.model.vocab_size).at[batch["targets"]].add(mask_bt),
        }

    def _forward(
        self,
        variables: Params,
        batch: DeviceBatch,
        scale: Float[Array, ""] | float = 1.0,
        keys: Mapping[str, Array] | None = None,
    ) -> tuple[Float[Array, "B T D"], Metrics]:
        """Hidden states, the summed loss times `scale`, and sums by kind."""
        network = llama.Llama(self.model)
        inputs = (batch["inputs"], batch["positions"], batch["segment_ids"])
        hidden_btd, _ = network.apply(variables, *inputs, rngs=dict(keys or {}))
        weights_bt = batch["loss_mask"].astype(jnp.float32) * scale
        head_dv = llama.head_weight(self.model, variables["params"])
        losses = next_token_losses(hidden_btd, head_dv, batch["targets"], weights_bt, self.z_loss)
        return hidden_btd, {
            "loss": losses.loss,
            "nll": self._sums_by_kind(losses.nll_bt, batch),
            "correct": self._sums_by_kind(losses.correct_bt, batch),
            "tokens": self._sums_by_kind(jnp.ones_like(losses.nll_bt), batch),
        }

    def _sums_by_kind(self, values_bt: Array, batch: DeviceBatch) -> Float[Array, " kinds"]:
        """Sums over the targets of each kind. A plain sum: accelerators would round the inputs of a matrix product."""
        masked_bt = values_bt.astype(jnp.float32) * batch["loss_mask"]
        kinds_one_hot = jax.nn.one_hot(self._kinds_v[batch["targets"]], self._kinds_count)
        return (masked_bt[..., None] * kinds_one_hot).sum((0, 1))


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModelSummary:
    """The log's values from the sums of `LanguageModelObjective`; implements `task.Summary`."""

    token_kinds: Int[np.ndarray, " V"]
    """The kind of each id, an index into `vocabulary.TOKEN_KINDS`."""
    flops_per_unit: float
    """FLOPs that the model needs to train on one token."""

    @property
    def unit(self) -> str:
        """The metric that the speed of the run is counted in."""
        return "tokens"

    def train_values(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Loss and accuracy of a step, over all tokens and by kind."""
        return means_by_kind(metrics)

    def source_values(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Held-out loss and accuracy of one source."""
        return means_by_kind(sums)

    def evaluation_values(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Held-out loss and accuracy over all sources, with the unigram entropy of their tokens."""
        return means_by_kind(sums) | unigram_entropy(sums["targets"], self.token_kinds)

    def progress_line(self, values: Mapping[str, float]) -> str:
        """A step's values for the progress bar."""
        kinds = [kind for kind in TOKEN_KINDS[:4] if f"loss_{kind}" in values]
        losses = " ".join(f"{kind} {values[f'loss_{kind}']:.2f}" for kind in kinds)
        speed = f"{values['tokens_per_second']:,.0f} tok/s, MFU {100 * values['mfu']:.0f} %"
        return f"loss {values['loss']:.3f} {losses} | {speed}"

    def evaluation_line(self, values: Mapping[str, float]) -> str:
        """One line about an evaluation."""
        kinds = [kind for kind in TOKEN_KINDS if f"loss_{kind}" in values]
        within = ", ".join(
            f"{kind} {values[f'loss_within_{kind}']:.2f} / {values[f'unigram_entropy_{kind}']:.2f}" for kind in kinds
        )
        return f"held-out loss {values['loss']:.3f}; within each kind / unigram entropy: {within}"


def means_by_kind(sums: Mapping[str, Any]) -> dict[str, float]:
    """Mean loss (nats) and accuracy over all tokens and by kind, from the sums by kind of one step or of several.

    Kinds without a token are left out. If the sums come from an evaluation, `loss_within_KIND` is the loss of a token
    among the ids of its own kind, as if the kind were given; compare it with `unigram_entropy`.
    """
    nll, correct, tokens = (np.asarray(sums[name], np.float64) for name in ("nll", "correct", "tokens"))
    total = max(tokens.sum(), 1.0)
    values = {"loss": nll.sum() / total, "accuracy": correct.sum() / total}
    for index, kind in enumerate(TOKEN_KINDS[: len(tokens)]):
        if tokens[index]:
            values[f"loss_{kind}"] = nll[index] / tokens[index]
            values[f"accuracy_{kind}"] = correct[index] / tokens[index]
            if "within" in sums:
                values[f"loss_within_{kind}"] = float(sums["within"][index]) / tokens[index]
    return values


def unigram_entropy(counts: Float[np.ndarray, " V"], token_kinds: Int[np.ndarray, " V"]) -> dict[str, float]:
    """Entropy of the tokens of each kind in nats: the lowest loss of a model that knows the kind but no context.

    Args:
        counts: how often each id occurs.
        token_kinds: the kind of each id (`Vocabulary.token_kinds`).
    """
    values = {}
    for index, kind in enumerate(TOKEN_KINDS):
        share = counts[(token_kinds == index) & (counts > 0)]
        if share.size:
            share = share / share.sum()
            values[f"unigram_entropy_{kind}"] = float(-(share * np.log(share)).sum())
    return values
