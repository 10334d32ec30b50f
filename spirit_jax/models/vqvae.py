"""The pitch quantizer: a one-dimensional VQ-VAE over (F0, voicing) at 200 Hz with one code every 80 ms.

Encoder and decoder are those of Jukebox (arXiv 2005.00341) as Polyak et al. (arXiv 2104.00355) use them for F0. The
released numerics are those of docs/formats.md, "Pitch". Arrays are channels last. `frames_b` is the length of each clip
of a batch. Padding is zeroed before every convolution, so that each clip gives what it gives alone.
"""

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int

from spirit_jax.models.vqvae_config import VQVAEConfig


def nearest_codes(z_bne: Float[Array, "B N E"], codebook_ke: Float[Array, "K E"]) -> Int[Array, "B N"]:
    """The nearest codebook entry of each latent, int32; the first of several."""
    squared = (
        jnp.sum(jnp.square(z_bne), -1, keepdims=True)
        - 2.0 * jnp.einsum("bne,ke->bnk", z_bne, codebook_ke)
        + jnp.sum(jnp.square(codebook_ke), -1)
    )
    return jnp.argmin(squared, -1).astype(jnp.int32)


def normalize_f0(
    f0_bt: Float[Array, "B T"], voiced_bt: Float[Array, "B T"], mean_b: Float[Array, " B"] | None = None
) -> Float[Array, "B T"]:
    """F0 minus its mean over voiced frames, or minus the given mean, where F0 is not zero.

    A clip with F0 but no voiced frame becomes NaN, whose code is 0, as in the reference. A clip without F0 stays 0.
    """
    if mean_b is None:
        mean_b = jnp.sum(f0_bt * (voiced_bt != 0), 1) / jnp.sum(voiced_bt != 0, 1)
    return jnp.where(f0_bt != 0, f0_bt - mean_b[:, None], f0_bt)


def _mask(x_btc: Float[Array, "B T C"], frames_b: Int[Array, " B"]) -> Float[Array, "B T C"]:
    """Zeros in the padding. A product with a mask would keep a NaN there, which an unvoiced clip's own mean gives."""
    return jnp.where(jnp.arange(x_btc.shape[1])[None, :, None] < frames_b[:, None, None], x_btc, 0.0)


class Conv(nn.Module):
    """Convolution over time with a bias, or with `up` its transpose; the kernel is [K, I, O]."""

    channels: int
    width: int
    stride: int = 1
    dilation: int = 1
    padding: int = 0
    up: bool = False

    @nn.compact
    def __call__(
        self, x_btc: Float[Array, "B T C"], frames_b: Int[Array, " B"]
    ) -> tuple[Float[Array, "B N O"], Int[Array, " B"]]:
        """The output, and how many of its frames belong to each clip."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (self.width, x_btc.shape[-1], self.channels))
        bias = self.param("bias", nn.initializers.zeros, (self.channels,))
        x, layout = _mask(x_btc, frames_b), ("NWC", "WIO", "NWC")
        if self.up:
            pad = self.width - 1 - self.padding
            x = lax.conv_general_dilated(
                x, kernel[::-1], (1,), ((pad, pad),), lhs_dilation=(self.stride,), dimension_numbers=layout
            )
            return x + bias, (frames_b - 1) * self.stride - 2 * self.padding + self.width
        x = lax.conv_general_dilated(
            x,
            kernel,
            (self.stride,),
            ((self.padding, self.padding),),
            rhs_dilation=(self.dilation,),
            dimension_numbers=layout,
        )
        reach = self.dilation * (self.width - 1) + 1
        return x + bias, (frames_b + 2 * self.padding - reach) // self.stride + 1


class ResidualStack(nn.Module):
    """`depth` blocks x + scale * conv1(relu(conv3(relu(x)))), of which the wide convolution is dilated."""

    config: VQVAEConfig
    reverse: bool = False

    @nn.compact
    def __call__(self, x_btc: Float[Array, "B T C"], frames_b: Int[Array, " B"]) -> Float[Array, "B T C"]:
        config = self.config
        for block in range(config.depth):
            dilation = config.dilation_growth ** (config.depth - 1 - block if self.reverse else block)
            h, _ = Conv(config.width, 3, dilation=dilation, padding=dilation, name=f"wide_{block}")(
                nn.relu(x_btc), frames_b
            )
            h, _ = Conv(config.width, 1, name=f"narrow_{block}")(nn.relu(h), frames_b)
            x_btc = x_btc + config.residual_scale * h
        return x_btc


class Encoder(nn.Module):
    """(F0, voicing) [B, T, 2] to latents [B, T // hop, E]."""

    config: VQVAEConfig

    @nn.compact
    def __call__(
        self, x_btc: Float[Array, "B T C"], frames_b: Int[Array, " B"]
    ) -> tuple[Float[Array, "B N E"], Int[Array, " B"]]:
        """The latents, and how many of them belong to each clip."""
        config = self.config
        for i in range(config.stages):
            down = Conv(config.width, 2 * config.stride, config.stride, padding=config.stride // 2, name=f"down_{i}")
            x_btc, frames_b = down(x_btc, frames_b)
            x_btc = ResidualStack(config, name=f"stack_{i}")(x_btc, frames_b)
        return Conv(config.embedding_size, 3, padding=1, name="out")(x_btc, frames_b)


class Decoder(nn.Module):
    """Codebook entries [B, N, E] to (F0, voicing) [B, N * hop, 2]."""

    config: VQVAEConfig

    @nn.compact
    def __call__(self, x_bne: Float[Array, "B N E"], frames_b: Int[Array, " B"]) -> Float[Array, "B T 2"]:
        config = self.config
        x, frames = Conv(config.width, 3, padding=1, name="in")(x_bne, frames_b)
        for i in range(config.stages):
            x = ResidualStack(config, config.reverse_decoder_dilation, name=f"stack_{i}")(x, frames)
            channels = config.embedding_size if i == config.stages - 1 else config.width
            up = Conv(channels, 2 * config.stride, config.stride, padding=config.stride // 2, up=True, name=f"up_{i}")
            x, frames = up(x, frames)
        return Conv(2, 3, padding=1, name="out")(x, frames)[0]


class VQVAE(nn.Module):
    """Encoder, codebook [codes, E] and decoder. Methods for `apply`: `encode`, `latents` and `decode`."""

    config: VQVAEConfig = VQVAEConfig()

    def setup(self):
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        self.codebook = self.param(
            "codebook", nn.initializers.normal(1.0), (self.config.codes, self.config.embedding_size)
        )

    def encode(
        self, f0_bt: Float[Array, "B T"], voiced_bt: Float[Array, "B T"], frames_b: Int[Array, " B"] | None = None
    ) -> tuple[Int[Array, "B N"], Int[Array, " B"]]:
        """Codes of an F0 contour, and how many each clip has; N = T // hop.

        Args:
            f0_bt: normalized as the config of the checkpoint asks for (`normalize_f0`).
            voiced_bt: 1 where a frame is voiced, else 0.
            frames_b: frames of each clip; None for all.

        Raises:
            ValueError: fewer than `hop` frames.
        """
        if f0_bt.shape[1] < self.config.hop:
            raise ValueError(f"F0 has {f0_bt.shape[1]} frames: a code needs {self.config.hop}")
        z, count = self.latents(f0_bt, voiced_bt, frames_b)
        return nearest_codes(z, self.codebook), count

    def latents(
        self, f0_bt: Float[Array, "B T"], voiced_bt: Float[Array, "B T"], frames_b: Int[Array, " B"] | None = None
    ) -> tuple[Float[Array, "B N E"], Int[Array, " B"]]:
        """The encoder's output before quantization, and how many entries each clip has; arguments as in `encode`."""
        if frames_b is None:
            frames_b = jnp.full(f0_bt.shape[:1], f0_bt.shape[1], jnp.int32)
        return self.encoder(jnp.stack([f0_bt, voiced_bt], -1), frames_b)

    def decode(self, codes_bn: Int[Array, "B N"], counts_b: Int[Array, " B"] | None = None) -> Float[Array, "B T 2"]:
        """(F0, voicing) at the encoder's input rate, T = N * hop."""
        if counts_b is None:
            counts_b = jnp.full(codes_bn.shape[:1], codes_bn.shape[1], jnp.int32)
        return self.decoder(jnp.take(self.codebook, codes_bn, axis=0), counts_b)

    def straight_through(
        self, f0_bt: Float[Array, "B T"], voiced_bt: Float[Array, "B T"], frames_b: Int[Array, " B"] | None = None
    ) -> tuple[Float[Array, "B N E"], Int[Array, "B N"], Int[Array, " B"], Float[Array, "B T 2"]]:
        """What training needs: latents, codes, codes of each clip, and the reconstruction of the codes.

        The gradient of the reconstruction passes the quantizer unchanged and reaches the encoder (van den Oord et al.
        2017, arXiv 1711.00937). The codebook gets none: `codebook.update` moves it. Arguments as in `encode`.
        """
        z_bne, counts_b = self.latents(f0_bt, voiced_bt, frames_b)
        codes_bn = nearest_codes(z_bne, self.codebook)
        entries_bne = jnp.take(self.codebook, codes_bn, axis=0)
        z_q_bne = z_bne + lax.stop_gradient(entries_bne - z_bne)
        return z_bne, codes_bn, counts_b, self.decoder(z_q_bne, counts_b)

    def __call__(
        self, f0_bt: Float[Array, "B T"], voiced_bt: Float[Array, "B T"], frames_b: Int[Array, " B"] | None = None
    ) -> tuple[Int[Array, "B N"], Float[Array, "B T 2"]]:
        """Codes and reconstruction. It uses every parameter, for `init`."""
        codes, counts = self.encode(f0_bt, voiced_bt, frames_b)
        return codes, self.decode(codes, counts)
