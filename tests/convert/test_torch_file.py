"""The readers and writers of weight files, compared with PyTorch and safetensors. Everything is equal bit for bit."""

import collections
import io
import json
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch

from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.formats.arrays import LazyArray
from spirit_jax.convert.formats.safetensors_file import load_safetensors, save_safetensors
from spirit_jax.convert.formats.torch_file import load_torch, save_torch
from spirit_jax.convert.formats.unpickle import PickledObject
from tests.support.goldens import golden

GOLDEN_FILES = sorted(
    path.relative_to(golden(""))
    for folder in ("checkpoints", "variants")
    for suffix in ("pt", "bin")
    for path in golden(folder).rglob(f"*.{suffix}")
)


def check(found, expected, where=""):
    """Compare a file that was read here with PyTorch's reading: containers, order, types, shapes and bytes."""
    if isinstance(expected, torch.Tensor):
        assert str(expected.dtype) == f"torch.{found.dtype}", where
        assert tuple(expected.shape) == found.shape, where
        raw = expected.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        assert np.ascontiguousarray(found).reshape(-1).view(np.uint8).tobytes() == raw.tobytes(), where
    elif isinstance(expected, dict):
        assert type(found) is type(expected), where
        assert list(found) == list(expected), where
        for key in expected:
            check(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, (list, tuple)):
        assert type(found) is type(expected), where
        assert len(found) == len(expected), where
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            check(one, other, f"{where}[{i}]")
    else:
        assert found == expected, where
        assert type(found) is type(expected), where


def odd_tree():
    base = torch.arange(60, dtype=torch.float32).reshape(3, 4, 5)
    return {
        "shared": base,
        "strided": base[1:, ::2, 1:4].transpose(0, 2),
        "expanded": torch.tensor([1.5]).expand(4),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(2, 2, generator=torch.Generator().manual_seed(0))),
        "types": [
            torch.arange(-3, 5).to(getattr(torch, name))
            for name in "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool".split()
        ],
        "plain": collections.OrderedDict(a=None, b=(True, False, 1.5, -(2**40), 2**200, "\u00e9\n"), c=[{}, [], ()]),
        3: "an integer key",
    }


@pytest.mark.parametrize("name", GOLDEN_FILES, ids=str)
def test_released_files_read_as_torch_reads_them(name, tmp_path):
    expected = torch.load(golden(name), weights_only=True)
    check(load_torch(golden(name)), expected)
    torch.save(expected, tmp_path / "legacy", _use_new_zipfile_serialization=False)
    check(load_torch(tmp_path / "legacy"), expected)


@pytest.mark.parametrize("zipped", [True, False])
def test_odd_tensors_and_containers_read_as_torch_reads_them(zipped, tmp_path):
    torch.save(odd_tree(), tmp_path / "file", _use_new_zipfile_serialization=zipped)
    found = load_torch(tmp_path / "file")
    check(found, torch.load(tmp_path / "file", weights_only=True))
    assert not found["shared"].flags.writeable
    assert np.shares_memory(found["shared"], found["strided"])


def test_torch_loads_a_written_file(tmp_path):
    torch.save(odd_tree(), tmp_path / "source")
    tree = load_torch(tmp_path / "source")
    tied = np.ones((2, 3), ml_dtypes.bfloat16)
    tree |= {"one": tied, "two": tied, "late": LazyArray((2,), np.dtype(np.int16), lambda: np.array([4, 5], np.int16))}
    save_torch(tmp_path / "written", tree)
    for mmap in (False, True):
        loaded = torch.load(tmp_path / "written", weights_only=True, mmap=mmap)
        check(tree | {"late": np.array([4, 5], np.int16)}, loaded)
    assert loaded["one"].untyped_storage().data_ptr() == loaded["two"].untyped_storage().data_ptr()
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_an_interrupted_write_leaves_no_file(tmp_path):
    def fail():
        raise KeyboardInterrupt

    late = LazyArray((2,), np.dtype(np.float32), fail)
    for save in (save_torch, save_safetensors):
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path / "file", {"a": np.zeros(3, np.float32), "b": late})
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- malicious and damaged files


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def zip_of(pickled: bytes, path: pathlib.Path) -> pathlib.Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
    return path


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_by_name_and_does_not_run(zipped, protocol, tmp_path):
    payload = pickle.dumps({"weight": Hostile(str(tmp_path / "ran"))}, protocol)
    if zipped:
        path = zip_of(payload, tmp_path / "file")
    else:
        head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
        path = tmp_path / "file"
        path.write_bytes(b"".join([*head, payload, pickle.dumps([], 2)]))
    with pytest.raises(
        ConversionError, match=r"file: the file asks for (posix|nt|os)\.mkdir, which is neither .* refused"
    ):
        load_torch(path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(payload)  # pickle itself runs the payload
    assert (tmp_path / "ran").exists()


G, T = pickle.GLOBAL, pickle.TUPLE


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"(S'id'\nios\nsystem\n.", "INST"),
        (b"(cos\nsystem\nS'id'\no.", r"os\.system"),
        (b"\x82\x01.", "EXT1"),
        (b"c__builtin__\neval\n(S'1'\ntR.", r"__builtin__\.eval"),
        (b"ctorch.storage\n_load_from_bytes\n(S'1'\ntR.", r"torch\.storage\._load_from_bytes"),
        (b"\x8c\x02os\x8c\x06system\x93.", r"os\.system"),
        (b"S'collections.OrderedDict'\n)R.", "_Global expected"),  # a string is not a name to call
        (b"ccollections\nOrderedDict\n)R}S'__class__'\nS'x'\nsb.", None),  # state of a dict is ignored, not set
        (b"ctorch\nFloatStorage\n)R.", "calls torch.FloatStorage"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(S'x'\nI0\n(I1\nt(I1\nttR.", "damaged"),
        (b"ccollections\nOrderedDict\nccollections\nOrderedDict\nb.", "OrderedDict expected"),
        (b"]q\x00h\x05.", "KeyError"),
        (b"0.", "IndexError"),
        (b"}", "pickle"),
    ],
)
def test_opcodes_that_could_run_or_change_anything_are_refused(program, message, tmp_path):
    path = zip_of(program, tmp_path / "file")
    if message is None:
        assert load_torch(path) == {}
        return
    with pytest.raises(ConversionError, match=message):
        load_torch(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 9}, "has 32 bytes, 36 expected"),
        ({"shape": (9,), "stride": (1,)}, r"shape \[9\] reaches outside its storage of 8"),
        ({"shape": (3, 3), "stride": (3, 1)}, "reaches outside"),
        ({"offset": 1}, "reaches outside"),
        ({"offset": -1}, "offset -1"),
        ({"stride": (-1,)}, "strides"),
        ({"stride": (1, 1)}, "strides"),
        ({"key": "../../data.pkl"}, "'../../data.pkl' is missing"),
    ],
)
def test_tensors_that_reach_outside_their_data_are_refused(change, message, tmp_path):
    facts = {"key": "0", "size": 8, "offset": 0, "shape": (8,), "stride": (1,)} | change
    stream = io.BytesIO()

    class Storage:
        pass

    class Pickler(pickle._Pickler):
        def persistent_id(self, value):
            return "PERSISTENT" if isinstance(value, Storage) else None

    def dump(value):
        return pickle.dumps(value, 2)[2:-1]

    stream.write(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((" + dump("storage") + b"ctorch\nFloatStorage\n")
    stream.write(dump(facts["key"]) + dump("cpu") + dump(facts["size"]) + b"tQ")
    stream.write(dump(facts["offset"]) + dump(facts["shape"]) + dump(facts["stride"]) + dump(False) + b"NtR.")
    path = tmp_path / "file"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", stream.getvalue())
        archive.writestr("archive/data/0", np.arange(8, dtype=np.float32).tobytes())
    with pytest.raises(ConversionError, match=message):
        load_torch(path)


def test_a_compressed_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "file", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2) * 50)
    with pytest.raises(ConversionError, match=r"archive/data\.pkl is compressed"):
        load_torch(tmp_path / "file")


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_a_file_cut_short_anywhere_is_an_error(form, tmp_path):
    tensors = {"weight": torch.arange(40.0).reshape(4, 10), "bias": torch.ones(3)}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    if form == "safetensors":
        safetensors.torch.save_file(tensors, whole)
    else:
        torch.save(tensors, whole, _use_new_zipfile_serialization=form == "zip")
    load = load_safetensors if form == "safetensors" else load_torch
    content = whole.read_bytes()
    assert list(load(whole))
    for length in [*range(0, len(content), 41), len(content) - 1]:
        cut.write_bytes(content[:length])
        with pytest.raises(ConversionError, match="cut"):
            load(cut)


def test_fairseq_objects_become_pickled_objects(tmp_path):
    namespace = b"cargparse\nNamespace\n)\x81}X\x02\x00\x00\x00lrG?\xe0\x00\x00\x00\x00\x00\x00sb"
    payload = b"\x80\x02}(X\x04\x00\x00\x00args" + namespace + b"u."
    assert load_torch(zip_of(payload, tmp_path / "file")) == {"args": PickledObject("argparse.Namespace", {"lr": 0.5})}


# ---------------------------------------------------------------- safetensors


def test_safetensors_are_read_and_written_as_the_official_library_does(tmp_path):
    expected = {f"t{i}": tensor for i, tensor in enumerate(odd_tree()["types"])}
    expected |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}
    safetensors.torch.save_file(expected, tmp_path / "source")
    found = load_safetensors(tmp_path / "source")
    save_safetensors(tmp_path / "written", found)
    back = safetensors.torch.load_file(tmp_path / "written")
    assert found.keys() == expected.keys() == back.keys()
    for name in expected:
        check(found[name], expected[name])
        check(found[name], back[name])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"data_offsets": [0, 16]}, "bytes 0 to 16 of 12"),
        ({"data_offsets": [8, 4]}, "bytes 8 to 4"),
        ({"data_offsets": [-4, 8]}, "bytes -4 to 8"),
        ({"shape": [4]}, "takes 16 bytes, 12 found"),
        ({"shape": [2**62, 8]}, "takes .* 12 found"),
        ({"shape": [-3]}, r"a list of sizes expected, \[-3\] found"),
        ({"dtype": "F99"}, "unknown dtype F99"),
        ({"extra": 1}, "extra"),
    ],
)
def test_safetensors_entries_are_checked(entry, message, tmp_path):
    header = json.dumps({"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]} | entry}).encode()
    (tmp_path / "file").write_bytes(struct.pack("<Q", len(header)) + header + bytes(12))
    with pytest.raises(ConversionError, match=message):
        load_safetensors(tmp_path / "file")


def test_conversion_needs_no_torch():
    code = (
        "import sys; import spirit_jax.convert.command; "
        "sys.exit(any(name.split('.')[0] in ('torch', 'transformers') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
