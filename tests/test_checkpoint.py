"""The parts and steps of a checkpoint directory."""

import pytest

from spirit_jax import checkpoint


def test_the_latest_step_is_the_complete_one_with_the_largest_number(tmp_path):
    """It is not the last in alphabetical order, nor one that is still being written."""
    assert checkpoint.latest_step(tmp_path) is None
    for name in ("9/llm", "90/llm", "100/llm", "110/optimizer", "120.orbax-checkpoint-tmp/llm"):
        (tmp_path / checkpoint.STEPS / name).mkdir(parents=True)
    assert checkpoint.latest_step(tmp_path) == tmp_path / checkpoint.STEPS / "100"


def test_a_step_uses_the_parts_of_its_run(tmp_path):
    step = tmp_path / checkpoint.STEPS / "5"
    (step / checkpoint.LLM).mkdir(parents=True)
    (tmp_path / checkpoint.TOKENIZER).mkdir()
    assert checkpoint.find(step, checkpoint.TOKENIZER) == tmp_path / checkpoint.TOKENIZER


def test_a_run_has_no_language_model_of_its_own(tmp_path):
    (tmp_path / checkpoint.STEPS / "5" / checkpoint.LLM).mkdir(parents=True)
    (tmp_path / checkpoint.TOKENIZER).mkdir()
    with pytest.raises(
        checkpoint.CheckpointError, match="no llm there, only .*; it is a training run: name one of its steps"
    ):
        checkpoint.find(tmp_path, checkpoint.LLM)
