"""Config of a study: models to train, tasks and comparisons. Reading it never starts JAX."""

import dataclasses
import re

from spirit_jax.corpora.prepare_config import PrepareConfig


@dataclasses.dataclass(frozen=True)
class ConditionConfig:
    """Models that are trained alike, but for their seed.

    Raises:
        ValueError: no config is named, or an invalid number of seeds.
    """

    about: str
    """The difference from the other conditions, in a few words; the report shows it."""
    configs: list[str]
    """Training configs; a later one overrides an earlier one. In their paths, {inputs} is the directory of the study's
    records. The study sets seed, run_directory and the tokenizers."""
    seeds: int | None = None
    """How many seeds to train, counted from 0; null: those of the study."""
    start: str | None = None
    """Condition from whose last step with the same seed the weights begin; null: random weights."""

    def __post_init__(self) -> None:
        if not self.configs:
            raise ValueError("configs: name at least one training config")
        if self.seeds is not None and self.seeds < 1:
            raise ValueError(f"seeds must be 1 or more, found {self.seeds}")


@dataclasses.dataclass(frozen=True)
class ComparisonConfig:
    """A difference that the report states: the figures of one condition less those of another."""

    first: str
    """Condition that is expected to be better."""
    second: str
    """Condition that it is compared with."""
    figures: list[str]
    """Figures to compare, as TASK:DIRECTION: mini_stories:T>S."""
    question: str
    """Question that the comparison answers."""


@dataclasses.dataclass(frozen=True)
class AblateConfig:
    """A study: conditions, seeds, tasks and comparisons.

    Raises:
        ValueError: a name that is not there, a bad number, or an order in which weights are needed before they exist.
    """

    output: str
    """Directory of the study: inputs, runs, table and plot. The same directory continues it."""
    prepare: PrepareConfig
    """Corpora, and sizes of the tokenizers that all models share."""
    conditions: dict[str, ConditionConfig]
    """Conditions by name, in the order in which they are trained and shown."""
    tasks: list[str]
    """Tasks of likelihoods, as `evaluate --tasks` takes them."""
    data: dict[str, str] = dataclasses.field(default_factory=dict)
    """Where a task's data are, as `evaluate --data.TASK`."""
    comparisons: list[ComparisonConfig] = dataclasses.field(default_factory=list)
    """Differences to state."""
    seeds: int = 3
    """How many models each condition has, with seeds counted from 0."""
    only: list[str] = dataclasses.field(default_factory=list)
    """Train and evaluate these conditions alone; the report has all that are finished. Empty: all."""

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be 1 or more, found {self.seeds}")
        if not self.conditions or not self.tasks:
            raise ValueError("name at least one condition and one task")
        earlier: list[str] = []
        for name, condition in self.conditions.items():
            if not re.fullmatch(r"[\w-]+", name):
                raise ValueError(f"conditions: {name!r} must consist of letters, digits, - and _")
            if condition.start is not None and condition.start not in earlier:
                raise ValueError(f"conditions.{name}.start: {condition.start!r} must be a condition that comes before")
            if condition.start is not None and self.count(name) > self.count(condition.start):
                raise ValueError(f"conditions.{name}: has more seeds than {condition.start}, whose weights it needs")
            earlier.append(name)
        named = [name for comparison in self.comparisons for name in (comparison.first, comparison.second)]
        for name in (*named, *self.only):
            if name not in self.conditions:
                raise ValueError(f"{name!r} is none of the conditions {', '.join(self.conditions)}")

    def count(self, condition: str) -> int:
        """How many seeds a condition has."""
        own = self.conditions[condition].seeds
        return self.seeds if own is None else own
