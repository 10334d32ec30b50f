"""What is float32 is multiplied as float32 on every platform: TPUs and GPUs round the inputs of a product unless told not to.

No accelerator is needed to see it: every program that is compiled says, product by product, what it asks for.
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
from tests.models.test_fcpe import TINY
from tests.models.test_wav2vec2 import HUBERT, STYLE
from tests.support import checkpoints, released
from tests.support.goldens import golden

_PRODUCT = re.compile(r"stablehlo\.(?:dot_general|convolution|dot)\b.*")


@contextlib.contextmanager
def products(directory):
    """A list that holds, afterwards, the line of each product in the programs that were compiled."""
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


def program(**model):
    return steps.make_program(
        dataclasses.replace(steps.MODEL, **model),
        steps.make_optimizer(steps.OptimizerConfig(), 10),
        steps.make_schedule(steps.OptimizerConfig(), 10),
        steps.make_mesh(steps.MeshConfig(), jax.devices()[:1]),
        rows=steps.ROWS,
        token_kinds=steps.KINDS_V,
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("remat", ["none", "full"])
def test_training_step(dtype, remat):
    """A model in bfloat16 multiplies no float32 at all, not even in the sums that it reports, and asks for no more than it needs."""
    run = program(dtype=dtype, remat=remat)
    lines = _PRODUCT.findall(run.lower_train_step(run.abstract_state, steps._batch()).as_text())
    assert len(lines) > 20
    assert not rounded(lines)
    assert dtype == "float32" or not any("HIGHEST" in line for line in lines)


def test_evaluation(tmp_path):
    run = program()
    params = run.init(jax.random.key(0)).params
    with products(tmp_path) as lines:
        run.eval_step(params, steps._batch())
    assert len(lines) > 5
    assert not rounded(lines)


def test_generation_and_scores(tmp_path):
    with products(tmp_path) as lines:
        lm = SpiritLM.from_pretrained(checkpoints.converted("small_expressive"), dtype="float32")
        lm.generate_batch(["[Text]hello", "[Text]The morning bus"], output_modality="any", max_new_tokens=3)
        lm.log_likelihood("[Text]hello", "[Text] there")
        lm.logits(np.arange(5)[None])
    assert len(lines) > 20
    assert not rounded(lines)


@pytest.mark.parametrize("network", ["phonetic", "pitch", "style", "vocoder_base", "vocoder_expressive"])
def test_speech(tmp_path, monkeypatch, network):
    monkeypatch.setattr(batches, "PADDED_LENGTHS", (48_000, batches.MAX_SAMPLES))
    streams = (np.arange(30) % 20, np.zeros(15, int), np.zeros(1, int))
    with products(tmp_path) as lines:
        match network:
            case "phonetic":
                part = HubertEncoder.load(*released.hubert_part(golden(HUBERT)))
            case "pitch":
                folder = golden(f"{released.SPEECH}/vqvae_f0_quantizer")
                part = VQVAEPitch.load(*released.pitch_part(folder, golden(TINY)))
            case "style":
                part = Wav2Vec2Style.load(*released.style_part(golden(STYLE)))
            case _:
                variant = network.removeprefix("vocoder_")
                part = load_vocoder(checkpoints.with_speech(f"small_{variant}"), variant)
        if network.startswith("vocoder"):
            part.decode(SpeechUnits(*streams[: 1 if variant == "base" else 3]))
        else:
            part.encode(np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32))
    assert len(lines) > 5
    assert not rounded(lines)
