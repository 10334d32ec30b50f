"""Speed of the unit encoders against PyTorch on the same clips and the same machine.

    pip install einops && pip install --no-deps local-attention hyper-connections  # what torchfcpe needs
    python -m benchmarks.encode [--rounds 5] [--seconds 10] [--clips 8] [--json FILE]

The networks have full size: HuBERT at 25 Hz up to layer 11 and the style encoder, both with random weights, against
transformers; FCPE with its real weights against torchfcpe, where only our side also runs the VQ-VAE (0.2 M parameters);
and all three in a row, as encoding expressive units needs them.

Each is timed on one clip, and then on a folder of clips of many lengths: PyTorch clip by clip, as the reference does,
ours in batches (`encode_batch`). Rounds alternate between the two sides. Printed are the real-time factors of the best
round (seconds of audio a second) and the median ratio of the rounds, ours / torch. The outputs are compared first. Only
the ratio can be compared between machines and between runs.
"""

import argparse
import dataclasses
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch
import transformers

from benchmarks import report
from benchmarks.clips import speech
from benchmarks.torch_fcpe import bundled_fcpe
from spirit_jax.checkpoint import unflatten
from spirit_jax.convert import table
from spirit_jax.convert.components import fcpe, hubert, style, vqvae
from spirit_jax.convert.formats.torch_file import load_torch
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.speech.released.phonetic import HubertEncoder
from spirit_jax.speech.released.pitch import VQVAEPitch
from spirit_jax.speech.released.style import Wav2Vec2Style

OUTPUT_LAYER = 11


@dataclasses.dataclass(frozen=True)
class Contest:
    """One network on both sides."""

    name: str
    ours: Callable[[Sequence[np.ndarray]], Any]
    """Runs clips in batches."""
    torch: Callable[[np.ndarray], Any]
    """Runs one clip."""


def arrays(rows: table.Rows, tensors: Mapping[str, Any], shapes: Mapping[str, Any]) -> dict[str, Any]:
    """PyTorch's tensors as our tree of parameters."""
    flat, _ = table.to_jax(rows, tensors, shapes, "benchmark")
    return unflatten({path: np.asarray(array) for path, array in flat.items()})


def state(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """A module's tensors as arrays."""
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def hubert_features() -> Contest:
    """Features of HuBERT; both sides leave out the quantizer (1.3 M parameters of 96 M)."""
    kernels, strides = (10, 3, 3, 3, 3, 2, 2, 2), (5, 2, 2, 2, 2, 2, 2, 2)
    changes = {
        "conv_dim": (512,) * 8,
        "conv_kernel": kernels,
        "conv_stride": strides,
        "num_hidden_layers": OUTPUT_LAYER,
    }
    model = transformers.HubertModel(transformers.HubertConfig.from_dict(changes)).eval()
    config = style.hf_encoder_config(changes)
    params = arrays(style.hf_encoder_rows(config, "", ""), state(model), hubert.encoder_shapes(config))
    encoder = HubertEncoder.load(
        {"encoder": dict(vars(config)), "layer": OUTPUT_LAYER, "quantizer": {"kind": "kmeans"}},
        {"encoder": params, "quantizer": {"centroids": np.zeros((1, 768), np.float32)}},
    )

    def reference(clip: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(clip)[None]).last_hidden_state[0].numpy()

    return Contest("HuBERT 25 Hz", encoder.features, reference)


def styles() -> Contest:
    """Style units."""
    fields = transformers.Wav2Vec2Config.from_dict({"num_labels": 100})
    model = transformers.Wav2Vec2ForSequenceClassification(fields).eval()
    config = style.part_config({"num_labels": 100})
    encoder = Wav2Vec2Style.load(config, arrays(style.rows(config), state(model), style.shapes(config)))

    def reference(clip: np.ndarray) -> np.ndarray:
        x = (clip - clip.mean()) / np.sqrt(clip.var() + 1e-7)
        x = model.projector(model.wav2vec2(torch.from_numpy(x)[None]).last_hidden_state)[0]
        pooled = torch.stack([window.mean(0) for window in torch.split(x, 50)])
        return model.classifier(pooled).argmax(-1).numpy()

    return Contest("style encoder", encoder.encode_batch, reference)


def pitch() -> tuple[Contest, VQVAEPitch]:
    """Pitch units on our side, through a random VQ-VAE; PyTorch's F0 contour. Also our encoder."""
    reference = bundled_fcpe()
    import torchfcpe  # `bundled_fcpe` has made it importable

    released = load_torch(pathlib.Path(torchfcpe.__file__).parent / "assets/fcpe_c_v001.pt")
    config = fcpe.part_config(released["config_dict"])
    rng = np.random.default_rng(0)
    quantizer = {path: rng.normal(0, 0.1, shape).astype(np.float32) for path, shape in vqvae.shapes({}).items()}
    encoder = VQVAEPitch.load(
        {"vqvae": {}, "fcpe": config, "interpolate": True, "normalize": True},
        {"vqvae": unflatten(quantizer), "fcpe": arrays(fcpe.rows(config), released["model"], fcpe.shapes(config))},
    )

    return Contest("pitch", encoder.encode_batch, lambda clip: reference(torch.from_numpy(clip)).numpy()), encoder


def seconds_of(function: Callable[[], Any]) -> float:
    """Wall-clock time of a call."""
    time.sleep(0.3)  # the other side's OpenMP threads keep spinning for a fifth of a second after their work
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(contest: Contest, clips: Sequence[np.ndarray], rounds: int) -> tuple[float, float, float]:
    """Best real-time factors of both sides, and the median ratio ours / torch, after one round to warm up."""

    def one_by_one() -> None:
        for clip in clips:
            contest.torch(clip)

    times = [(seconds_of(lambda: contest.ours(clips)), seconds_of(one_by_one)) for _ in range(rounds + 1)][1:]
    audio = sum(map(len, clips)) / SAMPLE_RATE
    best = [audio / min(pair[side] for pair in times) for side in (0, 1)]
    return best[0], best[1], statistics.median(reference / ours for ours, reference in times)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one to warm up (default 5)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the single clip (default 10)")
    parser.add_argument("--clips", type=int, default=8, help="clips in the folder, 2 to 12 s long (default 8)")
    report.add_option(parser)
    options = parser.parse_args()
    where, figures = report.machine(), []
    print(
        f"{jax.devices()[0].device_kind} x {jax.device_count()}, {os.cpu_count()} cores, {platform.machine()}, "
        f"load {os.getloadavg()[0]:.1f}, float32, jax {jax.__version__}, torch {torch.__version__} "
        f"({torch.get_num_threads()} threads), transformers {transformers.__version__}"
    )
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    clip = speech(options.seconds, 0)
    folder = [speech(2 + 10 * k / max(options.clips - 1, 1), k + 1) for k in range(options.clips)]
    phonetic, style_units, (pitch_units, pitch_encoder) = hubert_features(), styles(), pitch()

    (f0, _), f0_reference = pitch_encoder.contours([clip])[0], pitch_units.torch(clip)
    features, expected = phonetic.ours([clip])[0], phonetic.torch(clip)
    same_styles = (style_units.ours([clip])[0] == style_units.torch(clip)).all()
    print(
        f"largest differences: HuBERT features {np.abs(features - expected).max():.1e} "
        f"of {np.abs(expected).max():.1f}, F0 {np.abs(f0 - f0_reference).max():.1e} Hz; "
        f"styles {'equal' if same_styles else 'differ'}"
    )
    single = [phonetic, style_units, pitch_units]
    together = Contest(
        "expressive units",
        lambda clips: [contest.ours(clips) for contest in single],
        lambda clip: [contest.torch(clip) for contest in single],
    )
    print(f"{'':16}{'clips':>8}{'ours':>10}{'torch':>10}{'ours / torch':>15}")
    for contest in (*single, together):
        for clips in ([clip], folder):
            ours, reference, ratio = measure(contest, clips, options.rounds)
            print(f"{contest.name:16}{len(clips):>8}{ours:>9.1f}x{reference:>9.1f}x{ratio:>14.2f}x", flush=True)
            figures.append(
                {"network": contest.name, "clips": len(clips), "ours": ours, "torch": reference, "ratio": ratio}
            )
    report.write(options.json, where, figures)


if __name__ == "__main__":
    main()
