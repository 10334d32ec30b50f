"""Loading the parts of a checkpoint directory, and which modules know which parts."""

import ast
import json
import pathlib
import shutil

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
    with pytest.raises(ValueError, match="variant must be one of base, expressive, found 'large'"):
        SpeechTokenizer.from_pretrained(copy, "large")  # pyright: ignore[reportArgumentType]  # refused at run time
    config = parts / "pitch" / "config.json"
    config.write_text(json.dumps({"kind": "guess"}))
    with pytest.raises(CheckpointError, match=r"pitch/config.json.*guess"):
        SpeechTokenizer.from_pretrained(copy)
    config.write_text(json.dumps({"kind": KMeansEncoder.kind}))
    with pytest.raises(CheckpointError, match=r"pitch/config.json: .* out of f0_quantiles, vqvae; found 'kmeans'"):
        SpeechTokenizer.from_pretrained(copy)
    config.write_text(json.dumps({"kind": VQVAEPitch.kind, "fcpe": {}}))
    write_checksums(parts / "pitch")
    with pytest.raises(CheckpointError, match=r"pitch: incomplete 'vqvae' part"):
        SpeechTokenizer.from_pretrained(copy)
    shutil.rmtree(parts / "pitch")
    with pytest.raises(CheckpointError, match="pitch"):
        SpeechTokenizer.from_pretrained(copy)
    SpeechTokenizer.from_pretrained(copy, "base")  # needs neither pitch nor style
