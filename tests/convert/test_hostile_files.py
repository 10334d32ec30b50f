"""Hostile weight files and configs are refused in a line and in bounded time and memory; nothing in them is run."""

import io
import json
import pickle
import shutil
import struct
import zipfile

import numpy as np
import pytest
import torch

from spirit_jax.convert.components.hubert import conv_feature_layers
from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.formats.numpy_pickle import load_centers
from spirit_jax.convert.formats.safetensors_file import load_safetensors
from spirit_jax.convert.formats.torch_file import load_torch
from spirit_jax.convert.formats.unpickle import MAX_DEPTH
from spirit_jax.convert.part_import import import_part
from spirit_jax.convert.parts import RELEASED_PARTS
from tests.support.trees import SPEECH


def torch_file(program, path, **data):
    """A PyTorch zip archive with this pickle and these tensor data."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        for key, content in data.items():
            archive.writestr(f"archive/data/{key.lstrip('_')}", content)
    return path


def doubled(times, leaf=b")"):
    """A pickle that leaves a tuple on its stack whose size doubles with every byte or two."""
    program = leaf + b"q\x000"
    for i in range(times):
        program += b"h%ch%c\x86q%c0" % (i, i, i + 1)
    return program + b"h%c" % times


DEEP, BOMB = b")" + b"\x85" * 100_000, doubled(60)
LONG_TEXT = b"X" + struct.pack("<I", 2**20) + b"a" * 2**20 + b"q\x000" + b"(" + b"h\x00" * 1000 + b"l"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        pytest.param(b"}" + DEEP + b"Ns.", "a tuple as a key", id="deep key"),
        pytest.param(b"}X\x01\x00\x00\x00a" + DEEP + b"s.", f"nested more than {MAX_DEPTH}", id="deep tuple"),
        pytest.param(b"]" * 50_000 + b"a" * 49_999 + b".", f"nested more than {MAX_DEPTH}", id="deep list"),
        pytest.param(b"]q\x00h\x00a.", "hold themselves", id="cyclic list"),
        pytest.param(b"}q\x00X\x01\x00\x00\x00ah\x00s.", "hold themselves", id="cyclic dict"),
        pytest.param(
            b"cargparse\nNamespace\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb.", "hold themselves", id="cyclic object"
        ),
        pytest.param(b"}" + BOMB + b"Ns.", "a tuple as a key", id="hash bomb"),
        pytest.param(b"\x8f(" + BOMB + b"\x90.", "a tuple as a key", id="set bomb"),
        pytest.param(
            b"ccollections\nOrderedDict\n](" + BOMB + b"Nl" + b"a\x85R.", "values when written out", id="pairs bomb"
        ),
        pytest.param(b"(" + BOMB + b"tQ.", "values when written out", id="repr bomb"),
        pytest.param(BOMB + b"ctorch\nFloatStorage\n\x93.", "str expected", id="name bomb"),
        pytest.param(
            b"c_codecs\nencode\n(X\x01\x00\x00\x00a" + BOMB + b"tR.", "values when written out", id="encoding bomb"
        ),
        pytest.param(b"cnumpy\ndtype\n" + BOMB + b"\x85R.", "values when written out", id="dtype bomb"),
        pytest.param(BOMB + b".", "values when written out", id="config bomb"),
        pytest.param(LONG_TEXT + b".", "characters when written out", id="text bomb"),
        pytest.param(b"\x8e" + struct.pack("<Q", 2**62) + b"a.", "damaged or cut short", id="BINBYTES8"),
        pytest.param(b"\x8d" + struct.pack("<Q", 2**40) + b"a.", "damaged or cut short", id="BINUNICODE8"),
        pytest.param(
            b"\x8b" + struct.pack("<i", 2000) + b"\x7f" * 2000 + b".", "integer of more than 1024 bytes", id="LONG4"
        ),
        pytest.param(b"I" + b"9" * 5000 + b"\n.", "damaged", id="digits"),
        pytest.param(b"cos\n" + b"x" * 10**6 + b"\n.", "refused", id="long name"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["zip", "legacy", "joblib"])
def test_pickles_are_bounded_in_depth_size_and_work(form, program, message, tmp_path):
    path = tmp_path / "file"
    if form == "zip":
        torch_file(b"\x80\x02" + program, path)
    elif form == "joblib":
        path.write_bytes(b"\x80\x02" + program)
    else:
        head = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
        path.write_bytes(b"".join([*head, b"\x80\x02" + program, pickle.dumps([], 2)]))
    if form == "joblib":  # it knows fewer names
        message = "refused|damaged"
    with pytest.raises(ConversionError, match=message) as caught:
        (load_centers if form == "joblib" else load_torch)(path)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def test_tensors_are_not_far_larger_than_their_file_when_written_out(tmp_path):
    """A stride of zero repeats one element, and many tensors may share their data."""
    huge = torch.zeros(1).expand(2**40)
    torch.save({"mask_emb": huge}, tmp_path / "one")
    shared = torch.zeros(2**20)
    torch.save({str(i): shared.view(2**20) for i in range(100)}, tmp_path / "many")
    for name in ("one", "many"):
        with pytest.raises(ConversionError, match="far larger than the file"):
            load_torch(tmp_path / name)
    beyond = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000NK\x02tQ"
    )
    beyond += b"K\x00K\x01\x85\x8a\x0a" + (2**75).to_bytes(10, "little") + b"\x85\x89NtR."
    with pytest.raises(ConversionError, match="strides"):
        load_torch(torch_file(b"\x80\x02" + beyond, tmp_path / "stride", _0=bytes(8)))


@pytest.mark.parametrize("place", ["tensor", "pickle"])
def test_a_flipped_bit_in_a_zip_archive_is_found_by_its_checksum(place, tmp_path):
    path = tmp_path / "file"
    torch.save({"weight": torch.arange(1000.0)}, path)
    content = bytearray(path.read_bytes())
    wanted = np.float32(777).tobytes() if place == "tensor" else b"weight"
    content[bytes(content).index(wanted)] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConversionError, match="is damaged .CRC-32 .* expected.; get the file again"):
        load_torch(path)
    if place == "tensor":
        assert load_torch(path, check_content=False)["weight"][777] != 777


def test_an_archive_without_checksums_is_read(tmp_path):
    """PyTorch has an option to write none."""
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"weight": torch.arange(5.0)}, tmp_path / "file")
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_torch(tmp_path / "file")["weight"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("change", ["twice", "version", "overlap"])
def test_odd_archives_are_refused(change, tmp_path):
    path = torch_file(pickle.dumps({}, 2), tmp_path / "file")
    if change == "twice":
        with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("archive/data.pkl", pickle.dumps([], 2))
    elif change == "overlap":  # every entry of the directory names the same large member
        torch_file(pickle.dumps({}, 2), path, **{f"{i:05}": bytes(10) for i in range(99)}, _big=bytes(10**5))
        content = path.read_bytes()
        at, begin = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
        size = struct.pack("<II", 10**5, 10**5)
        entries = [b"PK\x01\x02" + part for part in content[at:begin].split(b"PK\x01\x02")[1:]]
        path.write_bytes(content[:at] + b"".join(part[:20] + size + part[28:] for part in entries) + content[begin:])
    else:
        content = bytearray(path.read_bytes())
        content[content.index(b"PK\x01\x02") + 6] = 99  # a version that no reader knows
        path.write_bytes(content)
    with pytest.raises(ConversionError, match="there twice|version 9.9|overlap"):
        load_torch(path)


def npy(header, data=b""):
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976, 4)}"),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000,)}", bytes(8)),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", pickle.dumps([1])),
        npy("{'descr': '|V1000000', 'fortran_order': False, 'shape': (0,)}"),
        npy("(" * 110),
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (9" + "9" * 30 + ",)}"),
        b"\x93NUMPY\x03\x00\xff\xff\xff\xff",
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b"(" * 20000,
    ],
)
def test_npy_headers_are_checked_before_anything_is_allocated(content, tmp_path):
    (tmp_path / "km.npy").write_bytes(content)
    with pytest.raises(ConversionError, match=r"km\.npy: not k-means centroids"):
        load_centers(tmp_path / "km.npy")


def safetensors_file(header, body, path):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def entry(start, end, shape=None, dtype="F32"):
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[" * 100_000, "nested"),
        (b'{"a":' * 100_000, "nested"),
        ({"a": entry(0, 12), "b": entry(8, 16)}, "'b': begins at byte 8, the tensor before it ends at 12"),
        ({"a": entry(0, 16), "b": entry(0, 16)}, "'b': begins at byte 0"),
        ({"a": entry(4, 16)}, "'a': begins at byte 4"),
        ({"a": entry(0, 12)}, "end at byte 12 of 16"),
        ({"a": entry(0, 16, [2**40, 0, 2**40])}, "takes 0 bytes, 16 found"),
        ({"a": entry(0, 16, [4] * 1000)}, "a list of sizes expected"),
        ({"a": entry(0, 16, [2**70])}, "a list of sizes expected"),
        ({"a": [1]}, "not a safetensors file"),
        ([], "not a safetensors file"),
        ({"a": entry(0, 16, dtype="F8_E4M3")}, "8-bit floats are not supported: save the weights as bfloat16"),
    ],
)
def test_safetensors_headers_are_bounded_and_entries_do_not_overlap(header, message, tmp_path):
    with pytest.raises(ConversionError, match=message):
        load_safetensors(safetensors_file(header, bytes(16), tmp_path / "file"))


def test_weight_files_are_regular_files(tmp_path):
    for path in ("/dev/zero", tmp_path):
        with pytest.raises(ConversionError, match="a regular file is needed"):
            load_torch(path)


@pytest.mark.parametrize(
    "text",
    ["[(1,1,1)] * 99 * 99 * 99 * 99", "(" * 5000, "-" * 900 + "1", "[(1,1,1)]" + "+ [(1,1,1)]" * 5000, 7, {"a": 1}],
)
def test_a_bomb_in_hubert_s_layers_is_refused(text):
    with pytest.raises(ConversionError, match="conv_feature_layers"):
        conv_feature_layers(text)


PITCH, VOCODER = RELEASED_PARTS[1], RELEASED_PARTS[3]
LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(25)
)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LAUGHS, "alias"),
        ("a: " + "[" * 5000, "not YAML"),
        ("a: 2001-99-99\n", "not YAML"),
        ("x: y\n" * 250_000, "1250000 bytes"),
        ("- 1\n", "the config of a released part"),
        ("features: [a]\n", "features"),
    ],
)
def test_bombs_in_a_yaml_config_are_refused(config, message, tmp_path):
    folder = tmp_path / PITCH.folder
    shutil.copytree(SPEECH / PITCH.folder, folder)
    (folder / "config.yaml").write_text(config)
    with pytest.raises(ConversionError, match=message) as caught:
        import_part(PITCH, folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"num_embeddings": 10**30},
        {"num_embeddings": "500"},
        {"upsample_rates": 5},
        {"upsample_rates": [2] * 5000, "upsample_kernel_sizes": [4] * 5000},
        {"resblock_dilation_sizes": [[1]] * 9999},
        {"dur_predictor_params": []},
        {"dur_predictor_params": 3},
        {"upsample_initial_channel": -4},
        {"embedding_dim": None},
    ],
)
def test_sizes_in_a_config_are_bounded(change, tmp_path):
    folder = tmp_path / VOCODER.folder
    shutil.copytree(SPEECH / VOCODER.folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ConversionError, match=str(folder)):
        import_part(VOCODER, folder)


def test_the_depth_of_a_plain_checkpoint_is_no_limit(tmp_path):
    value = "leaf"
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    stream = io.BytesIO(pickle.dumps(value, 2))
    found = load_torch(torch_file(stream.getvalue(), tmp_path / "file"))
    assert found == value
