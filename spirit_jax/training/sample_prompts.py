"""Prompts of samples from a run's own data: what the model is trained on is what it should continue."""

import itertools
from collections.abc import Iterator

from spirit_jax.data.config import DataConfig, SourceConfig
from spirit_jax.data.records import RecordSource
from spirit_jax.data.unit_record import RecordError, UnitRecord
from spirit_jax.inference.sample_config import SamplePrompt
from spirit_jax.units import HUBERT_RATE, SpeechUnits
from spirit_jax.vocabulary import Variant

_WORDS = 12  # Words taken of a transcript or document, at most half of it.
_FRAMES = round(2 * HUBERT_RATE)  # Two seconds of speech, at most half of a clip.
_TRIED = 20  # Records of a source that are looked at.
_FROM_SPEECH = ("speech", "asr")


def prompts_from_data(data: DataConfig, variant: Variant) -> list[SamplePrompt]:
    """A prompt from each source in use, of its held-out split where it has one.

    A source of text gives the start of a document, to be continued as text, one of speech the start of a clip, to be
    continued as speech. Sources with both give the start of a transcript, to be continued as speech. A source whose
    first records cannot be used gives none. Equal prompts come once.

    Args:
        data: the mixture.
        variant: for "base", speech has phonetic units alone.
    """
    found = (_prompt(data.sources[name], variant) for name in data.source_names)
    return list(dict.fromkeys(prompt for prompt in found if prompt is not None))


def words_from_data(data: DataConfig) -> str | None:
    """The first words of a transcript or document of the data; None if there is none."""
    for name in data.source_names:
        for record in _records(data.sources[name]):
            if record.text:
                return _first_words(record.text)
    return None


def _prompt(source: SourceConfig, variant: Variant) -> SamplePrompt | None:
    for record in _records(source):
        text, units = record.text, record.units
        if source.recipe == "text" and text:
            return SamplePrompt(f"[Text]{_first_words(text)}", "text")
        if source.recipe in _FROM_SPEECH and units is not None:
            frames = min(_FRAMES, len(units.hubert) // 2)
            if frames:
                start = units.cut(0, frames)
                shown = start if variant == "expressive" else SpeechUnits(start.hubert)
                return SamplePrompt(f"[Speech]{shown.to_string()}", "speech" if source.recipe == "speech" else "any")
        elif source.recipe != "text" and text:
            return SamplePrompt(f"[Text]{_first_words(text)} [Speech]", "speech")
    return None


def _records(source: SourceConfig) -> Iterator[UnitRecord]:
    """The first usable records of a source."""
    try:
        records = RecordSource(source.path, source.held_out_split or source.split)
    except RecordError:
        return
    for index in itertools.islice(range(len(records)), _TRIED):
        try:
            record = records[index]
            record.validate()
        except RecordError:
            continue
        yield record


def _first_words(text: str) -> str:
    """The start of a text, without words that could be taken for tokens such as `[Text]` or `<s>`."""
    words = [word for word in text.split() if not set(word) & set("[]<>")] or ["The"]
    return " ".join(words[: max(1, min(_WORDS, len(words) // 2))])
