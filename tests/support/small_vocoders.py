"""Small vocoders with random weights, in PyTorch and in spirit_jax."""

from typing import Any

import numpy as np
import torch

from spirit_jax.checkpoint import unflatten
from spirit_jax.convert.components import hifigan as table
from spirit_jax.convert.table import to_jax
from spirit_jax.models.hifigan import HifiGan
from spirit_jax.models.hifigan_config import HifiGanConfig
from tests.support.torch_hifigan import TorchHifiGan

# Neither the released sizes nor those of the golden vectors: two stages, an odd and an even rate, even dilations, and
# four embeddings.
BASE = {
    "resblock": "1",
    "upsample_rates": [3, 2],
    "upsample_kernel_sizes": [7, 6],
    "upsample_initial_channel": 24,
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 4], [2, 3, 5]],
    "num_embeddings": 20,
    "embedding_dim": 10,
    "dur_predictor_params": {"encoder_embed_dim": 10, "var_pred_hidden_dim": 14, "var_pred_kernel_size": 3},
    "multispkr": "from_input_file",
    "num_speakers": 5,
    "multistyle": "from_input_file",
    "num_styles": 6,
    "model_in_dim": 30,
    "code_hop_size": 6,
}
EXPRESSIVE = {
    **{name: value for name, value in BASE.items() if name not in ("multistyle", "num_styles")},
    "num_f0_tokens": 9,
    "num_style_tokens": 7,
    "model_in_dim": 40,
}


def random_vocoders(config: dict[str, Any], seed: int = 0) -> tuple[TorchHifiGan, HifiGan, dict[str, Any]]:
    """PyTorch's vocoder with random weights, loud enough to saturate somewhere, and the same network and parameters."""
    torch.manual_seed(seed)
    reference = TorchHifiGan(config).eval()
    with torch.no_grad():
        for name, value in reference.named_parameters():
            if name.endswith("weight_g"):
                value.uniform_(0.5, 1.5)
            elif name.endswith("bias") or "ln" in name:
                value.add_(0.3 * torch.randn_like(value))
    part = table.part_config(config)
    state = {name: value.detach().numpy() for name, value in reference.state_dict().items()}
    params, kept = to_jax(table.rows(part), state, table.shapes(part), "state")
    assert not kept
    return reference, HifiGan(HifiGanConfig.from_dict(part["hifigan"])), unflatten(params)


def random_codes(config: dict[str, Any], rows: int, frames: int) -> list[np.ndarray | None]:
    """Units, pitch and style of each frame, speakers and global styles: the first arguments of `HifiGan.generate`."""
    rng = np.random.default_rng(rows * frames)
    sizes = [config["num_embeddings"], config.get("num_f0_tokens"), config.get("num_style_tokens")]
    streams = [None if size is None else rng.integers(0, size, (rows, frames)) for size in sizes]
    constants = [config["num_speakers"], config.get("num_styles")]
    return streams + [None if size is None else rng.integers(0, size, rows) for size in constants]


def tensors(arrays: list[np.ndarray | None]) -> list[torch.Tensor | None]:
    """The arrays as PyTorch takes them."""
    return [None if array is None else torch.tensor(array) for array in arrays]
