"""A released tree with every part, and its conversion."""

import shutil

import pytest

from spirit_jax.convert.released_folder import MODEL_FOLDERS
from tests.support.goldens import golden
from tests.support.trees import LLAMAS, SPEECH, run_import


@pytest.fixture(scope="session")
def released(tmp_path_factory):
    """A released tree with both language models and every part; FCPE has small weights of its own."""
    root = tmp_path_factory.mktemp("released")
    shutil.copytree(SPEECH, root / "speech_tokenizer")
    (root / "speech_tokenizer/fcpe").mkdir()
    shutil.copy(golden("variants/fcpe_tiny/fcpe_tiny.pt"), root / "speech_tokenizer/fcpe/fcpe_c_v001.pt")
    for variant, halves in LLAMAS.items():
        for half in halves:
            shutil.copytree(half, root / "spiritlm_model" / MODEL_FOLDERS[variant], dirs_exist_ok=True)
    return root


@pytest.fixture(scope="session")
def converted(released, tmp_path_factory):
    """The checkpoint directory that an import of the released tree makes, with the expressive language model."""
    return run_import(released, tmp_path_factory.mktemp("converted") / "checkpoint", model="expressive")
