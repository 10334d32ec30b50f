"""Invalid values of the configuration of the mixture."""

from typing import Any

import pytest

from spirit_jax.data.config import DataConfig, SourceConfig

INVALID_SOURCES: list[tuple[dict[str, Any], str]] = [
    ({"recipe": "sing"}, "recipe 'sing' is none of text, speech, interleaved"),
    ({"weight": -1.0}, "weight must be 0 or more, found -1.0"),
    ({"weight": float("nan")}, "weight must be 0 or more"),
    ({"fraction": 1.5}, "fraction must lie in 0..1, found 1.5"),
    ({"text_words": (0, 4)}, "text_words must be a range of at least one word, found 0..4"),
    ({"speech_words": (9, 4)}, "speech_words must be a range of at least one word, found 9..4"),
]
INVALID_MIXTURES: list[tuple[dict[str, Any], str]] = [
    ({"workers": -1}, "workers must be at least 0"),
    ({"prefetch": 0}, "prefetch must be at least 1"),
    ({"streams": 0}, "streams must be at least 1"),
    ({"on_bad_record": "ignore"}, "on_bad_record must be 'error' or 'skip'"),
]


@pytest.mark.parametrize(("settings", "message"), INVALID_SOURCES)
def test_invalid_sources_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SourceConfig("somewhere", **settings)


@pytest.mark.parametrize(("settings", "message"), INVALID_MIXTURES)
def test_invalid_mixtures_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**settings)
