"""Stores a trained part where `encode`, `train` and `generate` read it, with what an export of it needs."""

import pathlib

from spirit_jax.convert.trained_parts import describe_trained_part
from spirit_jax.core.files import atomic_directory
from spirit_jax.speech.protocols import Part
from spirit_jax.speech.storage import save_part


def save_trained_part(speech_tokenizer: pathlib.Path, name: str, part: Part) -> None:
    """Write `speech_tokenizer/NAME` in one atomic step. An existing part is replaced.

    `python -m spirit_jax.convert export` turns it into the released files.
    """
    with atomic_directory(speech_tokenizer / name, overwrite=True) as scratch:
        save_part(scratch, part)
        describe_trained_part(name, scratch)
