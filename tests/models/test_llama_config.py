"""The config of a Llama, which never starts JAX, knows the names in tables of modules that do."""

from spirit_jax.kernels.remat import POLICIES
from spirit_jax.models import llama_config
from spirit_jax.models.llama import DTYPES


def test_the_config_takes_every_dtype_and_policy():
    assert set(llama_config.DTYPE_NAMES) == DTYPES.keys()
    assert set(llama_config.REMAT_NAMES) == POLICIES.keys()
