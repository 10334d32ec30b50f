"""Plans the import of a Hugging Face Llama: a released Spirit LM, or a plain Llama that is extended for speech."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spirit_jax import checkpoint, config
from spirit_jax.convert import extend_vocabulary, tokenizer_files
from spirit_jax.convert.components import llama
from spirit_jax.convert.errors import ConversionError, UsageError, reading
from spirit_jax.convert.formats import hf_weights, orbax_file
from spirit_jax.convert.formats.arrays import Progress, ReadableArray, nbytes
from spirit_jax.convert.jobs import Job
from spirit_jax.convert.released_folder import ReleasedFolder, carried_files, describe
from spirit_jax.convert.table import to_jax
from spirit_jax.core.checksums import write_checksums
from spirit_jax.core.files import read_json, write_file
from spirit_jax.models.llama import LlamaConfig
from spirit_jax.vocabulary import PlainTokenizerError, Variant, Vocabulary

_SEALED_APART = (checkpoint.TOKENIZER, checkpoint.SPEECH_TOKENIZER)
"""Directories of a checkpoint whose parts have checksums of their own."""


@dataclass(frozen=True)
class _ImportedLlm:
    """A Llama, checked and mapped. Its tensors are read when they are used."""

    folder: pathlib.Path
    config: dict[str, Any]
    """The config.json of the checkpoint directory."""
    arrays: dict[str, ReadableArray]
    vocabulary: Vocabulary | None
    """The tokenizer beside the Llama; None without one."""
    rest: ReleasedFolder | None
    """Description from which an export writes the released files back; None for an extended Llama, which has none."""

    def write(self, staged: pathlib.Path, progress: Progress) -> None:
        """Write the checkpoint's `llm/`, `config.json`, `tokenizer/` and `released/` into an existing directory."""
        orbax_file.add_llm(staged, self.arrays, progress)
        write_file(staged / checkpoint.CONFIG, json.dumps(self.config, indent=1) + "\n")
        target = staged / checkpoint.TOKENIZER
        if self.vocabulary is not None and self.vocabulary.is_plain:
            tokenizer_files.write_tokenizer(self.folder, target, self.vocabulary.variant)
        elif self.vocabulary is not None:
            tokenizer_files.copy_tokenizer(self.folder, target)
        if target.is_dir():
            write_checksums(target)
        if self.rest is not None:
            self.rest.save(staged)
        own = [path for path in staged.rglob("*") if path.relative_to(staged).parts[0] not in _SEALED_APART]
        write_checksums(staged, names=[str(path.relative_to(staged)) for path in own if path.is_file()])


def plan_llm_import(folder: pathlib.Path, model: Variant | None) -> Job:
    """Plan the import of a Hugging Face Llama directory.

    Args:
        model: the variant to extend a plain Llama to; None for a released Spirit LM.

    Raises:
        UsageError: a plain Llama without `model`, or `model` differs from the tokenizer's variant.
        ConversionError: a Llama that `models.llama` does not implement, or weights that do not fit its config.
    """
    released_config = read_json(folder / "config.json", ConversionError)
    network = llama.from_hf_config(released_config, f"{folder}/config.json")
    tensors, shards = hf_weights.load_weights(folder)
    with reading(folder / "config.json", "the config of a Llama"):
        shapes = llama.shapes(network)
    arrays, unused = to_jax(llama.rows(network), tensors, shapes, str(folder))
    vocabulary = _read_vocabulary(folder, model)
    stored: dict[str, Any] = {"variant": model}
    notes: list[str] = []
    if vocabulary is not None:
        stored = {"variant": vocabulary.variant, "vocabulary": vocabulary.fingerprint}
        _check_embedding(folder, network, vocabulary)
    if vocabulary is not None and vocabulary.is_plain:
        known, size = vocabulary.text_size, vocabulary.padded_size
        extend_vocabulary.check_unused_rows(arrays["embed_tokens"], vocabulary, folder)
        arrays = extend_vocabulary.extend_arrays(arrays, known, size)
        network = dataclasses.replace(network, vocab_size=size)
        rest = None
        notes.append(f"vocabulary extended from {known} to {size}")
        if left_out := tokenizer_files.other_tokens(folder, known):
            notes.append(f"added tokens are left out, because speech tokens take their ids: {', '.join(left_out)}")
    else:
        # An index of weights in the format that is not carried would name files that are not there.
        stem = "model." if next(iter(shards)).endswith(".safetensors") else "pytorch_model."
        left_out = {*shards, *(name for name in hf_weights.WEIGHT_NAMES if not name.startswith(stem))}
        if vocabulary is not None:
            left_out |= {*tokenizer_files.TOKENIZER_FILES}
        files, left_behind = carried_files(folder, but=left_out)
        notes += left_behind
        descriptions = {name: describe(state := dict.fromkeys(keys), state) for name, keys in shards.items()}
        unused_by_file = {name: {key: unused[key] for key in keys if key in unused} for name, keys in shards.items()}
        rest = ReleasedFolder(files, descriptions, unused_by_file)
    if vocabulary is None:
        notes.append(f"no tokenizer in {folder}: put one into {checkpoint.TOKENIZER}/ before use")
    stored["model"] = config.to_dict(network)
    if (folder / llama.GENERATION_CONFIG).is_file():
        stored["generation"] = read_json(folder / llama.GENERATION_CONFIG, ConversionError)
        if not isinstance(stored["generation"], dict):
            raise ConversionError(f"{folder / llama.GENERATION_CONFIG}: an object of sampling settings expected")
    if vocabulary is not None:
        notes += _keep_ends(released_config, stored, vocabulary)
    imported = _ImportedLlm(folder, stored, {**arrays}, vocabulary, rest)
    size = sum(nbytes(array) for array in arrays.values())
    return Job("llm", folder, checkpoint.LLM, len(tensors), size, notes, imported.write)


def _read_vocabulary(folder: pathlib.Path, model: Variant | None) -> Vocabulary | None:
    """The tokenizer of a Llama, None if there is none. A plain text tokenizer is to be extended to `model`."""
    if not any((folder / name).is_file() for name in tokenizer_files.MODEL_FILES):
        return None
    try:
        found = Vocabulary.load(folder)
    except PlainTokenizerError as error:
        if model is None:
            raise UsageError(f"{error}; on this command line: --model base or --model expressive") from error
        return Vocabulary.load(folder, model)
    if model not in (None, found.variant):
        raise UsageError(f"--model {model}: the tokenizer in {folder} is Spirit LM {found.variant}'s")
    return found


def _keep_ends(released_config: Mapping[str, Any], stored: dict[str, Any], vocabulary: Vocabulary) -> list[str]:
    """Store at which ids answers end besides the tokenizer's, such as those of a Llama 3 Instruct; and a note of them.

    They are in generation_config.json, or in config.json where that names none, as in transformers. An id that was a
    text token, and is a speech token now, ends nothing.
    """
    named = checkpoint.end_ids(stored.get("generation", {}), released_config)
    kept = [index for index in named if index < vocabulary.text_size]
    notes = []
    if lost := [index for index in named if index >= vocabulary.text_size]:
        notes.append(f"answers do not end at the ids {', '.join(map(str, lost))}, which are not text tokens here")
    if others := sorted({*kept} - {vocabulary.eos_id}):
        notes.append(f"answers also end at the ids {', '.join(map(str, others))}")
    if lost or (others and not checkpoint.end_ids(stored.get("generation", {}))):
        stored["generation"] = stored.get("generation", {}) | {"eos_token_id": kept or vocabulary.eos_id}
    return notes


def _check_embedding(folder: pathlib.Path, network: LlamaConfig, vocabulary: Vocabulary) -> None:
    """Check that the embedding has a row for each token that the tokenizer's files hold."""
    needed, what = (vocabulary.text_size, "pieces") if vocabulary.is_plain else (vocabulary.size, "tokens")
    if network.vocab_size < needed:
        raise ConversionError(f"{folder}: {network.vocab_size} rows in the embedding, {needed} {what} in the tokenizer")
