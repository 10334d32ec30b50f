"""Set up before any test module is imported."""

import os
import sys

import jaxtyping

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# transformers imports torchaudio where it finds one, and one built for another torch does not load; nothing here needs it
sys.modules.setdefault("torchaudio", None)

# Shapes and types in the annotations of the NumPy code hold for every call that a test makes in its own process (loader
# workers and subprocesses import without the hook). The JAX code is left out: what runs under jit would check tracers. So is
# data: its configurations refuse wrong values with errors of their own, and checking its inner loops slows the tests by half.
CHECKED = (
    "spirit_jax.units",
    "spirit_jax.audio",
    "spirit_jax.vocabulary",
    "spirit_jax.speech.features",
    "spirit_jax.speech.griffin_lim",
    "spirit_jax.speech.kmeans",
    "spirit_jax.speech.prosody",
)
# is_pep484_tower: as every static checker has it, `float` includes int
jaxtyping.install_import_hook(CHECKED, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
