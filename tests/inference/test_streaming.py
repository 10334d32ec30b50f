"""Speech as it comes, through the golden HiFi-GAN vocoders: the same sound as all of it at once."""

import numpy as np
import pytest

from spirit_jax import SpiritLM
from tests.inference import checkpoints


@pytest.mark.parametrize(
    ("name", "prompt"),
    [("small_base", "[Text]Hi[Speech]"), ("small_expressive", "[Speech][St5][Pi3][Hu7]")],
    ids=["base", "expressive"],
)
def test_streamed_audio_is_that_of_generate(name, prompt):
    """Chunks joined equal the vocoder's own output within 2e-4, the tolerance of its golden waveforms.

    The expressive prompt sets style and pitch; the grammar makes a random model name them again before it speaks on.
    """
    lm = SpiritLM.from_pretrained(checkpoints.with_speech(name), dtype="float32")
    options = {"temperature": 1.0, "seed": 4, "grammar": True}
    ids = lm.vocabulary.encode(prompt)
    new = lm.generate_ids(ids, "speech", 40, **options)
    units = lm.vocabulary.decode(new)
    whole = lm.speech_tokenizer.decode(units, speaker=1)
    if lm.vocabulary.variant == "expressive":
        assert {kind in units for kind in ("[Hu", "[Pi", "[St")} == {True}
    chunks = list(lm.stream(prompt, "speech", 40, speaker=1, steps=5, **options))
    assert len(chunks) > 2
    assert {segment.kind for segment in chunks} == {"speech"}
    audio = np.concatenate([segment.content for segment in chunks])
    assert audio.size == whole.size > 640 * 10
    np.testing.assert_allclose(audio, whole, atol=2e-4)
