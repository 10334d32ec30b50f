"""NumPy on one thread: products this small only lose time on several."""

import pytest

from spirit_jax.core.threads import one_thread


@pytest.fixture(scope="module", autouse=True)
def _single_threaded():
    with one_thread():
        yield
