"""The fused attention kernels of accelerators, for packed causal rows: splash attention on TPU, cuDNN's on GPU.

Each kernel runs where its rows and heads are: over the whole of a sequence, in `shard_map`.
"""

import functools
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from spirit_jax.kernels.platform import platform

Kernel = Callable[[Array, Array, Array, Array | None], Array]

RESIDUALS = "attention_out"
"""`checkpoint_name` of what a kernel's backward pass wants back: its output and the logarithm of its denominator."""

_LANES = 128  # the kernels work on multiples of it, in positions and in head features
_BLOCK_Q, _BLOCK_KV = 512, 1024  # positions at a time; blocks above the diagonal are skipped whole

_AXES = ("batch", "sequence", "activation_heads", "head_dim")
_KV_AXES = ("batch", "sequence", "activation_kv_heads", "head_dim")


def kernel_for(q_btnh: Float[Array, "B T N H"], k_btkh: Float[Array, "B T K H"]) -> Kernel | None:
    """The kernel of the platform that is compiled for, or None where there is none for these shapes and this type."""
    length, head = q_btnh.shape[1], q_btnh.shape[3]
    if length % _LANES:
        return None
    if platform() == "tpu" and head % _LANES == 0:
        return sharded(splash_attention)
    if platform() in ("gpu", "cuda") and q_btnh.dtype == jnp.bfloat16 and head % 8 == 0 and head <= 128:
        return sharded(cudnn_attention)
    return None


def sharded(kernel: Kernel) -> Kernel:
    """The kernel on each device's rows and heads, as the sharding rules split them; an axis that does not divide is whole."""

    def call(q_btnh, k_btkh, v_btkh, segment_ids_bt):
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1:
            return kernel(q_btnh, k_btkh, v_btkh, segment_ids_bt)
        if segment_ids_bt is None:
            segment_ids_bt = jnp.zeros(q_btnh.shape[:2], jnp.int32)
        q, kv = _spec(mesh, _AXES, q_btnh.shape), _spec(mesh, _KV_AXES, k_btkh.shape)
        if kv[2] is None:  # fewer key-value heads than devices: every device would need others of them
            q = PartitionSpec(q[0], q[1], None, q[3])
        specs = (q, kv, kv, PartitionSpec(q[0]))
        # check_vma: a Pallas call does not say how its results vary over the mesh
        return jax.shard_map(kernel, in_specs=specs, out_specs=q, check_vma=False)(
            q_btnh, k_btkh, v_btkh, segment_ids_bt
        )

    return call


def _spec(mesh: jax.sharding.AbstractMesh, axes: tuple[str, ...], shape: tuple[int, ...]) -> PartitionSpec:
    parts = nn.logical_to_mesh_axes(axes) or [None] * len(axes)
    ways = [
        math.prod(mesh.shape[name] for name in ((part,) if isinstance(part, str) else part or ())) for part in parts
    ]
    return PartitionSpec(*(None if size % way else part for part, size, way in zip(parts, shape, ways, strict=True)))


@functools.cache
def _blocks(length: int) -> splash.BlockSizes:
    """The largest blocks up to the wanted ones that divide the length."""
    q, kv = (
        max(size for size in range(_LANES, most + 1, _LANES) if length % size == 0) for most in (_BLOCK_Q, _BLOCK_KV)
    )
    # one kernel for all three gradients: it computes the scores once more, not twice
    return splash.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=min(kv, _BLOCK_Q),
        block_q_dkv=q,
        block_kv_dkv=kv,
        block_kv_dkv_compute=min(kv, _BLOCK_Q),
        use_fused_bwd_kernel=True,
    )


def splash_attention(
    q_btnh: Float[Array, "B T N H"],
    k_btkh: Float[Array, "B T K H"],
    v_btkh: Float[Array, "B T K H"],
    segment_ids_bt: Int[Array, "B T"] | None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Causal attention within documents by JAX's Pallas kernel for TPU; T and H must be multiples of 128.

    Args:
        interpret: run the kernel's code on any platform, slowly: for tests.
    """
    t, n, h = q_btnh.shape[1:]
    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((t, t))] * n)
    kernel = splash.make_splash_mha(
        mask,
        block_sizes=_blocks(t),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=RESIDUALS,
        interpret=interpret,
    )
    q_bnth, k_bkth, v_bkth = (jnp.swapaxes(x, 1, 2) for x in (q_btnh * h**-0.5, k_btkh, v_btkh))
    ids = None if segment_ids_bt is None else splash.SegmentIds(segment_ids_bt, segment_ids_bt)
    return jnp.swapaxes(jax.vmap(kernel)(q_bnth, k_bkth, v_bkth, ids), 1, 2)


def cudnn_attention(
    q_btnh: Float[Array, "B T N H"],
    k_btkh: Float[Array, "B T K H"],
    v_btkh: Float[Array, "B T K H"],
    segment_ids_bt: Int[Array, "B T"] | None,
    implementation: str = "cudnn",
) -> Float[Array, "B T N H"]:
    """Causal attention within documents by cuDNN, bfloat16 only.

    JAX's interface to it knows no segment ids: documents are told apart by a mask [B, 1, T, T], the same for all heads
    (32 MiB a row of 4096 in bfloat16), so blocks of pairs from different documents are computed and thrown away.
    """
    mask = None if segment_ids_bt is None else (segment_ids_bt[:, None, :, None] == segment_ids_bt[:, None, None, :])
    return jax.nn.dot_product_attention(
        q_btnh, k_btkh, v_btkh, mask=mask, is_causal=True, implementation=implementation
    )


def kernel_flops(call: str, operands: Sequence[tuple[int, ...]]) -> float | None:
    """Floating-point operations that a compiled splash kernel executes, or None for another one: XLA does not look inside.

    Two products forward and five backward (two of them for what the forward pass had), over the blocks that the causal
    mask does not skip.

    Args:
        call: the kernel's name and what else the compiled program says of it.
        operands: their shapes; the queries are the first one [..., N, T, H] of more than one head feature.
    """
    products = next((count for part, count in (("splash_mha_fwd", 2), ("splash_mha_dkv", 5)) if part in call), None)
    if products is None:
        return None
    *rows, length, head = next(dims for dims in operands if len(dims) >= 3 and dims[-1] % _LANES == 0)
    blocks = _blocks(length)
    q, kv = np.arange(0, length, blocks.block_q)[:, None], np.arange(0, length, blocks.block_kv)
    pairs = int((kv < q + blocks.block_q).sum()) * blocks.block_q * blocks.block_kv
    return products * 2.0 * math.prod(rows) * head * pairs
