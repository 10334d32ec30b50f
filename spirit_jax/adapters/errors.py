"""The error of an adapter that cannot be used."""

from spirit_jax.core.errors import SpiritError


class AdapterError(SpiritError):
    """An adapter that is missing, damaged or does not fit its base; the message names the file and the weight."""
