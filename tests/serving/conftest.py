"""The model and the server that the tests of this folder share."""

from collections.abc import Iterator

import pytest

from spirit_jax import SpiritLM
from tests.support import checkpoints
from tests.support.plain_speech import plain_speech_tokenizer
from tests.support.servers import Server, running


@pytest.fixture(scope="session")
def lm() -> SpiritLM:
    """A small Spirit LM Base with a speech tokenizer that hears and speaks without networks."""
    lm = checkpoints.load("small_base")
    return SpiritLM(lm.params, lm.config, lm.vocabulary, plain_speech_tokenizer(), lm.mesh)


@pytest.fixture(scope="session")
def server(lm: SpiritLM) -> Iterator[Server]:
    """A server of that model."""
    with running(lm) as server:
        yield server
