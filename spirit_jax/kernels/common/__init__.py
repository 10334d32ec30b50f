"""Implementations that more than one platform runs, each with the signature of its formula in `kernels.reference`."""
