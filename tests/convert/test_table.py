"""Mapping tables: where values land, how an export inverts an import, and what stops a conversion."""

import numpy as np
import pytest

from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.formats.arrays import same_bits
from spirit_jax.convert.layout import Layout
from spirit_jax.convert.table import Kept, Row, Same, to_jax, to_torch

ROWS = (
    Row("layers.{l}.attn.{p:q,k,v}_proj.weight", "layers/qkv", "l p (n h) d -> l d p n h"),
    Row("layers.{l}.fc.weight", "layers/fc/kernel", "l f d -> l d f"),
    Row("convs.{i}.0.weight", "conv_{i}/kernel", "o i k -> k i o"),
    Row(("pos.weight_g", "pos.parametrizations.weight.original0"), "pos/gain", "1 1 k -> k"),
    Row("embed.weight", "embed", "v d -> v d"),
    Same("head.weight", "embed.weight"),
    Kept("mask_emb"),
    Kept("*.num_batches_tracked"),
)
SHAPES = {
    "layers/qkv": (3, 8, 3, 2, 5),
    "layers/fc/kernel": (3, 8, 11),
    "conv_0/kernel": (10, 1, 4),
    "conv_1/kernel": (3, 4, 6),
    "pos/gain": (7,),
    "embed": (13, 8),
}


def tensors(rng=None):
    rng = rng or np.random.default_rng(0)
    shapes = {f"layers.{layer}.attn.{p}_proj.weight": (10, 8) for layer in range(3) for p in "qkv"}
    shapes |= {f"layers.{layer}.fc.weight": (11, 8) for layer in range(3)}
    shapes |= {"convs.0.0.weight": (4, 1, 10), "convs.1.0.weight": (6, 4, 3)}
    shapes |= {"pos.parametrizations.weight.original0": (1, 1, 7), "embed.weight": (13, 8), "mask_emb": (8,)}
    result = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return result | {"head.weight": result["embed.weight"].copy(), "norm.num_batches_tracked": np.array(7, np.int64)}


def test_values_land_where_the_layout_says_and_an_export_inverts_the_import():
    source = tensors()
    found, kept = to_jax(ROWS, source, SHAPES, "FILE")
    assert {path: array.shape for path, array in found.items()} == SHAPES
    arrays = {path: np.asarray(array) for path, array in found.items()}
    qkv = arrays["layers/qkv"]
    # By hand: query, key and value of layer 2; row n * 5 + h of the PyTorch tensor is head n, feature h.
    for p, letter in enumerate("qkv"):
        expected = source[f"layers.2.attn.{letter}_proj.weight"]
        for n, h in np.ndindex(2, 5):
            np.testing.assert_array_equal(qkv[2, :, p, n, h], expected[n * 5 + h])
    np.testing.assert_array_equal(arrays["conv_1/kernel"][2, 3], source["convs.1.0.weight"][:, 3, 2])
    np.testing.assert_array_equal(arrays["pos/gain"], source["pos.parametrizations.weight.original0"][0, 0])
    assert sorted(kept) == ["mask_emb", "norm.num_batches_tracked"]
    back = to_torch(ROWS, arrays, kept, list(source))
    assert list(back) == list(source)
    assert all(same_bits(back[name], source[name]) for name in source)


def test_export_without_a_released_file_uses_the_first_names():
    arrays, _ = to_jax(ROWS, tensors(), SHAPES, "FILE")
    names = to_torch(ROWS, {path: np.asarray(array) for path, array in arrays.items()})
    assert "pos.weight_g" in names
    assert "head.weight" not in names


def test_every_mismatch_is_listed_by_name():
    source = tensors()
    del source["layers.1.attn.k_proj.weight"]
    source["layers.3.fc.weight"] = source["layers.0.fc.weight"]
    source["convs.1.0.weight"] = source["convs.1.0.weight"][:, :, :2]
    source["head.weight"] = -source["head.weight"]
    with pytest.raises(ConversionError) as error:
        to_jax(ROWS, source, SHAPES, "some/file.pt")
    lines = str(error.value).splitlines()
    assert lines[0] == "some/file.pt does not match the component (4 tensors):"
    assert sorted(line.strip() for line in lines[1:]) == [
        "different head.weight: should equal embed.weight, to which it is tied",
        "mis-shaped convs.1.0.weight: expected [6, 4, 3], found [6, 4, 2]",
        "missing layers.1.attn.k_proj.weight: expected [10, 8]",
        "unused layers.3.fc.weight: [11, 8] is in no row of the table",
    ]


def test_both_names_of_one_tensor_are_refused():
    source = tensors()
    source["pos.weight_g"] = source["pos.parametrizations.weight.original0"]
    with pytest.raises(ConversionError, match=r"2 names of one tensor: pos.weight_g or pos.parametrizations"):
        to_jax(ROWS, source, SHAPES, "FILE")


def test_a_jax_array_without_a_row_is_an_error():
    with pytest.raises(ConversionError, match=r"the JAX array extra/bias \[2\] is named by 0 rows"):
        to_jax(ROWS, tensors(), SHAPES | {"extra/bias": (2,)}, "FILE")


def test_a_layout_that_groups_axes_of_the_jax_array_is_refused():
    with pytest.raises(ValueError, match=r"the sizes of \['a', 'b'\] are not known"):
        Layout.parse("a b -> (a b)").sizes((6,))


@pytest.mark.parametrize("text", ["a b -> a", "a a -> a a", "a b", "a b -> a c"])
def test_layouts_that_lose_an_axis_are_refused(text):
    with pytest.raises(ValueError, match="same axes"):
        Layout.parse(text)
