"""Configuration of the training mixture."""

import dataclasses
from typing import Literal

from spirit_jax.data.pairs import check_template
from spirit_jax.data.sequences import OUTPUT_RECIPES, RECIPES, Recipe


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source of training data: a directory of unit records and the recipe for its documents.

    Raises:
        ValueError: an invalid weight, fraction or span length, or an unknown recipe.
    """

    path: str
    """Directory of unit records (`spirit_jax.encode` writes it); for the recipe pairs, of `SPLIT.jsonl` files
    (docs/finetuning.md)."""
    recipe: Recipe = "text"
    """Kind of document made from a record: text, speech, interleaved, transcription, asr, tts, or asr_tts (one of the
    two, drawn for each record and epoch). pairs: inputs and outputs of fine-tuning; outputs are learned."""
    weight: float = 1.0
    """Share of the training tokens, relative to the weights of the other sources; 0 leaves the source out."""
    fraction: float = 1.0
    """Part of the records in use, 0 to 1, the same records in every run; 0 leaves the source out."""
    split: str = "train"
    """Split of the directory to train on."""
    held_out_split: str | None = None
    """Split of the directory to evaluate on; none by default."""
    text_words: tuple[int, int] = (10, 30)
    """Least and most words of a text span (recipe interleaved)."""
    speech_words: tuple[int, int] = (5, 15)
    """Least and most words of a speech span (recipe interleaved)."""
    learn: Literal["all", "output"] = "all"
    """output: learn only the transcript (recipe asr) or only the speech (recipe tts); recipe pairs always does so."""
    template: str = "plain"
    """Text around inputs and outputs (recipe pairs): plain, asr, tts, intent, emotion, answer, chat."""

    def __post_init__(self):
        if self.recipe not in RECIPES:
            raise ValueError(f"recipe {self.recipe!r} is none of {', '.join(RECIPES)}")
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight must be 0 or more, found {self.weight}")
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"fraction must lie in 0..1, found {self.fraction}")
        if self.learn not in ("all", "output"):
            raise ValueError(f"learn must be 'all' or 'output', found {self.learn!r}")
        if self.learn == "output" and self.recipe not in (*OUTPUT_RECIPES, "pairs"):
            raise ValueError(f"learn output needs a recipe with an output: {', '.join(OUTPUT_RECIPES)}, pairs")
        check_template(self.template)
        for name in ("text_words", "speech_words"):
            least, most = getattr(self, name)
            if not 1 <= least <= most:
                raise ValueError(f"{name} must be a range of at least one word, found {least}..{most}")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The training mixture and how it is read.

    Raises:
        ValueError: an invalid count.
    """

    sources: dict[str, SourceConfig] = dataclasses.field(default_factory=dict)
    """Sources by name; weights count tokens, whatever the length of the records."""
    streams: int | None = None
    """Number of logical streams that a batch is made of, by default one a row. It must divide the rows and be divisible
    by the hosts. It decides the batches: keep it when the batch size changes in the middle of a run."""
    workers: int = 0
    """Processes on each host that prepare batches ahead, at most one a stream; 0 prepares each batch in the training
    process when it is needed. Does not change the batches."""
    prefetch: int = 2
    """Batches that each worker prepares ahead."""
    on_bad_record: Literal["error", "skip"] = "error"
    """Reaction to a record that is damaged or that the recipe cannot use: stop, or log, count and skip it."""

    def __post_init__(self):
        for name, least in (("workers", 0), ("prefetch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, found {getattr(self, name)}")
        if self.streams is not None and self.streams < 1:
            raise ValueError(f"streams must be at least 1, found {self.streams}")
        if self.on_bad_record not in ("error", "skip"):
            raise ValueError(f"on_bad_record must be 'error' or 'skip', found {self.on_bad_record!r}")

    @property
    def source_names(self) -> list[str]:
        """Names of the sources in use, in the order of a batch's `sources`."""
        return [name for name, source in self.sources.items() if source.weight and source.fraction]
