"""Compares the training steps of speech parts with the same steps in plain PyTorch on the same machine.

    python -m benchmarks.train_speech [--parts hubert quantizer pitch style vocoder] [--rounds 5] [--rows 4]
        [--published] [--json FILE]

One process builds both sides with equal shapes and runs their steps in turn, in float32 on the same cores. The step of
the vocoder is that of `speech_training.vocoder_rule`: generated audio, the update of the discriminators (multi-period
and multi-scale), then that of the generator by mel, feature matching, adversarial and duration loss, each by AdamW.
PyTorch's modules are those of tests/support, and transformers' HuBERT, which is also the encoder of quantizer and
style. The networks are small (`SMALL`), or with `--published` those of the papers, in which a step takes minutes on two
cores. Only the ratio can be compared between machines and runs.
"""

import argparse
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
import torch

from benchmarks import report
from spirit_jax.models.hifigan_config import DiscriminatorConfig, HifiGanConfig
from spirit_jax.models.vqvae_config import VQVAEConfig
from spirit_jax.models.wav2vec2 import Wav2Vec2Model
from spirit_jax.models.wav2vec2_config import Wav2Vec2Config, Wav2Vec2Noise
from spirit_jax.models.wav2vec2_heads import LinearQuantizer, WindowClassifier
from spirit_jax.speech_training.crops import Crop
from spirit_jax.speech_training.hubert import HubertObjective, HubertRows
from spirit_jax.speech_training.hubert_config import HubertTraining, MaskConfig
from spirit_jax.speech_training.labels import Labels
from spirit_jax.speech_training.pitch_config import PitchTraining
from spirit_jax.speech_training.pitch_rule import PitchRule
from spirit_jax.speech_training.quantizer_config import QuantizerTraining
from spirit_jax.speech_training.quantizers import QuantizerObjective
from spirit_jax.speech_training.style import WINDOW, WindowObjective
from spirit_jax.speech_training.style_config import StyleTraining
from spirit_jax.speech_training.vocoder_config import VocoderTraining
from spirit_jax.speech_training.vocoder_rule import VocoderRule, gan_optimizer
from spirit_jax.training.optimizer import make_optimizer
from spirit_jax.training.step import UpdateRule
from tests.support import torch_discriminators as reference
from tests.support.torch_hifigan import TorchHifiGan
from tests.support.torch_hubert import TorchHubert
from tests.support.torch_vqvae import TorchVQVAE

Step = Callable[[], float]
"""Trains one step on the same random batch and returns the loss."""

SMALL = Wav2Vec2Config(
    conv_layers=((64, 10, 5), *((64, 3, 2),) * 2, *((96, 3, 2),) * 2, *((96, 2, 2),) * 3),
    hidden_size=128,
    num_layers=4,
    num_heads=4,
    intermediate_size=512,
    position_kernel=32,
    position_groups=8,
)
"""The shape of the encoders, with frames of 40 ms."""


def jax_step(rule: UpdateRule | PitchRule | VocoderRule, batch: dict[str, np.ndarray]) -> Step:
    """The step of this package from fresh parameters."""
    step, placed = jax.jit(rule.train_step, donate_argnums=0), jax.device_put(batch)
    kept = [jax.jit(rule.init)(jax.random.key(0))]

    def run() -> float:
        kept[0], metrics = step(kept[0], placed)
        return float(metrics["loss"])

    return run


def torch_step(loss: Callable[[], torch.Tensor], parameters: list[torch.nn.Parameter], clip_norm: float = 0.0) -> Step:
    """PyTorch's step: AdamW on the gradients of a loss, whose norm is clipped at `clip_norm` unless that is 0."""
    optimizer = torch.optim.AdamW(parameters, lr=2e-4)

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
        return value.item()

    return run


def vocoder_steps(rows: int, published: bool) -> tuple[Step, Step]:
    """The step of this package and PyTorch's, for a Base vocoder of one voice."""
    network, judged = HifiGanConfig(num_speakers=0, num_styles=0), DiscriminatorConfig()
    if not published:
        network = dataclasses.replace(
            network,
            embedding_dim=64,
            duration_hidden_dim=64,
            upsample_initial_channel=128,
            resblock_kernel_sizes=(3, 7),
            resblock_dilation_sizes=((1, 3), (1, 3)),
        )
        judged = DiscriminatorConfig(periods=(2, 3, 5), scales=1, channels=64)
    config = VocoderTraining(network=network, discriminators=judged, rows=rows)
    rng = np.random.default_rng(0)
    frames = config.samples // network.code_hop_size
    units = rng.integers(0, 500, (rows, frames)).astype(np.int32)
    audio = rng.uniform(-0.5, 0.5, (rows, config.samples)).astype(np.float32)
    zeros = np.zeros(rows, np.int32)
    durations, counts = np.ones((rows, frames), np.int32), np.full(rows, frames, np.int32)
    batch = {
        "audio_br": audio,
        "units_bt": units,
        "pitch_bt": np.zeros_like(units),
        "styles_bt": np.zeros_like(units),
        "speaker_b": zeros,
        "style_b": zeros,
        "runs_bu": units,
        "durations_bu": durations,
        "runs_b": counts,
        "weight_b": np.ones(rows, np.float32),
    }
    rule = VocoderRule(config, network, gan_optimizer(config.optimizer, 1000))

    torch.manual_seed(0)
    generator = TorchHifiGan(
        {
            "embedding_dim": network.embedding_dim,
            "num_embeddings": 500,
            "upsample_initial_channel": network.upsample_initial_channel,
            "upsample_rates": network.upsample_rates,
            "upsample_kernel_sizes": network.upsample_kernel_sizes,
            "resblock_kernel_sizes": network.resblock_kernel_sizes,
            "resblock_dilation_sizes": network.resblock_dilation_sizes,
            "model_in_dim": network.model_in_dim,
            "dur_predictor_params": {
                "encoder_embed_dim": network.embedding_dim,
                "var_pred_hidden_dim": network.duration_hidden_dim,
                "var_pred_kernel_size": 3,
            },
        }
    )
    judges, mel = reference.TorchDiscriminators(config.discriminators), reference.TorchMel(config.mel)
    options = {"lr": 2e-4, "betas": (0.8, 0.99)}
    of_judges = torch.optim.AdamW(judges.parameters(), **options)
    of_generator = torch.optim.AdamW(generator.parameters(), **options)
    real, codes, targets = torch.tensor(audio), torch.tensor(units), torch.log(torch.tensor(durations) + 1.0)

    def run_torch() -> float:
        made = generator(codes)
        of_judges.zero_grad(set_to_none=True)
        reference.discriminator_loss(judges(real), judges(made.detach())).backward()
        of_judges.step()
        of_generator.zero_grad(set_to_none=True)
        real_outputs, made_outputs = judges(real), judges(made)
        loss = (
            45 * torch.nn.functional.l1_loss(mel(made), mel(real))
            + torch.nn.functional.mse_loss(generator.log_durations(codes), targets)
            + reference.adversarial_loss(made_outputs)
            + 2 * reference.feature_matching_loss(real_outputs, made_outputs)
        )
        loss.backward()
        of_generator.step()
        return loss.item()

    return jax_step(rule, batch), run_torch


def pitch_steps(rows: int, published: bool) -> tuple[Step, Step]:
    """The step of this package and PyTorch's, for the released VQ-VAE."""
    del published  # it is small
    config = PitchTraining(rows=rows, network=VQVAEConfig())
    frames = config.samples // 80
    rng = np.random.default_rng(0)
    f0, voiced = rng.normal(0, 30, (rows, frames)).astype(np.float32), np.ones((rows, frames), np.float32)
    batch = {
        "f0_bt": f0,
        "voiced_bt": voiced,
        "mean_b": np.full(rows, 150, np.float32),
        "frames_b": np.full(rows, frames, np.int32),
        "weight_b": np.ones(rows, np.float32),
    }
    rule = PitchRule(config, make_optimizer(config.optimizer, 1000))
    torch.manual_seed(0)
    network = TorchVQVAE(config.network)
    x = torch.tensor(np.stack([f0, voiced], 1))

    def loss() -> torch.Tensor:
        made, commitment = network(x)
        return torch.nn.functional.mse_loss(made, x) + 0.02 * commitment

    return jax_step(rule, batch), torch_step(loss, list(network.parameters()))


def hubert_steps(rows: int, published: bool) -> tuple[Step, Step]:
    """The step of this package and PyTorch's with transformers' network, both without dropout."""
    shape = Wav2Vec2Config() if published else SMALL
    config = HubertTraining(
        encoder=shape,
        masking=MaskConfig(probability=0.65, length=5),
        noise=Wav2Vec2Noise(0, 0, 0, 0, 1.0),
        rows=rows,
        samples=64_000,
        shortest=16_000,
        unmasked_weight=0.5,
    )
    rng = np.random.default_rng(0)
    frames = shape.frames(config.samples)
    make = HubertRows(config, Labels(rng.integers(0, 100, rows * frames), np.arange(rows + 1) * frames))
    audio = rng.normal(0, 0.1, (rows, config.samples)).astype(np.float32)
    each = [make(Crop(row, 0, config.samples, audio[row]), rng) for row in range(rows)]
    batch = {name: np.stack([row[name] for row in each]) for name in each[0]} | {"weight_b": np.ones(rows, np.float32)}
    rule = UpdateRule(HubertObjective(config, 100, seed=0), make_optimizer(config.optimizer, 1000))
    torch.manual_seed(0)
    network = TorchHubert(config)
    return jax_step(rule, batch), torch_step(lambda: network.loss(batch), list(network.parameters()), 10.0)


def style_steps(rows: int, published: bool) -> tuple[Step, Step]:
    """The step of this package and PyTorch's for the classes of each second, with transformers' encoder."""
    shape = Wav2Vec2Config() if published else SMALL
    config = StyleTraining(encoder=shape, rows=rows)
    rng = np.random.default_rng(0)
    frames = shape.frames(config.samples)
    windows = -(-frames // WINDOW)
    audio = rng.normal(0, 0.1, (rows, config.samples)).astype(np.float32)
    label = rng.integers(0, 100, (rows, windows)).astype(np.int32)
    lengths, weight = np.full(rows, config.samples, np.int32), np.ones(rows, np.float32)
    batch = {"audio_br": audio, "length_b": lengths, "label_bk": label, "weight_b": weight}
    model = WindowClassifier(shape, config.projection_size, 100, window=WINDOW)
    rule = UpdateRule(WindowObjective(model), make_optimizer(config.optimizer, 1000))

    torch.manual_seed(0)
    encoder = TorchHubert(HubertTraining(encoder=shape)).hubert
    projector, head = torch.nn.Linear(shape.hidden_size, config.projection_size), torch.nn.Linear(256, 100)
    given, targets = torch.tensor(audio), torch.tensor(label).long().flatten()

    def loss() -> torch.Tensor:
        clips = (given - given.mean(1, keepdim=True)) / (given.var(1, keepdim=True) + 1e-7).sqrt()
        x = projector(encoder(clips).last_hidden_state)
        pooled = torch.stack([second.mean(1) for second in x.split(WINDOW, 1)], 1)
        return torch.nn.functional.cross_entropy(head(pooled).flatten(0, 1), targets)

    parameters = [*encoder.parameters(), *projector.parameters(), *head.parameters()]
    return jax_step(rule, batch), torch_step(loss, parameters, config.optimizer.clip_norm)


def quantizer_steps(rows: int, published: bool) -> tuple[Step, Step]:
    """The step of this package and PyTorch's for the linear quantizer behind a frozen encoder of transformers."""
    shape = Wav2Vec2Config() if published else SMALL
    config, units = QuantizerTraining(rows=rows), 500
    rng = np.random.default_rng(0)
    frames = shape.frames(config.samples)
    count = frames // 2
    audio = rng.normal(0, 0.1, (rows, config.samples)).astype(np.float32)
    unit = rng.integers(0, units, (rows, count)).astype(np.int32)
    batch = {
        "audio_br": audio,
        "length_b": np.full(rows, config.samples, np.int32),
        "unit_bn": unit,
        "count_b": np.full(rows, count, np.int32),
        "weight_b": np.ones(rows, np.float32),
    }
    model, quantizer = Wav2Vec2Model(shape), LinearQuantizer(shape.hidden_size, shape.hidden_size, units)
    frozen = jax.jit(model.init)(jax.random.key(0), audio[:1])["params"]
    rule = UpdateRule(QuantizerObjective(model, frozen, quantizer), make_optimizer(config.optimizer, 1000))

    torch.manual_seed(0)
    encoder = TorchHubert(HubertTraining(encoder=shape)).hubert
    sizes = (shape.hidden_size, *quantizer.widths)
    layers = [torch.nn.Linear(*pair) for pair in itertools.pairwise(sizes)]
    head = torch.nn.Sequential(layers[0], torch.nn.LeakyReLU(), layers[1], torch.nn.LeakyReLU(), layers[2])
    given, targets = torch.tensor(audio), torch.tensor(unit).long()

    def loss() -> torch.Tensor:
        with torch.no_grad():
            x = encoder(given).last_hidden_state
        logs = torch.nn.functional.log_softmax(head(x), -1).transpose(0, 1)
        ends = torch.full((rows,), count)
        return torch.nn.functional.ctc_loss(logs, targets, torch.full((rows,), frames), ends, blank=units)

    return jax_step(rule, batch), torch_step(loss, list(head.parameters()), config.optimizer.clip_norm)


PARTS = {
    "hubert": hubert_steps,
    "quantizer": quantizer_steps,
    "pitch": pitch_steps,
    "style": style_steps,
    "vocoder": vocoder_steps,
}


def main() -> None:
    """Run the rounds and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one to warm up (default 5)")
    parser.add_argument("--rows", type=int, default=4, help="crops of a step (default 4)")
    parser.add_argument("--published", action="store_true", help="published sizes of the networks")
    report.add_option(parser)
    options = parser.parse_args()
    where, figures = report.machine(), []
    for name in options.parts:
        steps = PARTS[name](options.rows, options.published)
        times: list[tuple[float, float]] = []
        for _ in range(options.rounds + 1):
            both = []
            for step in steps:
                time.sleep(0.3)  # OpenMP's threads spin for a fifth of a second after the work of the other library
                start = time.perf_counter()
                step()
                both.append(time.perf_counter() - start)
            times.append((both[0], both[1]))
        ours, there = (statistics.median(column) for column in zip(*times[1:], strict=True))
        ratio = statistics.median(b / a for a, b in times[1:])
        print(f"{name}: {ours * 1e3:.0f} ms a step, PyTorch {there * 1e3:.0f} ms, ratio {ratio:.2f}", flush=True)
        figures.append({"part": name, "seconds": {"ours": ours, "torch": there}, "ratio": ratio})
    report.write(options.json, where, figures)


if __name__ == "__main__":
    main()
