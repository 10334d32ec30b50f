"""K-means quantizers beside HuBERT, as published: joblib and plain pickles of scikit-learn models, `.npy` and `.pt`."""

import io
import json
import os
import pathlib
import pickle
import shutil
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans, MiniBatchKMeans

from spirit_jax.audio import load_audio
from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.formats.numpy_pickle import load_centers
from spirit_jax.convert.formats.torch_file import load_torch
from spirit_jax.convert.jobs import run_jobs
from spirit_jax.convert.plans import plan_export, plan_import
from spirit_jax.convert.verification import reference
from spirit_jax.convert.verification.verify import TOLERANCE, verify
from spirit_jax.core.checksums import write_checksums
from spirit_jax.speech.loading import load_phonetic_encoder
from tests.support.goldens import golden

HUBERT = golden("variants/hubert_25hz_batch_norm/mhubert_base_25hz.pt")
ONE_RUN: Any = 1
"""A value of scikit-learn's `n_init`, which takes integers although a type checker infers a string from its default."""

POINTS = np.random.default_rng(0).standard_normal((60, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    return MiniBatchKMeans(5, n_init=ONE_RUN, max_iter=5, random_state=np.random.RandomState(3)).fit(POINTS)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dump", [joblib.dump, lambda m, p, protocol: p.write_bytes(pickle.dumps(m, protocol))])
def test_centroids_are_read_from_every_pickle_protocol(dump, protocol, model, tmp_path):
    dump(model, tmp_path / "km.bin", protocol=protocol)
    np.testing.assert_array_equal(load_centers(tmp_path / "km.bin"), model.cluster_centers_)
    wide = KMeans(3, n_init=ONE_RUN, max_iter=2, random_state=0).fit(POINTS.astype(np.float64))
    dump(wide, tmp_path / "km.bin", protocol=protocol)
    found = load_centers(tmp_path / "km.bin")
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, wide.cluster_centers_)
    dump(np.asfortranarray(model.cluster_centers_), tmp_path / "km.bin", protocol=protocol)
    np.testing.assert_array_equal(load_centers(tmp_path / "km.bin"), model.cluster_centers_)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_code_in_a_model_is_refused_by_name_and_does_not_run(model, tmp_path):
    """The code comes after the centroids, where a reader that stops at them would not find it."""
    hostile = MiniBatchKMeans(5)
    vars(hostile).update(vars(model), zzz=Hostile(str(tmp_path / "ran")))
    joblib.dump(hostile, tmp_path / "km.bin")
    with pytest.raises(ConversionError, match=r"km.bin: the file asks for (posix|nt|os)\.mkdir, .* refused"):
        load_centers(tmp_path / "km.bin")
    assert not (tmp_path / "ran").exists()
    joblib.load(tmp_path / "km.bin")  # joblib itself runs the payload
    assert (tmp_path / "ran").exists()


def test_a_file_without_a_matrix_of_numbers_is_refused(model, tmp_path):
    path = tmp_path / "km.bin"
    stream = io.BytesIO()
    joblib.dump(model, stream)
    for length in range(0, len(stream.getvalue()), 301):
        path.write_bytes(stream.getvalue()[:length])
        with pytest.raises(ConversionError, match="cut short"):
            load_centers(path)
    joblib.dump(model, path, compress=3)
    with pytest.raises(ConversionError, match="compress=0"):
        load_centers(path)
    joblib.dump(np.array([{"a": 1}], object), path)
    with pytest.raises(ConversionError, match="numbers expected"):
        load_centers(path)
    with open(path, "wb") as file:
        np.save(file, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(ConversionError, match="numbers expected"):
        load_centers(path)


def twist(folder: pathlib.Path, name: str, centers) -> pathlib.Path:
    """A folder as TWIST publishes it: HuBERT under TWIST's file name, and the centroids."""
    folder.mkdir()
    shutil.copy(HUBERT, folder / "mhubert_base_25hz_cp_mls_cv_sp_fisher.pt")
    path = folder / name
    if path.suffix == ".npy":
        np.save(path, centers)
    elif path.suffix == ".pt":
        torch.save(torch.from_numpy(centers), path)
    else:
        joblib.dump(centers, path)
    return folder


@pytest.fixture(scope="module")
def features():
    """A clip and the reference's features of it, from which the centroids are fitted."""
    released = load_torch(HUBERT)
    audio = load_audio(golden("audio/noise_a.wav"))
    with torch.no_grad():
        state = reference.tensors(released["model_weight"])
        return audio, reference.hubert(state, released["model_cfg"], 3, torch.from_numpy(audio)[None])[0].numpy()


def test_twist_files_give_the_units_of_scikit_learn_and_are_exported_unchanged(features, tmp_path):
    audio, x = features
    kmeans = MiniBatchKMeans(7, n_init=ONE_RUN, random_state=0).fit(x)
    source = twist(tmp_path / "twist", "mhubert_base_25hz_cp_mls_cv_sp_fisher_L3_km7.bin", kmeans)
    run_jobs(plan_import(source, ["hubert"]), tmp_path / "converted", overwrite=False)
    config = json.loads((tmp_path / "converted/speech_tokenizer/phonetic/config.json").read_text())
    assert (config["layer"], config["quantizer"]) == (3, {"kind": "kmeans", "dim": 32, "units": 7})
    part = load_phonetic_encoder(tmp_path / "converted")
    np.testing.assert_array_equal(part.encode_batch([audio])[0], kmeans.predict(x))
    (row,) = verify(source, tmp_path / "converted", ["hubert"])
    assert row.equal == "yes"
    assert row.network is not None
    assert row.network < TOLERANCE

    run_jobs(plan_export(tmp_path / "converted"), tmp_path / "back", overwrite=False)
    back = tmp_path / "back/speech_tokenizer/hubert_25hz"
    assert sorted(p.name for p in back.iterdir()) == sorted(p.name for p in source.iterdir())
    for path in source.iterdir():
        if path.suffix == ".bin":
            assert (back / path.name).read_bytes() == path.read_bytes()
        else:
            states = (torch.load(f / path.name, weights_only=True)["model_weight"] for f in (source, back))
            expected, found = states
            assert list(expected) == list(found)
            assert all(torch.equal(expected[key], found[key]) for key in expected)

    arrays = tmp_path / "converted/speech_tokenizer/phonetic/params.safetensors"
    content = arrays.read_bytes()
    bits = np.asarray(kmeans.cluster_centers_)[3].tobytes()
    arrays.write_bytes(content.replace(bits, bits[::-1]))
    write_checksums(arrays.parent)
    with pytest.raises(ConversionError, match=r"km7.bin: cluster_centers_ is not what .* changed since the import"):
        plan_export(tmp_path / "converted")


@pytest.mark.parametrize("name", ["km.bin", "kmeans_7.npy", "hubert_km7.pt"])
def test_a_file_name_without_a_layer_needs_the_layer_option(name, tmp_path):
    source = twist(tmp_path / "twist", name, POINTS[:7])
    with pytest.raises(ConversionError, match="say --layer N"):
        plan_import(source, ["hubert"])
    with pytest.raises(ConversionError, match="layer 13 is to be quantized: the encoder has layers 1 to 12"):
        plan_import(source, ["hubert"], layer=13)
    run_jobs(plan_import(source, ["hubert"], layer=6), tmp_path / "converted", overwrite=False)
    run_jobs(plan_export(tmp_path / "converted"), tmp_path / "back", overwrite=False)
    back = tmp_path / "back/speech_tokenizer/hubert_25hz"
    assert (back / name).read_bytes() == (source / name).read_bytes()


def test_centroids_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ConversionError, match=r"mis-shaped cluster_centers_: expected \[7, 32\], found \[7, 31\]"):
        plan_import(twist(tmp_path / "narrow", "L3_km.npy", POINTS[:7, :31]), ["hubert"])
    many = np.zeros((502, 32), np.float32)
    with pytest.raises(ConversionError, match=r"shape \[502, 32\]: expected \[units, 32\] with at most 501 units"):
        plan_import(twist(tmp_path / "many", "L3_km.npy", many), ["hubert"])
    two = twist(tmp_path / "two", "L3_km.npy", POINTS[:7])
    np.save(two / "L4_km.npy", POINTS)
    with pytest.raises(ConversionError, match=r"L3_km.npy or L4_km.npy\?"):
        plan_import(two, ["hubert"])
