"""python benchmarks/encode.py: the unit extractors against PyTorch's on the same clips, on the same machine.

Full-size networks: HuBERT 25 Hz to layer 11 with random weights and the style encoder with random weights against
transformers, FCPE with its real weights against torchfcpe (the VQ-VAE, 0.2 M parameters, is ours only), and all of them
as the pipeline that makes expressive units. Each is timed on one clip, then on a folder of clips of many lengths: torch
clip by clip, which is the reference's way, ours in batches (`encode_batch`). Rounds alternate; printed are the best
round's real-time factors (seconds of audio a second) and the median over rounds of ours / torch. Before timing, the
outputs are compared. Only the ratio carries over between machines and moments.
"""

import argparse
import os
import pathlib
import platform
import statistics
import sys
import time
import types

import jax
import numpy as np
import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
sys.modules.setdefault("torchaudio", None)  # transformers imports it when there; a build for another torch breaks that
import transformers  # noqa: E402

from spirit_jax.checkpoint import unflatten  # noqa: E402
from spirit_jax.convert import table  # noqa: E402
from spirit_jax.convert.components import fcpe, hubert, style, vqvae  # noqa: E402
from spirit_jax.convert.formats.torch_file import load_torch  # noqa: E402
from spirit_jax.speech.released.phonetic import HubertEncoder  # noqa: E402
from spirit_jax.speech.released.pitch import VQVAEPitch  # noqa: E402
from spirit_jax.speech.released.style import Wav2Vec2Style  # noqa: E402

LAYER = 11


def arrays(rows, tensors, shapes):
    flat, _ = table.to_jax(rows, tensors, shapes, "benchmark")
    return unflatten({path: np.asarray(array) for path, array in flat.items()})


def state(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def phonetic():
    """Ours, and torch's features; the quantizer (1.3 M parameters of 96) is left out of both."""
    kernels, strides = (10, 3, 3, 3, 3, 2, 2, 2), (5, 2, 2, 2, 2, 2, 2, 2)
    changes = {"conv_dim": (512,) * 8, "conv_kernel": kernels, "conv_stride": strides, "num_hidden_layers": LAYER}
    model = transformers.HubertModel(transformers.HubertConfig(**changes)).eval()
    config = style.hf_encoder_config(changes)
    params = arrays(style.hf_encoder_rows(config, "", ""), state(model), hubert.encoder_shapes(config))
    fields = {**vars(config)}
    head = {"kind": "kmeans"}
    ours = HubertEncoder.load(
        {"encoder": fields, "layer": LAYER, "quantizer": head},
        {"encoder": params, "quantizer": {"centroids": np.zeros((1, 768), np.float32)}},
    )

    def theirs(clip):
        return model(torch.from_numpy(clip)[None]).last_hidden_state[0].numpy()

    return ours.features, theirs


def styles():
    model = transformers.Wav2Vec2ForSequenceClassification(transformers.Wav2Vec2Config(num_labels=100)).eval()
    config = style.part_config({"num_labels": 100})
    ours = Wav2Vec2Style.load(config, arrays(style.rows(config), state(model), style.shapes(config)))

    def theirs(clip):
        x = (clip - clip.mean()) / np.sqrt(clip.var() + 1e-7)
        x = model.projector(model.wav2vec2(torch.from_numpy(x)[None]).last_hidden_state)[0]
        pooled = torch.stack([window.mean(0) for window in torch.split(x, 50)])
        return model.classifier(pooled).argmax(-1).numpy()

    return ours.encode_batch, theirs


def pitch():
    """Ours through the VQ-VAE (random), torch's F0 contour."""
    stub = types.ModuleType("torchaudio.transforms")
    stub.Resample = None  # imported by torchfcpe, used only for other sample rates
    sys.modules["torchaudio.transforms"] = stub
    torchaudio, sys.modules["torchaudio"] = sys.modules["torchaudio"], types.ModuleType("torchaudio")
    import torchfcpe

    sys.modules["torchaudio"] = torchaudio
    model = torchfcpe.spawn_bundled_infer_model(device="cpu")
    released = load_torch(pathlib.Path(torchfcpe.__file__).parent / "assets/fcpe_c_v001.pt")
    config = fcpe.part_config(released["config_dict"])
    network, rng = {}, np.random.default_rng(0)
    shapes = vqvae.shapes({})
    weights = {path: rng.normal(0, 0.1, shape).astype(np.float32) for path, shape in shapes.items()}
    ours = VQVAEPitch.load(
        {"vqvae": network, "fcpe": config, "interpolate": True, "normalize": True},
        {"vqvae": unflatten(weights), "fcpe": arrays(fcpe.rows(config), released["model"], fcpe.shapes(config))},
    )

    def theirs(clip):
        audio = torch.from_numpy(clip)[None, :, None]
        options = {"decoder_mode": "local_argmax", "threshold": 0.05, "f0_min": 50, "f0_max": 1100}
        f0, _ = model.infer(
            audio, 16_000, **options, interp_uv=True, output_interp_target_length=len(clip) // 80 + 1, retur_uv=True
        )
        return f0[0, :, 0].numpy()

    return ours, theirs


def speech(seconds: float, seed: int) -> np.ndarray:
    """Something voiced: F0 gliding around 120 Hz with harmonics, in noise, in syllables of a quarter of a second."""
    rng, time_ = np.random.default_rng(seed), np.arange(int(seconds * 16_000)) / 16_000
    phase = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * time_ + seed)) / 16_000
    voice = sum(np.sin(k * phase) / k for k in range(1, 20)) * (np.sin(2 * np.pi * 2 * time_) > -0.5)
    return (0.1 * voice + 0.01 * rng.normal(size=time_.size)).astype(np.float32)


def seconds(function, *arguments) -> float:
    time.sleep(0.3)  # OpenMP's threads go on spinning for a fifth of a second after the other side's work
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def measure(ours, theirs, clips, rounds: int) -> tuple[float, float, float]:
    """Best real-time factors of both, and the median over rounds of ours / torch; after one round to warm up."""

    def one_by_one():
        for clip in clips:
            theirs(clip)

    times = [(seconds(ours, clips), seconds(one_by_one)) for _ in range(rounds + 1)][1:]
    audio = sum(map(len, clips)) / 16_000
    best = [audio / min(pair[side] for pair in times) for side in (0, 1)]
    return best[0], best[1], statistics.median(torchs / mine for mine, torchs in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds, after one to warm up (default 5)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the single clip (default 10)")
    parser.add_argument("--clips", type=int, default=8, help="clips in the folder, 2 to 12 s long (default 8)")
    options = parser.parse_args()
    print(
        f"{jax.devices()[0].device_kind} x {jax.device_count()}, {os.cpu_count()} cores, {platform.machine()}, "
        f"load {os.getloadavg()[0]:.1f}, float32, jax {jax.__version__}, torch {torch.__version__} "
        f"({torch.get_num_threads()} threads), transformers {transformers.__version__}"
    )
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    clip = speech(options.seconds, 0)
    folder = [speech(2 + 10 * k / max(options.clips - 1, 1), k + 1) for k in range(options.clips)]
    (hubert_ours, hubert_theirs), (style_ours, style_theirs), (pitch_ours, pitch_theirs) = phonetic(), styles(), pitch()

    (f0, _), reference = pitch_ours.contours([clip])[0], pitch_theirs(clip)
    features, expected = hubert_ours([clip])[0], hubert_theirs(clip)
    print(
        f"largest differences: HuBERT features {np.abs(features - expected).max():.1e} of {np.abs(expected).max():.1f}, "
        f"F0 {np.abs(f0 - reference).max():.1e} Hz; "
        f"styles {'equal' if (style_ours([clip])[0] == style_theirs(clip)).all() else 'differ'}"
    )
    networks = {
        "HuBERT 25 Hz": (hubert_ours, hubert_theirs),
        "style encoder": (style_ours, style_theirs),
        "pitch": (pitch_ours.encode_batch, pitch_theirs),
    }

    def all_ours(clips):
        for ours, _ in networks.values():
            ours(clips)

    def all_theirs(clip):
        for _, theirs in networks.values():
            theirs(clip)

    print(f"{'':16}{'clips':>8}{'ours':>10}{'torch':>10}{'ours / torch':>15}")
    for name, (ours, theirs) in {**networks, "expressive units": (all_ours, all_theirs)}.items():
        for clips in ([clip], folder):
            mine, torchs, ratio = measure(ours, theirs, clips, options.rounds)
            print(f"{name:16}{len(clips):>8}{mine:>9.1f}x{torchs:>9.1f}x{ratio:>14.2f}x", flush=True)


if __name__ == "__main__":
    main()
