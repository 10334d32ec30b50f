"""The objectives of a run: all weights or an adapter, on documents or on preferences."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Int

from spirit_jax.models import llama
from spirit_jax.models import lora as low_rank
from spirit_jax.parallel.sharding import BatchLayout
from spirit_jax.training.config import PreferenceConfig
from spirit_jax.training.language_model import AllWeights, LanguageModelObjective, LanguageModelSummary
from spirit_jax.training.lora import AdapterWeights
from spirit_jax.training.optimizer import Optimizer
from spirit_jax.training.preferences import PreferenceObjective, PreferenceSummary
from spirit_jax.training.state import Params
from spirit_jax.training.step import Frozen, Objective, TrainStep, UpdateRule
from spirit_jax.training.task import Summary


@dataclasses.dataclass(frozen=True, eq=False)
class Objectives:
    """The choice of a run: what is trained, and on what.

    Args:
        model: the network.
        token_kinds: the kind of each id, an index into `vocabulary.TOKEN_KINDS`.
        z_loss: coefficient of the squared log-partition, for documents.
        trained: the adapter and its base; None to train all weights.
        preferences: the loss of preferences; None to train on documents.
        reference: the initial weights, with which preferences without an adapter are compared. An adapter is compared
            with its base.
    """

    model: llama.LlamaConfig
    token_kinds: Int[np.ndarray, " V"]
    z_loss: float = 0.0
    trained: AdapterWeights | None = None
    preferences: PreferenceConfig | None = None
    reference: Params | None = None

    def step(self, optimizer: Optimizer, spike_sigmas: float, layout: BatchLayout) -> TrainStep:
        """The compiled step. Frozen weights are arguments of it, and no part of the train state."""
        frozen = self.reference if self.trained is None else self.trained.base

        def rule(base: Params) -> UpdateRule:
            return UpdateRule(self.bind(base), optimizer, spike_sigmas)

        return TrainStep(rule(frozen or {}), layout, None if frozen is None else Frozen(frozen, rule))

    def bind(self, frozen: Params) -> Objective:
        """The objective that reads these frozen weights."""
        weights: Any = AllWeights(self.model)
        if self.trained is not None:
            weights = dataclasses.replace(self.trained, base=frozen)
        if self.preferences is None:
            return LanguageModelObjective(self.model, self.token_kinds, self.z_loss, weights)
        reference = {"params": frozen} if self.preferences.reference else None
        return PreferenceObjective(self.model, self.preferences, weights, reference)

    def summary(self, length: int) -> Summary:
        """Values for the log about rows of `length` tokens."""
        flops = llama.flops_per_token(self.model, length)
        forward = flops / 3
        if self.trained is not None:
            flops = low_rank.flops_per_token(self.model, self.trained.config, length)
        if self.preferences is None:
            return LanguageModelSummary(self.token_kinds, flops_per_unit=flops)
        return PreferenceSummary(flops_per_unit=flops + (forward if self.preferences.reference else 0))
