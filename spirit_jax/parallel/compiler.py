"""XLA:TPU options that let collectives of a training step run beside its matrix products.

XLA:TPU reduces an FSDP gradient over more than one dimension of the torus by an all-reduce, which keeps all links busy.
It has a reduce-scatter over one dimension only, and one dimension after the other takes as long. By default the
compiler makes the chip wait for these all-reduces and, on most chips, also for the all-gathers of the parameters. With
the options below, both run beside the matrix products: on v5e in the TensorCore, as steps of fusions with the products,
elsewhere on the SparseCores. libtpu 0.0.50 refuses v5e's options on other chips because they could give wrong results
there. On TPU7x, libtpu 0.0.42 runs them beside the products without options, and those of v5p change nothing.
"""

from collections.abc import Mapping

from jax.sharding import Mesh

# A gradient that is combined with another into one reduction cannot run asynchronously. Small gradients are still
# combined.
_SEPARATE_REDUCTIONS = {"xla_jf_crs_combiner_threshold_in_bytes": str(2**24)}

_FUSED = _SEPARATE_REDUCTIONS | dict.fromkeys(
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
    _SEPARATE_REDUCTIONS
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

_OPTIONS_BY_DEVICE_KIND: Mapping[str, Mapping[str, str]] = {
    "TPU v5 lite": _FUSED,
    "TPU v5": _SPARSE_CORES,  # v5p
    "TPU v6 lite": _SPARSE_CORES,
}


def compiler_options(mesh: Mesh) -> dict[str, str]:
    """Return `compiler_options` of `jax.jit` for a program on this mesh; empty for other devices than these TPUs."""
    return dict(_OPTIONS_BY_DEVICE_KIND.get(mesh.devices.flat[0].device_kind, {}))
