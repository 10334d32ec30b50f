"""The model and the server that the tests of this folder share."""

from collections.abc import Iterator

import pytest

from spirit_jax import SpiritLM
from spirit_jax.adapters import base_fingerprint, write_peft
from spirit_jax.models.lora_config import LoraConfig
from tests.support import checkpoints
from tests.support.adapters import random_adapter
from tests.support.plain_speech import plain_speech_tokenizer
from tests.support.servers import Server, running


@pytest.fixture(scope="session")
def lm() -> SpiritLM:
    """A small Spirit LM Base with a speech tokenizer that hears and speaks without networks."""
    lm = checkpoints.load("small_base")
    return SpiritLM(lm.params, lm.config, lm.vocabulary, plain_speech_tokenizer(), lm.mesh)


@pytest.fixture(scope="session")
def voice(lm: SpiritLM, tmp_path_factory) -> SpiritLM:
    """The same model with an adapter."""
    base, directory = checkpoints.converted("small_base"), tmp_path_factory.mktemp("adapters") / "voice"
    lora = LoraConfig(rank=3, alpha=6.0, targets=["q_proj", "down_proj"])
    arrays = random_adapter(lm.config, lora, size=0.2)
    write_peft(directory, lm.config, lora, arrays, base=base_fingerprint(base), base_name=str(base))
    return lm.with_adapter(base, directory)


@pytest.fixture(scope="session")
def server(lm: SpiritLM) -> Iterator[Server]:
    """A server of that model."""
    with running(lm) as server:
        yield server
