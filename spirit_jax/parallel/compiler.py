"""What the compiler is told about a step besides the step itself.

XLA:TPU reduces an FSDP gradient over more than one dimension of the torus by an all-reduce, which keeps all links busy: a
reduce-scatter it has over one dimension alone, and one after the other they take as long. Left to itself it waits for it, and on
most chips for the gathers of the parameters too. Told so, it runs both beside the matrix products: in v5e's TensorCore, as steps of
fusions with them, elsewhere on the SparseCores. libtpu 0.0.50 refuses v5e's way on other chips, as prone to wrong results there.
"""

from collections.abc import Mapping

from jax.sharding import Mesh

# A gradient combined with another into one reduction cannot be run so; small ones are combined still.
_APART = {"xla_jf_crs_combiner_threshold_in_bytes": str(2**24)}

_FUSED = _APART | dict.fromkeys(
    (
        "xla_tpu_enable_async_collective_fusion",
        "xla_tpu_enable_async_collective_fusion_multiple_steps",
        "xla_tpu_overlap_compute_collective_tc",
        "xla_enable_async_all_gather",
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather",
        "xla_enable_async_all_reduce",
        "xla_tpu_enable_async_collective_fusion_fuse_all_reduce",
        # the gather of one weight and the reduction of another's gradient beside the same product
        "xla_tpu_async_collective_fusion_fuse_multiple_collectives",
        "xla_tpu_enable_async_collective_merger",
    ),
    "true",
)

_SPARSE_CORES = (
    _APART
    | dict.fromkeys(
        (
            "xla_tpu_enable_sparse_core_collective_offload_all_gather",
            "xla_tpu_enable_sparse_core_collective_offload_2d_all_gather",
            "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter",
            "xla_tpu_enable_sparse_core_collective_offload_nd_reduce_scatter",
            "xla_tpu_enable_sparse_core_collective_offload_all_reduce",
            "xla_tpu_use_tc_device_shape_on_sc",
            "xla_sc_disable_megacore_partitioning",
        ),
        "true",
    )
    | dict.fromkeys(
        (
            "xla_tpu_enable_async_collective_fusion_fuse_all_gather",
            "xla_tpu_enable_async_collective_fusion_fuse_all_reduce",
            "xla_tpu_enable_async_collective_fusion_fuse_reduce_scatter",
            "xla_sc_enable_instruction_fusion",
        ),
        "false",
    )
)

_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "TPU v5 lite": _FUSED,
    "TPU v5": _SPARSE_CORES,  # v5p
    "TPU v6 lite": _SPARSE_CORES,
}
"""By the kind of device."""


def compiler_options(mesh: Mesh) -> dict[str, str]:
    """For `jax.jit(..., compiler_options=)` of a program on this mesh."""
    return dict(_OPTIONS.get(mesh.devices.flat[0].device_kind, {}))
