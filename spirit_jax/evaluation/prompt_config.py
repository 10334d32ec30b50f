"""Prompt files: they decide the bytes of prompts, and how answers are generated and compared."""

import dataclasses
import pathlib
from typing import TypeVar

from spirit_jax import config
from spirit_jax.config import ConfigError
from spirit_jax.evaluation.items import BenchmarkError
from spirit_jax.inference.sampling_params import SamplingParams


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """Rules for building a task's prompts from examples, and for generating the answers.

    Templates may hold `{speech}`, the unit tokens of the recording, `{text}`, its words, and `{stop}`, the unit tokens
    of the spoken word "stop". Everything else is taken as it is.

    Raises:
        ValueError: a value is out of range.
    """

    question: str
    """Template of the item that is asked."""
    example: str = ""
    """Template of an example; examples precede the question."""
    shots: int = 0
    """Examples before each question."""
    context: int = 4096
    """Tokens of prompt and answer together, at most. Examples are left out, the first one first, until they fit."""
    examples_split: str = "train"
    """Split of the data that the examples are drawn from, once for all items."""
    test_split: str = "test"
    """Split that is evaluated."""
    stop: list[str] = dataclasses.field(default_factory=list)
    """Strings that end an answer."""
    stop_word: str = ""
    """Word that ends a transcript of generated speech; it and what follows are cut off."""
    max_new_tokens: int = 200
    """Longest answer in tokens."""
    temperature: float = 0.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    """Draw from the fewest most likely tokens that together have this probability."""
    top_k: int = 0
    """Draw from this many of the most likely tokens; 0 from all."""
    normalize: str = "english"
    """Normalization of words before they are compared: english (whisper-normalizer), basic or none."""

    def __post_init__(self) -> None:
        if self.shots < 0:
            raise ValueError(f"shots must be 0 or more, found {self.shots}")
        if self.shots and not self.example:
            raise ValueError("shots need a template: example")
        if self.normalize not in ("english", "basic", "none"):
            raise ValueError(f"normalize must be english, basic or none, found {self.normalize!r}")
        self.sampling(0)

    def sampling(self, seed: int) -> SamplingParams:
        """Decoding options of one answer.

        Raises:
            SamplingError: an option is out of range.
        """
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            max_new_tokens=self.max_new_tokens,
            stop=self.stop,
            seed=seed,
        )

    def fill(self, template: str, **content: str) -> str:
        """Put content into the places of a template; other braces stay as they are."""
        for name, value in content.items():
            template = template.replace("{" + name + "}", value)
        return template


@dataclasses.dataclass(frozen=True)
class ContinuationConfig:
    """Options of tasks that score the continuation of a prompt.

    Raises:
        ValueError: a value is out of range, or no direction is named.
    """

    new_tokens: dict[str, int]
    """Longest answer in tokens, by direction."""
    temperature: float = 0.8
    """0 takes the most likely token."""
    top_p: float = 0.95
    """Draw from the fewest most likely tokens that together have this probability."""
    top_k: int = 0
    """Draw from this many of the most likely tokens; 0 from all."""

    def __post_init__(self) -> None:
        if not self.new_tokens:
            raise ValueError('new_tokens: name at least one direction, as in {"T>T": 50}')
        for direction in self.new_tokens:
            self.sampling(direction, 0)

    def sampling(self, direction: str, seed: int) -> SamplingParams:
        """Decoding options of one answer in a direction of `new_tokens`.

        Raises:
            SamplingError: an option is out of range.
        """
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            max_new_tokens=self.new_tokens[direction],
            seed=seed,
        )


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """The way from recordings and texts to prompts, and the options of their continuation.

    Raises:
        ValueError: a value is out of range.
    """

    continuation: ContinuationConfig
    """Options of the continuation."""
    prompt_seconds: float | None = None
    """A prompt is the beginning of a recording of this length; null: all of it."""
    prompt_words: int | None = None
    """A prompt is so many first words of a text; null: all of it."""
    test_split: str = "test"
    """Split of the data that prompts are taken from."""

    def __post_init__(self) -> None:
        for name in ("prompt_seconds", "prompt_words"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive, found {value}")


Config = TypeVar("Config", PromptConfig, ContinuationConfig, GenerationConfig)

_PACKAGE = pathlib.Path(__file__).parents[1]
_BUNDLED = (_PACKAGE / "configs" / "evaluation", _PACKAGE.parent / "configs" / "evaluation")


def load_prompts(cls: type[Config], name: str) -> Config:
    """Read a prompt file: a path, or the name of a file of configs/evaluation/, which comes with the package.

    Args:
        cls: what the task's prompt files hold.
        name: of the file.

    Raises:
        BenchmarkError: it is missing, or a field cannot be used; names both.
    """
    places = [pathlib.Path(name).expanduser(), *(folder / name for folder in _BUNDLED)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        known = sorted({file.name for folder in _BUNDLED for file in folder.glob("*.yaml")})
        raise BenchmarkError(f"{name}: no such prompt file; bundled ones are {', '.join(known)}")
    try:
        return config.load(cls, path)
    except ConfigError as error:
        raise BenchmarkError(f"{path}: {error}") from error
