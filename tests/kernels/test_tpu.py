"""Kernels in programs that are compiled for TPUs."""

from spirit_jax.kernels.tpu import kernel_flops


def test_flops_of_a_kernel_are_those_of_the_blocks_that_it_runs():
    """4096 positions in blocks of 512 queries and 1024 keys: 20 of 32 blocks touch the triangle."""
    shapes = [(1, 8, 4), (2, 32, 4096, 128), (2, 32, 4096, 128)]
    forward = kernel_flops("splash_mha_fwd_segmented_residuals.1", shapes)
    assert forward == 2 * 2 * 2 * 32 * 128 * (20 * 512 * 1024)
    assert kernel_flops("splash_mha_dkv_segmented_no_residuals.1", shapes) == 2.5 * forward
    assert kernel_flops("something_else", shapes) is None
