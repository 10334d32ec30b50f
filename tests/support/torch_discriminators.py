"""HiFi-GAN's discriminators and losses in PyTorch, from arXiv 2010.05646; tests and benchmarks compare with them."""

import warnings
from typing import Any

import librosa
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from spirit_jax.models.hifigan_config import PERIOD_LAYERS, SCALE_LAYERS, DiscriminatorConfig, MelConfig


def _weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer)


class _Stack(nn.Module):
    def __init__(self, layers, norm):
        super().__init__()
        inputs, self.convs = 1, nn.ModuleList()
        for channels, width, stride, groups in layers:
            self.convs.append(norm(nn.Conv1d(inputs, channels, width, stride, width // 2, groups=groups)))
            inputs = channels
        self.scores = norm(nn.Conv1d(inputs, 1, 3, padding=1))

    def forward(self, x):
        outputs = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.1)
            outputs.append(x)
        return [*outputs, self.scores(x)]


class TorchDiscriminators(nn.Module):
    """Audio [B, R] to the outputs of each layer of each discriminator, the scores last.

    A period's columns of an image are convolved one by one, which is what a kernel of width 1 does to them.
    """

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        self.periods = config.periods
        self.period = nn.ModuleList(_Stack(config.resized(PERIOD_LAYERS), _weight_norm) for _ in config.periods)
        norms = [nn.utils.parametrizations.spectral_norm] + [_weight_norm] * config.scales
        self.scale = nn.ModuleList(_Stack(config.resized(SCALE_LAYERS), norms[i]) for i in range(config.scales))
        self.pool = nn.AvgPool1d(4, 2, padding=2)

    def forward(self, audio):
        outputs, x = [], audio[:, None]
        for period, network in zip(self.periods, self.period, strict=True):
            rest = x.shape[2] % period
            image = F.pad(x, (0, period - rest), "reflect") if rest else x
            columns = image.view(len(x), -1, period).transpose(1, 2).reshape(len(x) * period, 1, -1)
            outputs.append(network(columns))
        for i, network in enumerate(self.scale):
            x = self.pool(x) if i else x
            outputs.append(network(x))
        return outputs


def load_params(network: TorchDiscriminators, params) -> dict[str, Any]:
    """Copy the parameters of `spirit_jax.models.hifigan_discriminators`; returns the discriminators by their names."""
    stacks: dict[str, Any] = {
        f"period_{period}": stack for period, stack in zip(network.periods, network.period, strict=True)
    }
    stacks |= {f"scale_{i}": stack for i, stack in enumerate(network.scale)}
    with torch.no_grad():
        for name, stack in stacks.items():
            convs = {**{f"conv_{i}": conv for i, conv in enumerate(stack.convs)}, "scores": stack.scores}
            for part, conv in convs.items():
                values = {key: torch.tensor(np.asarray(value)) for key, value in params[name][part].items()}
                conv.bias.copy_(values["bias"])
                if "power" in values:
                    norm = conv.parametrizations.weight
                    norm.original.copy_(values["weight"].permute(2, 1, 0))
                    left = values["power"]
                    right = norm.original.flatten(1).T @ left
                    norm[0]._u.copy_(left)
                    norm[0]._v.copy_(right / right.norm())
                else:
                    conv.weight_v.copy_(values["weight_v"].permute(2, 1, 0))
                    conv.weight_g.copy_(values["weight_g"].permute(2, 1, 0))
    return stacks


def discriminator_loss(real, fake) -> Any:
    return sum(((1 - r[-1]) ** 2).mean() + (f[-1] ** 2).mean() for r, f in zip(real, fake, strict=True))


def adversarial_loss(fake):
    return sum(((1 - f[-1]) ** 2).mean() for f in fake)


def feature_matching_loss(real, fake):
    pairs = [(a, b) for r, f in zip(real, fake, strict=True) for a, b in zip(r, f, strict=True)]
    return sum((a - b).abs().mean() for a, b in pairs)


class TorchMel(nn.Module):
    """Log-mel spectrum [B, M, T] of audio [B, R], frames not centered."""

    def __init__(self, config: MelConfig):
        super().__init__()
        filters = librosa.filters.mel(sr=16_000, n_fft=config.window, n_mels=config.bands, fmin=0, fmax=8000)
        self.register_buffer("filters", torch.tensor(filters))
        self.register_buffer("hann", torch.hann_window(config.window))
        self.config = config

    def forward(self, audio):
        pad = (self.config.window - self.config.hop) // 2
        padded = F.pad(audio[:, None], (pad, pad), "reflect")[:, 0]
        spectrum = torch.stft(
            padded,
            self.config.window,
            self.config.hop,
            window=self.get_buffer("hann"),
            center=False,
            return_complex=True,
        )
        magnitude = torch.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-9)
        return torch.log(torch.clamp(self.get_buffer("filters") @ magnitude, min=1e-5))
