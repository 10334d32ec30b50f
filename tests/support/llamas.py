"""Llamas of Hugging Face in PyTorch, and the golden ones, as parameters of spirit_jax."""

import dataclasses
import json

import jax
import numpy as np
import torch
from safetensors.torch import load_file

from spirit_jax.models import llama
from spirit_jax.models.llama import LlamaConfig
from tests.support.goldens import golden, golden_arrays

FOLDERS = {
    "small_base": "variants/llama_small_base",
    "small_expressive": "variants/llama_small_expressive",
    "full_base": "checkpoints/spiritlm_model/spirit-lm-base-7b",
    "full_expressive": "checkpoints/spiritlm_model/spirit-lm-expressive-7b",
}
"""The golden language models and their folders; the full ones have the released vocabulary."""


def params_from_torch(state: dict[str, torch.Tensor], config: LlamaConfig) -> llama.Params:
    """Hugging Face's state dict as a tree of spirit_jax: matrices transposed, heads split, layers stacked."""
    n, k, h, d = config.num_attention_heads, config.num_key_value_heads, config.head_size, config.hidden_size
    shapes = {"q_proj": (d, n, h), "k_proj": (d, k, h), "v_proj": (d, k, h), "o_proj": (n, h, d)}

    def layer(index: int) -> llama.Params:
        tree: llama.Params = {}
        for name, value in state.items():
            module, _, weight = name.removeprefix(f"model.layers.{index}.").removesuffix(".weight").rpartition(".")
            if not name.startswith(f"model.layers.{index}."):
                continue
            array = value.float().numpy().T
            if module:
                tree.setdefault(module, {})[weight] = array.reshape(shapes.get(weight, array.shape))
            else:
                tree[weight] = {"weight": array}
        return tree

    params = {
        "embed_tokens": state["model.embed_tokens.weight"].float().numpy(),
        "layers": jax.tree.map(lambda *leaves: np.stack(leaves), *map(layer, range(config.num_hidden_layers))),
        "norm": {"weight": state["model.norm.weight"].float().numpy()},
    }
    if not config.tie_word_embeddings:
        params["lm_head"] = state["lm_head.weight"].float().numpy().T
    return params


def golden_llama(name: str) -> tuple[LlamaConfig, llama.Params]:
    """Config and parameters of a golden language model of `FOLDERS`, as they were when its outputs were recorded."""
    folder = golden(FOLDERS[name])
    raw = json.loads((folder / "config.json").read_text())
    names = {field.name for field in dataclasses.fields(LlamaConfig)} - {"dtype"}
    config = LlamaConfig(**{key: value for key, value in raw.items() if key in names})
    state = {}
    if (folder / "pytorch_model.bin").exists():
        state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    else:
        for shard in sorted(folder.glob("*.safetensors")):
            state |= load_file(shard)
    params = params_from_torch(state, config)
    # Coordinate 0 of the files was overwritten (+-3 in the embedding, +-4 in the head) after the outputs were computed.
    # The outputs determine the old values: one unknown for each token against a row of hidden states, one for each id
    # of the vocabulary against a column of logits. llama_coordinate_0.npz holds the solution in float64.
    before = golden_arrays("../variants/llama_coordinate_0.npz")
    params["embed_tokens"] = params["embed_tokens"].copy()
    params["embed_tokens"][before[f"{name}/ids"], 0] = before[f"{name}/embed_column_0"]
    params["lm_head"] = np.concatenate([before[f"{name}/head_row_0"][None], params["lm_head"][1:]])
    return config, params
