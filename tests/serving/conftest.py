"""The model and the server that the tests of this folder share."""

from collections.abc import Iterator

import pytest

from spirit_jax import SpiritLM
from spirit_jax.inference.sampling import SamplingParams
from tests.support import checkpoints
from tests.support.servers import Server, running


@pytest.fixture(scope="session")
def lm() -> SpiritLM:
    """A small Spirit LM Base that hears with HuBERT and speaks with HiFi-GAN."""
    lm = SpiritLM.from_pretrained(checkpoints.with_speech("small_base"), dtype="float32")
    lm.sampling = SamplingParams()
    return lm


@pytest.fixture(scope="session")
def server(lm: SpiritLM) -> Iterator[Server]:
    """A server of that model."""
    with running(lm) as server:
        yield server
