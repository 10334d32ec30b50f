"""Mutated files of every format: a reader gives the right value, or its own error in one line, in bounded time."""

import copy
import io
import json
import shutil
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from sklearn.cluster import MiniBatchKMeans

from spirit_jax import checkpoint, config
from spirit_jax.convert.components import llama
from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.formats import hf_weights
from spirit_jax.convert.formats.numpy_pickle import load_centers
from spirit_jax.convert.formats.orbax_file import save_llm
from spirit_jax.convert.formats.safetensors_file import load_safetensors, save_safetensors
from spirit_jax.convert.formats.torch_file import load_torch
from spirit_jax.convert.part_import import import_part
from spirit_jax.convert.parts import RELEASED_PARTS
from spirit_jax.convert.released_folder import ReleasedFolder, rebuild, state_keys
from spirit_jax.core.checksums import CHECKSUMS, check_seal, write_checksums
from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import read_json
from spirit_jax.models.llama import LlamaConfig
from spirit_jax.units import SpeechUnits
from spirit_jax.vocabulary import Vocabulary, added_tokens
from tests.support.goldens import golden
from tests.support.mutations import byte_mutations, json_mutations
from tests.support.tokenizers import plain_byte_level
from tests.support.trees import SPEECH

SECONDS = 5.0
"""Bound on the time of one input on a busy machine; most take a millisecond."""


@dataclass(frozen=True)
class Reader:
    """A reader under test."""

    make: Callable[[Path], Path]
    """Makes an intact file in a folder and returns its path."""
    read: Callable[[Path], Any]
    """Reads that file, whose content changed."""
    count: int
    mutate: Callable[[bytes, int, int], Iterator[bytes]] = byte_mutations
    check: Callable[[Any, Any], None] = lambda found, intact: None
    """Checks the value that was read, given that of the intact file."""


def same_tensors(found, intact):
    assert list(found) == list(intact)
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor, intact[name])


def listed_tensors(found, intact):
    """Those of the shards that the index names; a network that misses a tensor says so."""
    same_tensors(found, {name: tensor for name, tensor in intact.items() if name in found})


def only_plain_values(found, intact):
    """Nothing but containers, scalars and arrays that lie in the file."""
    if isinstance(found, dict):
        for key, value in found.items():
            only_plain_values(key, None)
            only_plain_values(value, None)
    elif isinstance(found, list | tuple | set):
        for value in found:
            only_plain_values(value, None)
    else:
        kinds = (np.ndarray, str, bytes, bytearray, int, float, bool, type(None))
        assert isinstance(found, kinds) or type(found).__name__ in ("PickledObject", "_Global")


def arrays_within(found, intact):
    assert all(isinstance(name, str) for name in found)
    assert sum(array.nbytes for array in found.values()) <= 2 * sum(array.nbytes for array in intact.values())


def numbers(found, intact):
    assert found.dtype.kind in "biuf"
    assert found.nbytes <= 2 * intact.nbytes


def usable_vocabulary(found, intact):
    """The ids are in range, and those of the special tokens follow the text's."""
    ids = found.encode("[Text]the cat sat: \u5b57\n[Speech][Hu3]")
    assert min(ids) >= 0
    assert max(ids) < found.size
    assert found.decode(ids) is not None
    special = found.encode("".join(added_tokens(found.variant)))
    assert special[len(found.prefix) :] == list(range(found.text_size, found.size))


def write_torch(folder, **options):
    rng = torch.Generator().manual_seed(0)
    state = {f"layer.{i}": torch.randn(3, i + 1, generator=rng) for i in range(3)}
    torch.save(state, folder / "weights.pt", **options)
    return folder / "weights.pt"


def odd_json(content, count, seed):
    """JSON files with hostile values, a fifth of them damaged as text."""
    yield from byte_mutations(content, count // 5, seed)
    for value in json_mutations(json.loads(content), count - count // 5, seed):
        yield json.dumps(value).encode()


def repickled(content, count, seed):
    """PyTorch archives with intact checksums whose pickle is damaged."""
    with zipfile.ZipFile(io.BytesIO(content)) as source:
        members = {name: source.read(name) for name in source.namelist()}
    (pickled,) = (name for name in members if name.endswith("data.pkl"))
    for program in byte_mutations(members[pickled], count, seed):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as target:
            for name, data in members.items():
                target.writestr(name, program if name == pickled else data)
        yield stream.getvalue()


def write_safetensors(folder):
    path = folder / "model.safetensors"
    save_safetensors(path, {f"t{i}": np.arange(4 * i, dtype=np.float32) for i in range(3)})
    return path


def rewritten_header(content, count, seed):
    """Safetensors files whose JSON header is odd."""
    (length,) = struct.unpack_from("<Q", content)
    for header in odd_json(content[8 : 8 + length], count, seed):
        yield struct.pack("<Q", len(header)) + header + content[8 + length :]


def write_npy(folder):
    np.save(folder / "km.npy", np.arange(12, dtype=np.float32).reshape(3, 4))
    return folder / "km.npy"


def write_kmeans(folder):
    points = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    model = MiniBatchKMeans(3, n_init=1, max_iter=2, random_state=0).fit(points)
    joblib.dump(model, folder / "km.bin")  # pyright: ignore[reportArgumentType]
    return folder / "km.bin"


def copied(*names, tree):
    """Copies files of a golden folder and returns the first."""

    def make(folder):
        for name in names:
            shutil.copy(golden(tree) / name, folder / name)
        return folder / names[0]

    return make


def write_index(folder):
    tensors = {f"t{i}": np.full(10, i, np.float32) for i in range(3)}
    hf_weights.save_weights(folder, tensors, {"model-1.safetensors": ["t0"], "model-2.safetensors": ["t1", "t2"]})
    return folder / "model.safetensors.index.json"


def write_arrays(folder):
    checkpoint.save_arrays(folder, {"encoder": {"a": np.ones(3), "b": np.ones((2, 2), np.float32)}})
    return folder / "params.safetensors"


def write_sealed(folder):
    (folder / "file").write_bytes(b"content")
    (folder / "other").write_bytes(b"")
    write_checksums(folder)
    return folder / CHECKSUMS


def write_units(folder):
    (folder / "units").write_text("[St71][Pi39][Hu99][Hu49] [Speech][Pi7][Hu38]")
    return folder / "units"


def within_range(found, intact):
    assert found.hubert.max(initial=0) < 501
    assert found.is_aligned


VOCODER = RELEASED_PARTS[3]


def write_part(folder):
    """An imported part without checksums; its `weights.json` is what changes."""
    import_part(VOCODER, SPEECH / VOCODER.folder).write(folder, lambda _: None)
    (folder / CHECKSUMS).unlink()
    return folder / "released/weights.json"


def describes_weights(found, intact):
    for description in found.descriptions.values():
        tensors = dict.fromkeys(state_keys(description), 0)
        only_plain_values(rebuild(description, tensors), None)


def write_config(folder):
    content = {"model": config.to_dict(LlamaConfig()), "variant": "base", "generation": {"top_p": 0.9}}
    (folder / "config.json").write_text(json.dumps(content))
    return folder / "config.json"


def read_config(path):
    return config.from_dict(LlamaConfig, checkpoint.read_config(path.parent)["model"])


def write_byte_level(folder):
    plain_byte_level(folder)
    return folder / "tokenizer.json"


def write_llm(folder):
    save_llm(folder / "made", {"a/b": np.arange(6, dtype=np.float32), "c": np.ones((2, 3), np.float32)})
    return folder / "made/llm/_METADATA"


def read_llm(path):
    directory = path.parents[1]
    shapes = checkpoint.flatten(checkpoint.stored_tree(directory))
    return {name: np.asarray(array) for name, array in checkpoint.open_arrays(directory, shapes).items()}


READERS = {
    "torch": Reader(write_torch, load_torch, 600, check=same_tensors),
    "torch pickle": Reader(write_torch, load_torch, 500, repickled, only_plain_values),
    "torch legacy": Reader(
        lambda folder: write_torch(folder, _use_new_zipfile_serialization=False),
        load_torch, 500, check=only_plain_values,
    ),
    "safetensors": Reader(write_safetensors, load_safetensors, 300, check=arrays_within),
    "safetensors header": Reader(write_safetensors, load_safetensors, 500, rewritten_header, arrays_within),
    "npy": Reader(write_npy, load_centers, 300, check=numbers),
    "k-means": Reader(write_kmeans, load_centers, 300, check=numbers),
    "config.json": Reader(
        copied("config.json", tree="variants/llama_small_base"),
        lambda path: llama.from_hf_config(read_json(path, ConversionError), str(path)), 500, odd_json,
    ),
    "index": Reader(write_index, lambda path: hf_weights.load_weights(path.parent)[0], 200, odd_json, listed_tensors),
    "tokenizer.model": Reader(
        copied("tokenizer.model", tree="tokenizers/small_base_added"),
        lambda path: Vocabulary.load(path.parent, "base"), 300, check=usable_vocabulary,
    ),
    "extended tokenizer.model": Reader(
        copied("tokenizer.model", tree="tokenizers/small_base_userdef"),
        lambda path: Vocabulary.load(path.parent), 200, check=usable_vocabulary,
    ),
    "tokenizer.json": Reader(
        write_byte_level, lambda path: Vocabulary.load(path.parent, "base"), 300, odd_json, usable_vocabulary
    ),
    "tokenizer_config.json": Reader(
        copied("tokenizer_config.json", "tokenizer.model", tree="tokenizers/small_base_added"),
        lambda path: Vocabulary.load(path.parent, "base"), 100, odd_json, usable_vocabulary,
    ),
    "checkpoint config": Reader(write_config, read_config, 60, odd_json),
    "checksums": Reader(write_sealed, lambda path: check_seal(path.parent, ConversionError), 300, odd_json),
    "arrays": Reader(
        write_arrays, lambda path: checkpoint.flatten(checkpoint.load_arrays(path.parent)), 200, check=arrays_within
    ),
    "arrays header": Reader(
        write_arrays, lambda path: checkpoint.flatten(checkpoint.load_arrays(path.parent)), 300, rewritten_header,
        arrays_within,
    ),
    "llm metadata": Reader(write_llm, read_llm, 60, odd_json, arrays_within),
    "released index": Reader(
        write_part, lambda path: ReleasedFolder.load(path.parent), 300, odd_json, describes_weights
    ),
    "unit string": Reader(
        write_units, lambda path: SpeechUnits.from_string(path.read_bytes().decode("latin-1")), 500, check=within_range
    ),
}  # fmt: skip


def outcome(reader, path):
    """The value that is read, or the message of the reader's own error."""
    try:
        return reader.read(path), None
    except SpiritError as error:
        return None, error.message


@pytest.mark.filterwarnings("ignore:Reading `.npy`")  # NumPy's, on headers of Python 2
@pytest.mark.parametrize("name", READERS)
def test_a_mutated_file_gives_the_right_value_or_one_line(name, tmp_path):
    reader = READERS[name]
    path = reader.make(tmp_path)
    content, intact = path.read_bytes(), copy.deepcopy(reader.read(path))
    refused = 0
    for number, mutated in enumerate(reader.mutate(content, reader.count, 0)):
        path.write_bytes(mutated)
        start = time.monotonic()
        found, message = outcome(reader, path)
        assert time.monotonic() - start < SECONDS, number
        if message is None:
            reader.check(found, intact)
            continue
        refused += 1
        assert "\n" not in message, number
        assert len(message.encode()) < 2000, number
    assert reader.count // 10 <= refused <= reader.count
