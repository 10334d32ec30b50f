"""Convert checkpoints between the released PyTorch layout and spirit_jax checkpoint directories.

    python tools/convert_torch_weights.py import --source RELEASED --target ckpt/base --model base

This script runs `python -m spirit_jax.convert`, whose `--help` describes the options.
"""

from spirit_jax.convert.command import main

if __name__ == "__main__":
    main()
