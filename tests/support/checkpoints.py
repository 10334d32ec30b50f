"""Golden checkpoints as spirit_jax reads them, converted once a session."""

import functools
import pathlib
import shutil
import tempfile

from spirit_jax import SpiritLM
from spirit_jax.convert.jobs import run_jobs
from spirit_jax.convert.plans import plan_import
from spirit_jax.inference.sampling_params import SamplingParams
from spirit_jax.speech import SpeechTokenizer
from spirit_jax.speech.protocols import Vocoder
from spirit_jax.vocabulary import Variant
from tests.support.goldens import golden
from tests.support.llamas import FOLDERS


def _with_tokenizer(weights: str, tokenizer: str) -> pathlib.Path:
    """A released folder, joined from its tokenizer and its weights, which the repository holds once each."""
    folder = pathlib.Path(_scratch.name) / "released" / pathlib.Path(weights).name
    folder.mkdir(parents=True)
    for half in (tokenizer, weights):
        shutil.copytree(golden(half), folder, dirs_exist_ok=True)
    return folder


_scratch = tempfile.TemporaryDirectory(prefix="spirit_jax_tests_")
_SOURCES = {
    "small_base": lambda: _with_tokenizer(FOLDERS["small_base"], "tokenizers/small_base_added"),
    "small_expressive": lambda: _with_tokenizer(FOLDERS["small_expressive"], "tokenizers/small_expressive_userdef"),
    "full_base": lambda: golden(FOLDERS["full_base"]),
    "full_expressive": lambda: golden(FOLDERS["full_expressive"]),
}
NAMES = tuple(_SOURCES)


@functools.cache
def converted(name: str) -> pathlib.Path:
    """The checkpoint directory that a golden language model converts to, made once a session."""
    target = pathlib.Path(_scratch.name) / name
    run_jobs(plan_import(_SOURCES[name]()), target, overwrite=False)
    return target


@functools.cache
def load(name: str) -> SpiritLM:
    """A golden checkpoint in float32. It decodes greedily by default, although the checkpoint recommends sampling."""
    lm = SpiritLM.from_pretrained(converted(name), dtype="float32")
    lm.sampling = SamplingParams()
    return lm


@functools.cache
def with_speech(name: str) -> pathlib.Path:
    """A small golden checkpoint with the golden speech tokenizer's parts that fit it: HuBERT (base) and a vocoder."""
    target = pathlib.Path(_scratch.name) / f"{name}_with_speech"
    shutil.copytree(converted(name), target)
    variant: Variant = "base" if name.endswith("base") else "expressive"
    parts = ("hubert", "vocoder") if variant == "base" else ("vocoder",)
    run_jobs(plan_import(golden("checkpoints"), parts, variant), target, overwrite=True)
    return target


class _NoEncoder:
    """An encoder for tests in which every prompt holds units."""

    unit_count = 501

    def encode_batch(self, clips):
        raise AssertionError("no audio has to be encoded in this test")


def speaking_tokenizer(vocoder: Vocoder) -> SpeechTokenizer:
    """A speech tokenizer that has a vocoder and cannot encode audio."""
    return SpeechTokenizer(_NoEncoder(), None, None, vocoder, "")
