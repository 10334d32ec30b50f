"""Speed and memory, mostly as ratios to PyTorch in the same run: `python -m benchmarks.NAME` in the repository."""

import sys

# transformers imports torchaudio if it is installed, and a build for another torch does not load.
sys.modules.setdefault("torchaudio", None)  # pyright: ignore[reportArgumentType]  None is how Python hides a module
