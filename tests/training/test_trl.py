"""DPO against TRL (Hugging Face), loss and all gradients, where TRL is installed: `pip install trl`."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from spirit_jax.data.preference_config import PreferenceData
from spirit_jax.models import llama
from spirit_jax.training.config import PreferenceConfig
from spirit_jax.training.language_model import AllWeights
from spirit_jax.training.preferences import PreferenceObjective
from tests.support.llamas import params_from_torch

trl = pytest.importorskip("trl", reason="TRL is not installed")
datasets = pytest.importorskip("datasets")

PROMPT, LENGTH, VOCABULARY = 3, 12, 40
MODEL = llama.LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
)


def _torch_llama(seed: int) -> transformers.LlamaForCausalLM:
    torch.manual_seed(seed)
    names = {field.name for field in dataclasses.fields(MODEL)} - {"dtype", "param_dtype", "remat", "scan_layers"}
    values = {name: getattr(MODEL, name) for name in names if getattr(MODEL, name) is not None}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**values | {"initializer_range": 0.2}))


def _trainer(policy: Any, reference: Any, loss_type: str, beta: float, directory: str) -> Any:
    """TRL's trainer of one preference, which is not trained on; its loss takes the batches of the test."""
    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1")
    data = datasets.Dataset.from_list([{"prompt": "w2 w3", "chosen": " w4", "rejected": " w5"}])
    options = {"output_dir": directory, "report_to": "none", "use_cpu": True, "bf16": False}
    arguments = trl.DPOConfig(beta=beta, loss_type=[loss_type], gradient_checkpointing=False, **options)
    return trl.DPOTrainer(
        model=policy, ref_model=reference, args=arguments, train_dataset=data, processing_class=tokenizer
    )


@pytest.mark.parametrize(("loss_type", "normalized", "beta"), [("sigmoid", False, 0.7), ("sigmoid_norm", True, 2.0)])
def test_loss_and_gradients_equal_those_of_trl(loss_type, normalized, beta, tmp_path):
    """Answers of different lengths, packed to the left, after prompts of three tokens."""
    rng = np.random.default_rng(0)
    rows = 3
    tokens_b2t = rng.integers(2, VOCABULARY, (rows, 2, LENGTH)).astype(np.int32)
    used_b2t = np.arange(LENGTH) < rng.integers(PROMPT + 2, LENGTH + 1, (rows, 2, 1))
    answer_b2t = used_b2t & (np.arange(LENGTH) >= PROMPT)

    def chosen_first(array: np.ndarray) -> torch.Tensor:
        """[B, 2, T] as TRL has it: all chosen answers, then all rejected ones."""
        return torch.tensor(np.concatenate([array[:, 0], array[:, 1]]).astype(np.int64))

    policy, reference = _torch_llama(0), _torch_llama(1)
    ours, frozen = (params_from_torch(model.state_dict(), MODEL) for model in (policy, reference))
    trainer = _trainer(policy, reference, loss_type, beta, str(tmp_path))
    trainer.model.train()
    loss = trainer.compute_loss(
        trainer.model,
        {
            "input_ids": chosen_first(tokens_b2t),
            "attention_mask": chosen_first(used_b2t),
            "completion_mask": chosen_first(answer_b2t),
        },
    )
    loss.backward()
    gradients = {name.removeprefix("module."): parameter.grad for name, parameter in trainer.model.named_parameters()}
    expected = params_from_torch(gradients, MODEL)

    batch = {
        "inputs": tokens_b2t[..., :-1],
        "targets": tokens_b2t[..., 1:],
        "segment_ids": used_b2t[..., :-1].astype(np.int32),
        "positions": np.broadcast_to(np.arange(LENGTH - 1), (rows, 2, LENGTH - 1)).astype(np.int32),
        "loss_mask": answer_b2t[..., 1:],
    }
    config = PreferenceConfig(PreferenceData("data"), beta=beta, length_normalized=normalized)
    objective = PreferenceObjective(MODEL, config, AllWeights(MODEL), {"params": frozen})
    scale = objective.loss_scale(jax.device_put(batch))
    (value, _), found = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))(ours, batch, scale)
    np.testing.assert_allclose(float(value), loss.item(), rtol=2e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5 * largest), found, expected
    )
