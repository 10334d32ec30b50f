"""Symbolic links in a stranger's tree name no file outside it; those of Hugging Face's cache are followed."""

import os
import shutil

import pytest

from spirit_jax import checkpoint
from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.plans import plan_export, plan_import
from spirit_jax.core.checksums import CHECKSUMS
from spirit_jax.core.paths import PathError
from tests.support.trees import LLAMAS, SPEECH, check_tree, run_export, run_import

STYLE, PITCH = "style_encoder_w2v2", "vqvae_f0_quantizer"


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret.txt"
    path.write_text("the user's own")
    return path


@pytest.mark.parametrize(
    "place", [f"{STYLE}/notes.txt", f"{STYLE}/pytorch_model.bin", f"{PITCH}/config.yaml", "fcpe/x"]
)
def test_an_import_refuses_links_that_leave_the_source(place, secret, tmp_path):
    tree = tmp_path / "tree/speech_tokenizer"
    shutil.copytree(SPEECH, tree)
    (tree / place).parent.mkdir(exist_ok=True)
    (tree / place).unlink(missing_ok=True)
    (tree / place).symlink_to(secret)
    with pytest.raises(
        ConversionError, match=rf"{place}: is or lies behind a link to .*secret\.txt, outside .*: refused"
    ):
        plan_import(tmp_path / "tree")
    only = {STYLE: "style", PITCH: "pitch", "fcpe": "pitch"}[place.split("/")[0]]
    with pytest.raises(ConversionError, match="refused"):
        plan_import(tree / {"style": STYLE, "pitch": PITCH}[only], [only])


def test_an_import_refuses_a_linked_folder_outside_the_source_and_takes_one_inside(secret, tmp_path):
    shutil.copytree(SPEECH / STYLE, tmp_path / "elsewhere")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / STYLE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConversionError, match="outside"):
        plan_import(tree, ["style"])
    (tmp_path / "elsewhere").rename(tree / "elsewhere")
    (tree / STYLE).unlink()
    (tree / STYLE).symlink_to("elsewhere")
    assert plan_import(tree, ["style"])
    (tmp_path / "link").symlink_to(tree)  # a user may name the tree by a link
    assert plan_import(tmp_path / "link", ["style"])


def test_an_import_refuses_a_linked_language_model(secret, tmp_path):
    for half in LLAMAS["base"]:
        shutil.copytree(half, tmp_path / "hf", dirs_exist_ok=True)
    (tmp_path / "hf/LICENSE.txt").symlink_to(secret)
    with pytest.raises(ConversionError, match="LICENSE.txt"):
        plan_import(tmp_path / "hf")


def test_a_snapshot_in_the_cache_of_hugging_face_is_imported(tmp_path):
    repository = tmp_path / "hub/models--meta--spirit-lm"
    snapshot, blobs, plain = repository / "snapshots/abc", repository / "blobs", tmp_path / "plain"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for half in LLAMAS["base"]:
        shutil.copytree(half, plain, dirs_exist_ok=True)
    for number, path in enumerate(sorted(plain.iterdir())):
        shutil.copy(path, blobs / f"{number:040}")
        (snapshot / path.name).symlink_to(os.path.relpath(blobs / f"{number:040}", snapshot))
    back = run_export(run_import(snapshot, tmp_path / "converted"), tmp_path / "back")
    check_tree(back / "spiritlm_model/spirit-lm-base-7b", plain)


@pytest.mark.parametrize(
    "place", ["tokenizer/added_tokens.json", "released/note", "llm/x", "speech_tokenizer/style/released/note"]
)
def test_an_export_refuses_links_that_leave_the_checkpoint(place, converted, secret, tmp_path):
    copy = shutil.copytree(converted, tmp_path / "copy")
    for seal in copy.rglob(CHECKSUMS):  # a stranger's checkpoint may have no checksums
        seal.unlink()
    (copy / place).symlink_to(secret)
    with pytest.raises(PathError, match=r"secret\.txt, outside .*copy: refused"):
        plan_export(copy)


def test_parts_of_a_run_may_be_links_within_the_run(converted, secret, tmp_path):
    run = tmp_path / "run"
    step = run / "checkpoints/3"
    step.mkdir(parents=True)
    shutil.copytree(converted / "tokenizer", run / "shared")
    (run / "tokenizer").symlink_to("shared")
    (step / "tokenizer").symlink_to("../../tokenizer")
    assert checkpoint.find(step, "tokenizer") == step / "tokenizer"
    (step / "llm").symlink_to(secret.parent)
    with pytest.raises(PathError, match="llm: is or lies behind a link"):
        checkpoint.find(step, "llm")
