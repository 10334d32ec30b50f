"""Products of float32 numbers are computed in float32 on every platform.

By default, TPUs and GPUs round the inputs of a product. The test needs no accelerator, because every compiled program
states the precision of each product.
"""

import contextlib
import dataclasses
import re

import jax
import numpy as np
import pytest

from spirit_jax import SpiritLM
from spirit_jax.speech.loading import load_vocoder
from spirit_jax.speech.released import batches
from spirit_jax.speech.released.phonetic import HubertEncoder
from spirit_jax.speech.released.pitch import VQVAEPitch
from spirit_jax.speech.released.style import Wav2Vec2Style
from spirit_jax.units import SpeechUnits
from tests.support import checkpoints, released
from tests.support.goldens import golden
from tests.support.released import HUBERT, STYLE, TINY_FCPE, VQVAE
from tests.support.steps import MODEL, tiny_batch, tiny_step

pytestmark = pytest.mark.accelerator

_PRODUCT = re.compile(r"stablehlo\.(?:dot_general|convolution|dot)\b.*")


@contextlib.contextmanager
def products(directory):
    """A context with a list that holds, after its end, the line of each product in the programs compiled within it."""
    jax.clear_caches()
    jax.config.update("jax_dump_ir_to", str(directory))
    lines = []
    try:
        yield lines
    finally:
        jax.config.update("jax_dump_ir_to", "")
        jax.clear_caches()
    for file in directory.glob("**/*.mlir"):
        lines += _PRODUCT.findall(file.read_text())


def rounded(lines):
    """Products of float32 that an accelerator may round."""
    return [line for line in lines if "xf32>," in line.rsplit(": (", 1)[1] and line.count("HIGHEST") != 2]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_training_step_asks_for_the_precision_of_its_dtype(dtype, remat):
    """A bfloat16 model has no float32 product, not even in its reported sums, and asks for no higher precision."""
    step = tiny_step(dataclasses.replace(MODEL, dtype=dtype, remat=remat))
    lines = _PRODUCT.findall(step.lower_train_step(step.abstract_state, tiny_batch()).as_text())
    assert len(lines) > 20
    assert not rounded(lines)
    assert dtype == "float32" or not any("HIGHEST" in line for line in lines)


def test_evaluation_in_float32_rounds_no_product(tmp_path):
    step = tiny_step()
    params = step.init(jax.random.key(0)).params
    with products(tmp_path) as lines:
        step.eval_step(params, step.put_batch(tiny_batch()))
    assert len(lines) > 5
    assert not rounded(lines)


def test_generation_and_scores_in_float32_round_no_product(tmp_path):
    with products(tmp_path) as lines:
        lm = SpiritLM.from_pretrained(checkpoints.converted("small_expressive"), dtype="float32")
        lm.generate_batch(["[Text]hello", "[Text]The morning bus"], output_modality="any", max_new_tokens=3)
        lm.log_likelihood("[Text]hello", "[Text] there")
        lm.logits(np.arange(5)[None])
    assert len(lines) > 20
    assert not rounded(lines)


@pytest.mark.parametrize("network", ["phonetic", "pitch", "style"])
def test_speech_encoders_round_no_product(tmp_path, monkeypatch, network):
    monkeypatch.setattr(batches, "PADDED_LENGTHS", (48_000, batches.MAX_SAMPLES))
    with products(tmp_path) as lines:
        match network:
            case "phonetic":
                encoder = HubertEncoder.load(*released.hubert_part(golden(HUBERT)))
            case "pitch":
                encoder = VQVAEPitch.load(*released.pitch_part(golden(VQVAE), golden(TINY_FCPE)))
            case _:
                encoder = Wav2Vec2Style.load(*released.style_part(golden(STYLE)))
        encoder.encode(np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32))
    assert len(lines) > 5
    assert not rounded(lines)


@pytest.mark.parametrize("variant", ["base", "expressive"])
def test_vocoders_round_no_product(tmp_path, variant):
    streams = (np.arange(30) % 20, np.zeros(15, int), np.zeros(1, int))
    with products(tmp_path) as lines:
        vocoder = load_vocoder(checkpoints.with_speech(f"small_{variant}"), variant)
        vocoder.decode(SpeechUnits(*streams[: 1 if variant == "base" else 3]))
    assert len(lines) > 5
    assert not rounded(lines)
