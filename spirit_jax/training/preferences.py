"""Direct preference optimization (DPO: Rafailov et al. 2023, arXiv 2305.18290).

The loss of a prompt with a chosen and a rejected answer is

    -(1 - e) log sigmoid(m) - e log sigmoid(-m),   m = beta * (l(chosen) - l(rejected))

where e is the label smoothing (Mitchell 2023, "conservative DPO") and l is the log-probability of an answer given the
prompt: by the model, less that by the frozen reference. Without a reference, l is the model's alone. Length
normalization divides l by the number of tokens of the answer, as SimPO does (Meng et al. 2024, arXiv 2405.14734).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spirit_jax.models import llama
from spirit_jax.models.losses import next_token_losses
from spirit_jax.training.config import PreferenceConfig
from spirit_jax.training.language_model import TrainedWeights
from spirit_jax.training.state import DeviceBatch, Metrics, Params


def dpo_loss(
    chosen_b: Float[Array, " B"], rejected_b: Float[Array, " B"], config: PreferenceConfig
) -> Float[Array, " B"]:
    """The loss of each preference, from the l of the module's formula."""
    margin_b = config.beta * (chosen_b - rejected_b)
    smoothing = config.label_smoothing
    return -(1 - smoothing) * jax.nn.log_sigmoid(margin_b) - smoothing * jax.nn.log_sigmoid(-margin_b)


class PreferenceObjective:
    """DPO of a Llama, summed over preferences and divided by their number; implements `step.Objective`.

    The arrays of a batch are those of `language_model.LanguageModelObjective` with an axis more: [B, 2, T], the chosen
    answer first. A row without any target is padding.

    Args:
        model: the network.
        config: the loss.
        trained: which weights are trained.
        reference: the variables of the reference; None where the config asks for none.
    """

    def __init__(
        self,
        model: llama.LlamaConfig,
        config: PreferenceConfig,
        trained: TrainedWeights,
        reference: Params | None,
    ):
        self.model, self.config, self.trained, self.reference = model, config, trained, reference

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
        """One over the number of preferences of the whole batch."""
        return 1 / jnp.maximum(_is_preference(batch).sum(), 1).astype(jnp.float32)

    def loss(self, params: Params, batch: DeviceBatch, scale: Float[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        """The summed loss times `scale`; see `_metrics` for the sums beside it.

        The kernel of the cross entropy has a gradient for weighted sums over tokens only. The gradient of the DPO loss
        is such a sum, whose weights follow from the log-probabilities, so that these are computed first.
        """
        flat = _one_answer_a_row(batch)
        variables, keys = self.trained.variables(params), self.trained.random_keys(batch)
        hidden_btd = self._hidden(variables, flat, keys)
        head_dv = llama.head_weight(self.model, variables["params"])
        weight_b = 1 / self._lengths(flat)
        sums_b = -weight_b * self._nll(jax.lax.stop_gradient(hidden_btd), jax.lax.stop_gradient(head_dv), flat)
        reference_b = self._reference(flat, weight_b)

        loss, slope_b = jax.value_and_grad(self._total)(sums_b, reference_b, batch)
        weights_bt = flat["loss_mask"] * jax.lax.stop_gradient(-scale * slope_b * weight_b)[:, None]
        weighted = next_token_losses(hidden_btd, head_dv, flat["targets"], weights_bt).loss
        value = weighted + jax.lax.stop_gradient(scale * loss - weighted)
        return value, {"loss": value, **self._metrics(batch, flat, sums_b, reference_b)}

    def evaluate(self, params: Params, batch: DeviceBatch) -> Metrics:
        """The sums of `loss`, without dropout."""
        flat = _one_answer_a_row(batch)
        variables = self.trained.variables(params)
        weight_b = 1 / self._lengths(flat)
        head_dv = llama.head_weight(self.model, variables["params"])
        sums_b = -weight_b * self._nll(self._hidden(variables, flat, {}), head_dv, flat)
        reference_b = self._reference(flat, weight_b)
        loss = self._total(sums_b, reference_b, batch)
        return {"loss": loss, **self._metrics(batch, flat, sums_b, reference_b)}

    def _total(
        self, sums_b: Float[Array, " 2B"], reference_b: Float[Array, " 2B"], batch: DeviceBatch
    ) -> Float[Array, ""]:
        """The summed DPO loss, from the log-probabilities of the answers by the model and by the reference."""
        l_b2 = (sums_b - reference_b).reshape(-1, 2)
        return jnp.sum(jnp.where(_is_preference(batch), dpo_loss(l_b2[:, 0], l_b2[:, 1], self.config), 0))

    def _hidden(self, variables: Params, flat: DeviceBatch, keys: Mapping[str, Array]) -> Float[Array, "2B T D"]:
        inputs = (flat["inputs"], flat["positions"], flat["segment_ids"])
        return llama.Llama(self.model).apply(variables, *inputs, rngs=dict(keys))[0]

    def _lengths(self, flat: DeviceBatch) -> Float[Array, " 2B"]:
        """The divisor of each log-probability: the number of tokens of the answer, or 1."""
        counts_b = jnp.maximum(flat["loss_mask"].sum(-1), 1).astype(jnp.float32)
        return counts_b if self.config.length_normalized else jnp.ones_like(counts_b)

    def _nll(
        self, hidden_btd: Float[Array, "2B T D"], head_dv: Float[Array, "D V"], flat: DeviceBatch
    ) -> Float[Array, " 2B"]:
        """Negative log-likelihood of each answer in nats; no gradient flows through it."""
        losses = next_token_losses(hidden_btd, head_dv, flat["targets"], flat["loss_mask"])
        return jnp.sum(losses.nll_bt * flat["loss_mask"], axis=-1)

    def _reference(self, flat: DeviceBatch, weight_b: Float[Array, " 2B"]) -> Float[Array, " 2B"]:
        """The reference's log-probabilities, zeros without a reference."""
        if self.reference is None:
            return jnp.zeros_like(weight_b)
        hidden_btd = jax.lax.stop_gradient(self._hidden(self.reference, flat, {}))
        head_dv = llama.head_weight(self.model, self.reference["params"])
        return jax.lax.stop_gradient(-weight_b * self._nll(hidden_btd, head_dv, flat))

    def _metrics(
        self, batch: DeviceBatch, flat: DeviceBatch, sums_b: Float[Array, " 2B"], reference_b: Float[Array, " 2B"]
    ) -> Metrics:
        """Sums over preferences: their number, rewards of both answers, how often the chosen one wins, tokens."""
        is_preference_b = _is_preference(batch)
        rewards_b2 = self.config.beta * (sums_b - reference_b).reshape(-1, 2) * is_preference_b[:, None]
        wins_b = (rewards_b2[:, 0] > rewards_b2[:, 1]) & is_preference_b
        return {
            "preferences": is_preference_b.sum().astype(jnp.float32),
            "chosen_reward": rewards_b2[:, 0].sum(),
            "rejected_reward": rewards_b2[:, 1].sum(),
            "wins": wins_b.sum().astype(jnp.float32),
            "tokens": (flat["segment_ids"] > 0).sum().astype(jnp.float32),
        }


def _one_answer_a_row(batch: DeviceBatch) -> DeviceBatch:
    """The arrays [B, 2, T] of a batch as [2B, T]."""
    return {name: array.reshape(-1, *array.shape[2:]) for name, array in batch.items() if array.ndim == 3}


def _is_preference(batch: DeviceBatch) -> Array:
    """Which rows hold a preference, bool [B]."""
    return batch["loss_mask"].any(axis=(1, 2))


@dataclasses.dataclass(frozen=True)
class PreferenceSummary:
    """The log's values from the sums of `PreferenceObjective`; implements `task.Summary`."""

    flops_per_unit: float
    """FLOPs that the model needs to train on one token."""

    @property
    def unit(self) -> str:
        """The metric that the speed of the run is counted in."""
        return "tokens"

    def train_values(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Loss, rewards and accuracy of a step."""
        return {"loss": float(np.asarray(metrics["loss"])), **_means(metrics)}

    def source_values(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Held-out loss, rewards and accuracy."""
        return {"loss": float(np.asarray(sums["loss"])) / max(float(sums["preferences"]), 1.0), **_means(sums)}

    def evaluation_values(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """The same over all sources."""
        return self.source_values(sums)

    def progress_line(self, values: Mapping[str, float]) -> str:
        """A step's values for the progress bar."""
        speed = f"{values['tokens_per_second']:,.0f} tok/s, MFU {100 * values['mfu']:.0f} %"
        return f"loss {values['loss']:.3f} accuracy {values['accuracy']:.2f} | {speed}"

    def evaluation_line(self, values: Mapping[str, float]) -> str:
        """One line about an evaluation."""
        return (
            f"held-out loss {values['loss']:.3f}; the chosen answer wins {100 * values['accuracy']:.0f} % "
            f"(margin {values['reward_margin']:.3f})"
        )


def _means(sums: Mapping[str, Any]) -> dict[str, float]:
    """Mean rewards, their difference, and how often the chosen answer has the larger one."""
    count = max(float(sums["preferences"]), 1.0)
    chosen, rejected = (float(sums[f"{side}_reward"]) / count for side in ("chosen", "rejected"))
    return {
        "accuracy": float(sums["wins"]) / count,
        "chosen_reward": chosen,
        "rejected_reward": rejected,
        "reward_margin": chosen - rejected,
    }
