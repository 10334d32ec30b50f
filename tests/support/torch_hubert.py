"""HuBERT's masked prediction in PyTorch: transformers' network with the head and the loss of fairseq."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import transformers

from spirit_jax.speech_training.hubert_config import HubertTraining


class TorchHubert(torch.nn.Module):
    """The network without dropout, and the loss of fairseq's `HubertCriterion`."""

    def __init__(self, config: HubertTraining):
        super().__init__()
        encoder = config.encoder
        channels, kernels, strides = (list(values) for values in zip(*encoder.conv_layers, strict=True))
        self.config, self._features = config, torch.zeros(())
        self.hubert = transformers.HubertModel(
            transformers.HubertConfig(
                conv_dim=channels,
                conv_kernel=kernels,
                conv_stride=strides,
                num_feat_extract_layers=len(channels),  # pyright: ignore[reportCallIssue]  # not in its signature
                hidden_size=encoder.hidden_size,
                intermediate_size=encoder.intermediate_size,
                num_hidden_layers=encoder.num_layers,
                num_attention_heads=encoder.num_heads,
                num_conv_pos_embeddings=encoder.position_kernel,
                num_conv_pos_embedding_groups=encoder.position_groups,
                attn_implementation="eager",  # pyright: ignore[reportCallIssue]  # an argument of its base class
            )
        ).eval()
        self.hubert.feature_extractor.register_forward_hook(self._keep)
        self.projection = torch.nn.Linear(encoder.hidden_size, config.projection)
        self.classes = torch.nn.Parameter(torch.rand(config.labels.clusters, config.projection))

    def _keep(self, module: Any, inputs: Any, features: torch.Tensor) -> None:
        self._features = features

    def loss(self, batch: Mapping[str, np.ndarray]) -> torch.Tensor:
        """The loss of rows of full length: `audio_br`, `masked_bt` and `label_bt` of a HuBERT's batch."""
        c = self.config
        audio, masked = torch.tensor(batch["audio_br"]), torch.tensor(batch["masked_bt"])
        labels = torch.tensor(batch["label_bt"]).long()
        x = self.projection(self.hubert(audio, mask_time_indices=masked).last_hidden_state)
        logits = torch.cosine_similarity(x[:, :, None], self.classes, dim=-1) / c.temperature
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        frames = masked.numel() if c.unmasked_weight > 0 else masked.sum()
        mean = (loss * torch.where(masked.flatten(), 1.0, c.unmasked_weight)).sum() / frames
        return mean + c.feature_penalty * self._features.pow(2).mean()
