"""torchfcpe's F0 extractor with its real weights, which the benchmarks compare with."""

import sys
import types
from collections.abc import Callable
from typing import Any

import torch


def bundled_fcpe(device: str = "cpu") -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function from a clip, float32 [R] at 16 kHz, to its F0 in Hz at 200 Hz, float32 [R // 80 + 1].

    Raises:
        ImportError: torchfcpe is not installed.
    """
    # torchfcpe imports torchaudio's Resample and uses it only for other sample rates.
    stub = types.ModuleType("torchaudio.transforms")
    vars(stub)["Resample"] = None
    hidden = sys.modules.get("torchaudio")
    sys.modules["torchaudio.transforms"], sys.modules["torchaudio"] = stub, types.ModuleType("torchaudio")
    try:
        import torchfcpe
    finally:
        sys.modules["torchaudio"] = hidden  # pyright: ignore[reportArgumentType]  None hides a module
    model: Any = torchfcpe.spawn_bundled_infer_model(device=device)

    def contour(clip: torch.Tensor) -> torch.Tensor:
        options = {"decoder_mode": "local_argmax", "threshold": 0.05, "f0_min": 50, "f0_max": 1100}
        f0, _ = model.infer(
            clip[None, :, None],
            16_000,
            **options,
            interp_uv=True,
            output_interp_target_length=len(clip) // 80 + 1,
            retur_uv=True,
        )
        return f0[0, :, 0]

    return contour
