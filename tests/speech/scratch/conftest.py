"""NumPy runs on one thread: several threads slow products of this size down."""

import pytest

from spirit_jax.core.threads import one_thread


@pytest.fixture(scope="module", autouse=True)
def _single_threaded():
    with one_thread():
        yield
