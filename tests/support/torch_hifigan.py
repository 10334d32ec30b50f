"""The unit vocoder in PyTorch, written from docs/formats.md, "Vocoders"; tests and benchmarks compare with it."""

import functools
import warnings

import torch
from torch import nn
from torch.nn import functional as F


def _weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the released files hold the old form: weight_g, weight_v
        return nn.utils.weight_norm(layer)


class _ResBlock(nn.Module):
    def __init__(self, channels: int, width: int, dilations):
        super().__init__()

        def conv(d):
            return _weight_norm(nn.Conv1d(channels, channels, width, dilation=d, padding=(width * d - d) // 2))

        self.convs1 = nn.ModuleList(conv(d) for d in dilations)
        self.convs2 = nn.ModuleList(conv(1) for _ in dilations)

    def forward(self, x):
        for first, second in zip(self.convs1, self.convs2, strict=True):
            x = x + second(F.leaky_relu(first(F.leaky_relu(x, 0.1)), 0.1))
        return x


class _DurationPredictor(nn.Module):
    def __init__(self, inputs: int, hidden: int, width: int):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv1d(inputs, hidden, width, padding=(width - 1) // 2), nn.ReLU())
        self.ln1 = nn.LayerNorm(hidden)
        self.conv2 = nn.Sequential(nn.Conv1d(hidden, hidden, width, padding=1), nn.ReLU())
        self.ln2 = nn.LayerNorm(hidden)
        self.proj = nn.Linear(hidden, 1)

    def forward(self, x):  # [B, C, T] -> [B, T]
        x = self.ln1(self.conv1(x).transpose(1, 2)).transpose(1, 2)
        return self.proj(self.ln2(self.conv2(x).transpose(1, 2))).squeeze(-1)


class TorchHifiGan(nn.Module):
    """Takes a released `config.json` as a dict; `load_state_dict` takes a released `generator` state, strictly."""

    def __init__(self, config: dict):
        super().__init__()
        width, channels = config["embedding_dim"], config["upsample_initial_channel"]
        self.dict = nn.Embedding(config["num_embeddings"], width)
        if config.get("num_f0_tokens"):
            self.f0_dict = nn.Embedding(config["num_f0_tokens"], width)
        if config.get("num_style_tokens"):
            self.style_dict = nn.Embedding(config["num_style_tokens"], width)
        if config.get("multispkr"):
            self.spkr = nn.Embedding(config.get("num_speakers", 200), width)
        if config.get("multistyle"):
            self.style = nn.Embedding(config.get("num_styles", 100), width)
        if config.get("dur_predictor_params"):
            shape = config["dur_predictor_params"]
            names = ("encoder_embed_dim", "var_pred_hidden_dim", "var_pred_kernel_size")
            self.dur_predictor = _DurationPredictor(*(shape[name] for name in names))
        self.conv_pre = _weight_norm(nn.Conv1d(config["model_in_dim"], channels, 7, padding=3))
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, size in zip(config["upsample_rates"], config["upsample_kernel_sizes"], strict=True):
            up = nn.ConvTranspose1d(channels, channels // 2, size, rate, padding=(size - rate) // 2)
            self.ups.append(_weight_norm(up))
            channels //= 2
            for args in zip(config["resblock_kernel_sizes"], config["resblock_dilation_sizes"], strict=True):
                self.resblocks.append(_ResBlock(channels, *args))
        self.conv_post = _weight_norm(nn.Conv1d(channels, 1, 7, padding=3))

    def fold(self) -> "TorchHifiGan":
        """Multiply the weight norms out, as one does before timing."""
        for layer in self.modules():
            if hasattr(layer, "weight_g"):
                nn.utils.remove_weight_norm(layer)
        return self

    def log_durations(self, units):
        return self.dur_predictor(self.dict(units).transpose(1, 2))

    def forward(self, units, f0=None, styles=None, speaker=None, style=None):
        """Codes int [B, T] of every frame and rows int [B] -> audio [B, R]."""
        parts = [self.dict(units)]
        parts += [
            getattr(self, name)(ids) for name, ids in (("f0_dict", f0), ("style_dict", styles)) if hasattr(self, name)
        ]
        constants = [("spkr", speaker), ("style", style)]
        parts += [
            getattr(self, name)(ids)[:, None].expand_as(parts[0]) for name, ids in constants if hasattr(self, name)
        ]
        x = self.conv_pre(torch.cat(parts, -1).transpose(1, 2))
        blocks = len(self.resblocks) // len(self.ups)
        for stage, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1))
            outputs = [block(x) for block in self.resblocks[stage * blocks : (stage + 1) * blocks]]
            x = functools.reduce(torch.add, outputs) / blocks
        return torch.tanh(self.conv_post(F.leaky_relu(x)))[:, 0]
