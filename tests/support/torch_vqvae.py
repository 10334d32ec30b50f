"""The pitch VQ-VAE and its moving codebook in PyTorch, from docs/formats.md, "Pitch"; tests and benchmarks use it."""

import torch
from torch import nn

from spirit_jax.models.vqvae_config import VQVAEConfig


class _Block(nn.Module):
    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.model = nn.Sequential(
            nn.ReLU(), nn.Conv1d(width, width, 3, 1, dilation, dilation), nn.ReLU(), nn.Conv1d(width, width, 1)
        )

    def forward(self, x):
        return x + self.model(x)


class _Residual(nn.Module):
    def __init__(self, config: VQVAEConfig):
        super().__init__()
        self.model = nn.Sequential(*(_Block(config.width, config.dilation_growth**i) for i in range(config.depth)))

    def forward(self, x):
        return self.model(x)


class _Level(nn.Module):
    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.model = nn.Sequential(*layers)

    def forward(self, x):
        return self.model(x)


class _Levels(nn.Module):
    def __init__(self, level: nn.Module, out: nn.Module | None = None):
        super().__init__()
        self.level_blocks, self.out = nn.ModuleList([level]), out

    def forward(self, x):
        x = self.level_blocks[0](x)
        return x if self.out is None else self.out(x)


class _Bottleneck(nn.Module):
    def __init__(self, codes: int, size: int):
        super().__init__()
        self.register_buffer("k", torch.randn(codes, size))


class TorchVQVAE(nn.Module):
    """(F0, voicing) [B, 2, T] to the reconstruction and the commitment loss; a call in training moves the codebook.

    `load_state_dict` takes a released state strictly.
    """

    def __init__(self, config: VQVAEConfig, decay: float = 0.99):
        super().__init__()
        width, size, half = config.width, config.embedding_size, config.stride // 2
        encoder: list[nn.Module] = []
        for i in range(config.stages):
            down = nn.Conv1d(2 if i == 0 else width, width, 2 * config.stride, config.stride, half)
            encoder.append(nn.Sequential(down, _Residual(config)))
        self.encoder = _Levels(_Level(*encoder, nn.Conv1d(width, size, 3, padding=1)))
        decoder: list[nn.Module] = [nn.Conv1d(size, width, 3, padding=1)]
        for i in range(config.stages):
            outputs = size if i == config.stages - 1 else width
            up = nn.ConvTranspose1d(width, outputs, 2 * config.stride, config.stride, half)
            decoder.append(nn.Sequential(_Residual(config), up))
        self.decoder = _Levels(_Level(*decoder), nn.Conv1d(size, 2, 3, padding=1))
        self.vq = _Levels(_Bottleneck(config.codes, size))
        self._counts, self._sums, self._decay = torch.ones(config.codes), self.codebook.clone(), decay

    @property
    def codebook(self) -> torch.Tensor:
        return self.vq.level_blocks[0].get_buffer("k")

    def encode(self, x):
        """Latents [B, N, E] and codes [B, N]."""
        z = self.encoder(x).transpose(1, 2)
        return z, (self.codebook.square().sum(1) - 2 * z.detach() @ self.codebook.T).argmin(-1)

    def forward(self, x):
        z, codes = self.encode(x)
        entries = self.codebook[codes]
        commitment = (z - entries).square().mean()
        if self.training:
            flat, hot = z.detach().reshape(-1, z.shape[-1]), nn.functional.one_hot(codes.flatten(), len(self.codebook))
            self._counts = self._decay * self._counts + (1 - self._decay) * hot.sum(0)
            self._sums = self._decay * self._sums + (1 - self._decay) * hot.float().T @ flat
            drawn = flat[torch.randperm(len(flat))[torch.arange(len(self._counts)) % len(flat)]]
            dead = (self._counts < 1)[:, None]
            self.vq.level_blocks[0].k = torch.where(dead, drawn, self._sums / self._counts[:, None])
        return self.decoder((z + (entries - z).detach()).transpose(1, 2)), commitment
