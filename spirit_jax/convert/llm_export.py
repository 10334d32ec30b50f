"""Plans the export of a checkpoint's language model to a Hugging Face Llama."""

import json
import pathlib
import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np

from spirit_jax import checkpoint, config
from spirit_jax.convert import tokenizer_files
from spirit_jax.convert.components import llama
from spirit_jax.convert.errors import ConversionError, reading
from spirit_jax.convert.formats import hf_weights, orbax_file
from spirit_jax.convert.formats.arrays import Progress, ReadableArray, counted, nbytes
from spirit_jax.convert.jobs import Job
from spirit_jax.convert.released_folder import FOLDER, LM_FOLDER, MODEL_FOLDERS, ReleasedFolder, check_keys, state_keys
from spirit_jax.convert.table import to_torch
from spirit_jax.core.checksums import check_seal
from spirit_jax.core.files import write_file
from spirit_jax.models.llama import LlamaConfig
from spirit_jax.vocabulary import Variant, Vocabulary


@dataclass(frozen=True)
class StoredLlm:
    """The language model of a checkpoint directory, mapped to PyTorch tensors that are read when they are used."""

    source: pathlib.Path
    config: LlamaConfig
    variant: Variant | None
    tokenizer: pathlib.Path | None
    vocabulary: Vocabulary | None
    tensors: dict[str, ReadableArray]
    shards: hf_weights.Shards
    files: list[pathlib.Path]
    """Released files to copy unchanged."""
    generation: dict[str, Any]
    """Recommended sampling settings."""

    def write(self, folder: pathlib.Path, progress: Progress) -> None:
        """Write a Hugging Face directory into an existing folder.

        Raises:
            ConversionError: neither a released config nor a tokenizer to make one from.
        """
        tensors = {name: counted(tensor, progress) for name, tensor in self.tensors.items()}
        hf_weights.save_weights(folder, tensors, self.shards)
        for path in self.files:
            shutil.copyfile(path, folder / path.name)
        if self.tokenizer is not None and self.vocabulary is not None:
            if self.files and not self.vocabulary.is_plain:  # a released tokenizer is written back as it was
                tokenizer_files.copy_tokenizer(self.tokenizer, folder)
            else:
                tokenizer_files.write_tokenizer(self.tokenizer, folder, self.variant)
        if (folder / "config.json").is_file():
            return
        if self.vocabulary is None:
            raise ConversionError(
                f"{self.source}: neither {FOLDER}/ nor {checkpoint.TOKENIZER}/ to write config.json from"
            )
        bos_id, eos_id = self.vocabulary.bos_id, self.vocabulary.eos_id
        dtype = np.dtype(next(iter(self.tensors.values())).dtype)
        hf_config = llama.to_hf_config(self.config, dtype, bos_id=bos_id, eos_id=eos_id)
        write_file(folder / "config.json", json.dumps(hf_config, indent=2) + "\n")
        generation = {"bos_token_id": bos_id, "eos_token_id": eos_id} | self.generation
        write_file(folder / llama.GENERATION_CONFIG, json.dumps(generation, indent=2, sort_keys=True) + "\n")


def find_part(source: pathlib.Path, name: str) -> pathlib.Path | None:
    """The path of a part of a checkpoint directory, None if it is missing.

    Raises:
        CheckpointError: `source` is a training run, and the language model of one of its steps is asked for.
    """
    try:
        return checkpoint.find(source, name)
    except checkpoint.CheckpointError:
        if name == checkpoint.LLM and (source / checkpoint.STEPS).is_dir():
            raise
        return None


def open_stored_llm(source: pathlib.Path) -> StoredLlm:
    """Open the language model of a checkpoint directory or of a training run's step.

    Raises:
        CheckpointError: no language model there.
        ConversionError: its arrays are not those of its config.
    """
    stored = checkpoint.read_config(source)
    with reading(source / checkpoint.CONFIG, "the config of a language model"):
        network = config.from_dict(LlamaConfig, stored["model"])
    directory = checkpoint.intact_llm(source)
    variant = stored.get("variant")
    tokenizer = find_part(source, checkpoint.TOKENIZER)
    vocabulary = Vocabulary.load(tokenizer, variant) if tokenizer else None
    expected, present = llama.shapes(network), orbax_file.stored_shapes(directory)
    wrong = [
        f"{path}: expected {expected.get(path)}, found {present.get(path)}"
        for path in sorted(expected.keys() | present.keys())
        if expected.get(path) != present.get(path)
    ]
    if wrong:
        raise ConversionError(f"{directory}/{checkpoint.LLM} does not match {checkpoint.CONFIG}:", wrong)
    folder = find_part(source, FOLDER)
    if folder is not None:
        check_seal(folder.parent, ConversionError, within=FOLDER)
    released = ReleasedFolder.load(folder) if folder is not None else ReleasedFolder([], {}, {})
    keys = {name: state_keys(description) for name, description in released.descriptions.items()}
    unused = {key: tensor for state in released.unused.values() for key, tensor in state.items()}
    names = [name for names in keys.values() for name in names]
    tensors = to_torch(llama.rows(network), checkpoint.open_arrays(directory, expected), unused, names)
    if folder is not None and keys:
        check_keys(folder, names, tensors)
    shards = keys or hf_weights.default_shards(tensors)
    generation = stored.get("generation", {})
    return StoredLlm(source, network, variant, tokenizer, vocabulary, tensors, shards, released.files, generation)


def plan_llm_export(source: pathlib.Path) -> Job:
    """Plan the export of the language model of a checkpoint directory or of a training run's step.

    Raises:
        CheckpointError, ConversionError: as `open_stored_llm`.
    """
    opened = open_stored_llm(source)
    place = f"{LM_FOLDER}/{MODEL_FOLDERS.get(opened.variant or '', 'spirit-lm')}"

    def write(staged: pathlib.Path, progress: Progress) -> None:
        (staged / place).mkdir(parents=True)
        opened.write(staged / place, progress)

    size = sum(nbytes(tensor) for tensor in opened.tensors.values())
    return Job("llm", source, place, len(opened.tensors), size, (), write)
