"""The golden language models as Hugging Face runs them."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LlamaForCausalLM

from tests.support.goldens import golden
from tests.support.llamas import FOLDERS


@functools.cache
def hugging_face_llama(name: str) -> LlamaForCausalLM:
    """A golden model of `FOLDERS` in float32, on one thread."""
    torch.set_num_threads(1)
    return LlamaForCausalLM.from_pretrained(golden(FOLDERS[name]), dtype=torch.float32).eval()


def hugging_face_greedy(
    model: LlamaForCausalLM, ids: Sequence[int], *, max_new_tokens: int, **options: Any
) -> list[int]:
    """The ids that Hugging Face's `generate` appends to a prompt when it decodes greedily."""
    options |= {"do_sample": False, "max_new_tokens": max_new_tokens, "eos_token_id": 2, "pad_token_id": 0}
    with torch.no_grad():
        # The protocol that transformers declares for its own models does not fit them.
        output = model.generate(torch.tensor([ids]), **options)  # pyright: ignore[reportAttributeAccessIssue]
    return output[0, len(ids) :].tolist()
