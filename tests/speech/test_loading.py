"""Loading the parts of a checkpoint directory, and which modules know which parts."""

import ast
import json
import pathlib
import shutil

import numpy as np
import pytest

from spirit_jax import speech
from spirit_jax.checkpoint import CheckpointError
from spirit_jax.core.checksums import write_checksums
from spirit_jax.speech import SpeechTokenizer
from spirit_jax.speech.released.pitch import VQVAEPitch
from spirit_jax.speech.scratch.kmeans import KMeansEncoder

FOLDER = pathlib.Path(speech.__file__).parent


@pytest.mark.parametrize(("one", "other"), [("released", "scratch"), ("scratch", "released")])
def test_released_and_scratch_parts_do_not_know_each_other(one, other):
    """They do not import the modules that know both kinds either."""
    forbidden = {f"spirit_jax.speech.{name}" for name in (other, "loading", "tokenizer")} | {"spirit_jax.speech"}
    for path in (FOLDER / one).glob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
        assert not {name for name in imported if name in forbidden or name.startswith(f"spirit_jax.speech.{other}.")}


def test_a_missing_or_damaged_part_is_named(scratch_tokenizer, scratch_checkpoint, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(scratch_checkpoint, copy)
    parts = copy / "speech_tokenizer"
    shutil.rmtree(parts / "vocoder_expressive")
    silent = SpeechTokenizer.from_pretrained(copy)
    assert silent.fingerprint == scratch_tokenizer.fingerprint
    with pytest.raises(CheckpointError, match="no vocoder"):
        silent.decode("[Hu1]")
    assert not silent.has_vocoder
    with pytest.raises(ValueError, match="variant must be one of base, expressive, found 'large'"):
        SpeechTokenizer.from_pretrained(copy, "large")  # pyright: ignore[reportArgumentType]  # refused at run time
    config = parts / "pitch" / "config.json"
    config.write_text(json.dumps({"kind": "guess"}))
    with pytest.raises(CheckpointError, match=r"pitch/config.json.*guess"):
        SpeechTokenizer.from_pretrained(copy).load_encoders()
    config.write_text(json.dumps({"kind": KMeansEncoder.kind}))
    with pytest.raises(CheckpointError, match=r"pitch/config.json: .* out of f0_quantiles, vqvae; found 'kmeans'"):
        SpeechTokenizer.from_pretrained(copy).load_encoders()
    config.write_text(json.dumps({"kind": VQVAEPitch.kind, "fcpe": {}}))
    write_checksums(parts / "pitch")
    with pytest.raises(CheckpointError, match=r"pitch: incomplete 'vqvae' part"):
        SpeechTokenizer.from_pretrained(copy).load_encoders()
    shutil.rmtree(parts / "pitch")
    with pytest.raises(CheckpointError, match="pitch"):
        SpeechTokenizer.from_pretrained(copy).load_encoders()
    SpeechTokenizer.from_pretrained(copy, "base").load_encoders()  # needs neither pitch nor style


def test_a_tokenizer_without_encoders_speaks_and_one_without_a_vocoder_hears(scratch_checkpoint, tmp_path):
    """A part that is missing, or whose weights are, is an error when it is asked for, not before."""
    copy = tmp_path / "copy"
    shutil.copytree(scratch_checkpoint, copy)
    parts = copy / "speech_tokenizer"
    shutil.rmtree(parts / "phonetic")
    (parts / "pitch" / "config.json").write_text(json.dumps({"kind": VQVAEPitch.kind}))  # released, without FCPE
    write_checksums(parts / "pitch")
    tokenizer = SpeechTokenizer.from_pretrained(copy)
    assert tokenizer.decode("[St1][Pi3][Hu5][Hu6]").size
    with pytest.raises(CheckpointError, match="no FCPE weights: convert with them, or use f0='pyaapt'"):
        _ = tokenizer.pitch
    with pytest.raises(CheckpointError, match="no speech_tokenizer/phonetic there"):
        tokenizer.encode(np.zeros(16_000, np.float32))


def test_the_variant_follows_the_encoders_that_are_there(scratch_checkpoint, tmp_path):
    assert SpeechTokenizer.from_pretrained(scratch_checkpoint).expressive
    copy = tmp_path / "copy"
    for part in ("phonetic", "vocoder_expressive"):
        shutil.copytree(scratch_checkpoint / "speech_tokenizer" / part, copy / "speech_tokenizer" / part)
    assert not SpeechTokenizer.from_pretrained(copy).load_encoders().expressive
    assert SpeechTokenizer.from_pretrained(copy, "expressive").has_vocoder


@pytest.mark.parametrize(
    ("variant", "message"),
    [("expressive", "of kind 'f0_quantiles', which finds F0 in its own way"), ("base", "has no pitch units")],
)
def test_an_f0_extractor_that_would_not_be_used_is_refused(scratch_checkpoint, variant, message):
    with pytest.raises(CheckpointError, match=f"f0 pyaapt: .*{message}.*; leave f0 out"):
        SpeechTokenizer.from_pretrained(scratch_checkpoint, variant, "pyaapt")
