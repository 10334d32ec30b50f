"""Low-rank adapters as files: PEFT's format, the base that an adapter belongs to, and merging the two."""

from spirit_jax.adapters.adapter import Adapter, AdapterError, read_adapter
from spirit_jax.adapters.fingerprint import base_fingerprint
from spirit_jax.adapters.peft_files import write_peft

__all__ = ["Adapter", "AdapterError", "base_fingerprint", "read_adapter", "write_peft"]
