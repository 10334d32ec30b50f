"""Streams add up to the whole answer: text character by character, speech through the golden HiFi-GAN vocoders."""

import numpy as np
import pytest

from spirit_jax import SpiritLM
from spirit_jax.inference.streaming import stream_segments
from spirit_jax.inference.voice import Voice
from spirit_jax.speech import load_vocoder
from tests.support import checkpoints


def test_a_character_is_streamed_whole():
    """The tokenizer spells some characters byte by byte. A piece that ends within one waits for the rest."""
    vocabulary = checkpoints.load("small_base").vocabulary
    text = "a \u2603 snowman \U0001f600!"
    ids = vocabulary.encode_text(text)
    assert sum(vocabulary.decode([vocabulary.text_id, index]).endswith("\ufffd") for index in ids) == 3 + 4
    silent = Voice(None, expressive=False)
    pieces = [str(segment.content) for segment in stream_segments([[index] for index in ids], vocabulary, silent)]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) == len(ids) - 2 - 3
    assert "".join(str(s.content) for s in stream_segments([ids[:-2]], vocabulary, silent)) == vocabulary.decode(
        [vocabulary.text_id, *ids[:-2]]
    ).removeprefix("[Text]")


@pytest.mark.parametrize("name", ["small_base", "small_expressive"])
def test_streamed_audio_adds_up_to_that_of_the_vocoder(name):
    """Chunks joined equal the vocoder's own output on all units within 2e-4, the tolerance of its golden waveforms.

    The grammar makes a random model name style and pitch before it speaks.
    """
    vocoder = load_vocoder(checkpoints.with_speech(name), name.removeprefix("small_"))
    lm = SpiritLM.from_pretrained(checkpoints.converted(name), dtype="float32")
    lm.speech_tokenizer = checkpoints.speaking_tokenizer(vocoder)
    options = {"max_new_tokens": 40, "temperature": 1.0, "seed": 4, "grammar": True}
    new = lm.generate_ids(lm.vocabulary.encode("[Text]Hi[Speech]"), "speech", **options)
    units = lm.vocabulary.decode(new)
    whole = lm.speech_tokenizer.decode(units, speaker=1)
    if lm.vocabulary.variant == "expressive":
        assert all(kind in units for kind in ("[Hu", "[Pi", "[St"))
    chunks = list(lm.stream("[Text]Hi[Speech]", "speech", speaker=1, tokens_per_step=5, **options))
    assert len(chunks) > 2
    assert {segment.kind for segment in chunks} == {"speech"}
    audio = np.concatenate([segment.audio for segment in chunks])
    assert audio.size == whole.size > 640 * 10
    np.testing.assert_allclose(audio, whole, atol=2e-4)
