"""The operations that decide how fast the networks run. This is the one table of what runs where.

Each is a `Kernel`: a plain formula in `reference`, which states the contract, and implementations by platform with the
same signature. `platform` picks one when a program is traced, by the platform that is compiled for.
`SPIRIT_KERNELS=reference` in the environment, or `use_kernels("reference")`, runs the formulas everywhere.
tests/kernels/test_kernels.py holds every implementation to its formula, values and gradients.

| kernel | cpu | gpu | tpu |
|---|---|---|---|
| `causal_attention` | one head of one row at a time | cuDNN, else blocks of queries | splash, else blocks of queries |
| `bidirectional_attention` | blocks of queries | blocks of queries | blocks of queries |
| `matmul` | own gradient | own gradient | own gradient |
| `swiglu` | own gradient | own gradient | own gradient |
| `cross_entropy` | chunks of 128 positions | chunks of 512 | chunks of 512 |
| `convolution` | few channels in pairs, else as on others | along a width, depthwise by shifts | as on GPUs |
| `transposed_convolution` | by phases | by phases | by phases |
| `normalized_convolution` | norm in the kernel | norm in the kernel | norm in the kernel |

Where a CPU gains from parameters in another form, the networks' CPU forms live beside what runs them:
`inference/llama_cpu.py`, `speech/released/hifigan_cpu.py` and `speech/released/wav2vec2_cpu.py`.
"""

from spirit_jax.kernels import gpu, reference, tpu
from spirit_jax.kernels.common import attention as query_blocks
from spirit_jax.kernels.common import convolution as common_convolution
from spirit_jax.kernels.common import cross_entropy as chunked
from spirit_jax.kernels.common import matmul as common_matmul
from spirit_jax.kernels.common import swiglu as common_swiglu
from spirit_jax.kernels.cpu import attention as cpu_attention
from spirit_jax.kernels.cpu import convolution as cpu_convolution
from spirit_jax.kernels.cpu import cross_entropy as cpu_cross_entropy
from spirit_jax.kernels.platform import Kernel, use_kernels
from spirit_jax.kernels.sharded import sharded

__all__ = [
    "bidirectional_attention",
    "cached_attention",
    "causal_attention",
    "convolution",
    "cross_entropy",
    "matmul",
    "normalized_convolution",
    "swiglu",
    "transposed_convolution",
    "use_kernels",
]

causal_attention = Kernel(
    reference.causal_attention,
    cpu=sharded(cpu_attention.causal_attention),
    gpu=sharded(gpu.causal_attention),
    tpu=sharded(tpu.causal_attention),
)
cached_attention = reference.cached_attention
"""Has no other implementation: its cost is to read the cache."""

bidirectional_attention = Kernel(
    reference.bidirectional_attention,
    default=query_blocks.bidirectional_attention,
)
matmul = Kernel(reference.matmul, default=common_matmul.matmul)
swiglu = Kernel(reference.swiglu, default=common_swiglu.swiglu)
cross_entropy = Kernel(
    reference.cross_entropy,
    default=chunked.cross_entropy,
    cpu=cpu_cross_entropy.cross_entropy,
)
convolution = Kernel(
    reference.convolution,
    default=common_convolution.convolution,
    cpu=cpu_convolution.convolution,
)
transposed_convolution = Kernel(
    reference.transposed_convolution,
    default=common_convolution.transposed_convolution,
)
normalized_convolution = Kernel(
    reference.normalized_convolution,
    default=common_convolution.normalized_convolution,
)
