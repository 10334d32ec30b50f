"""Style units against the reference."""

import numpy as np
import pytest

from spirit_jax.audio import AudioError
from spirit_jax.speech.released import batches
from spirit_jax.speech.released.style import Wav2Vec2Style
from tests.support import released
from tests.support.golden_clips import CLIPS, clip
from tests.support.goldens import golden, golden_arrays, golden_json
from tests.support.released import STYLE

pytestmark = pytest.mark.optimized


@pytest.fixture(scope="module")
def encoder():
    return Wav2Vec2Style.load(*released.style_part(golden(STYLE)))


@pytest.fixture(autouse=True)
def few_lengths(monkeypatch):
    monkeypatch.setattr(batches, "PADDED_LENGTHS", released.PADDED_LENGTHS)


@pytest.mark.accelerator
def test_units_equal_the_reference(encoder):
    found = encoder.encode_batch([clip(name) for name in CLIPS])
    for name, units in zip(CLIPS, found, strict=True):
        assert units.dtype == np.int32
        np.testing.assert_array_equal(units, golden_arrays("style.npz")[f"{name}.wav/codes"], err_msg=name)


def test_units_around_length_thresholds_equal_the_reference(encoder):
    """Lengths around the end of a window, in one batch. 16,400 samples have a second window of one frame."""
    cases = golden_json("style_edge_lengths.json")
    audio = clip(cases["clip"])
    lengths = [int(n) for n, case in cases["results"].items() if "ok" in case]
    for n, units in zip(lengths, encoder.encode_batch([audio[:n] for n in lengths]), strict=True):
        assert units.tolist() == cases["results"][str(n)]["ok"], n
    with pytest.raises(AudioError, match="style units need 400 to 1600000 samples"):
        encoder.encode(audio[:399])


def test_units_do_not_depend_on_loudness(encoder):
    """Each clip is normalized on its own. A constant clip, which then is all zeros, has units too."""
    audio = clip("espeak_a_22k")
    loud, quiet, still = encoder.encode_batch([audio, audio * 0.25, np.full(20_000, 0.1, np.float32)])
    np.testing.assert_array_equal(loud, quiet)
    assert len(still) == 2
