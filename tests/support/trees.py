"""Golden released trees: their import, export and comparison."""

import torch

from spirit_jax.convert.jobs import run_jobs
from spirit_jax.convert.plans import plan_export, plan_import
from tests.support.goldens import golden

SPEECH = golden("checkpoints/speech_tokenizer")
LLAMAS = {
    "base": (golden("variants/llama_small_base"), golden("tokenizers/small_base_added")),
    "expressive": (golden("variants/llama_small_expressive"), golden("tokenizers/small_expressive_userdef")),
}
"""The folders of weights and of the tokenizer that make up each language model."""


def run_import(source, target, **options):
    """Import released files into a new checkpoint directory, which is returned."""
    run_jobs(plan_import(source, **options), target, overwrite=False)
    return target


def run_export(source, target):
    """Export a checkpoint directory into a new released tree, which is returned."""
    run_jobs(plan_export(source), target, overwrite=False)
    return target


def check_equal(found, expected, where):
    """Compare two objects that torch loaded: containers, order, types, shapes and bytes."""
    assert type(found) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape), where
        pair = [t.contiguous().reshape(-1).view(torch.uint8) for t in (found, expected)]
        assert torch.equal(*pair), where
    elif isinstance(expected, dict):
        assert list(found) == list(expected), where
        for key in expected:
            check_equal(found[key], expected[key], f"{where}/{key}")
    else:
        assert found == expected, where


def check_tree(found, expected, but=()):
    """Compare two released trees: the same files, equal weights, and everything else byte for byte."""
    names = [sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()) for root in (found, expected)]
    assert names[0] == [name for name in names[1] if not name.startswith(tuple(but))]
    for name in names[0]:
        if name.endswith((".pt", ".bin")):
            check_equal(
                torch.load(found / name, weights_only=True), torch.load(expected / name, weights_only=True), name
            )
        else:
            assert (found / name).read_bytes() == (expected / name).read_bytes(), name
