"""Decides which implementation of a kernel a program gets. Nothing else in the package branches on it."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Generic, ParamSpec, TypeVar

import jax

PLATFORMS = ("cpu", "gpu", "tpu")

REFERENCE = "reference"
"""The name of the plain formulas, where a platform's name may stand."""

ENVIRONMENT_VARIABLE = "SPIRIT_KERNELS"
"""Environment variable that, set to `reference`, runs the plain formulas on every platform."""

_in_use: ContextVar[str | None] = ContextVar("kernels in use", default=None)

P = ParamSpec("P")
R = TypeVar("R")


def platform() -> str:
    """`cpu`, `gpu` or `tpu`: the platform of the mesh in force (`jax.set_mesh`), else of JAX's first device.

    The mesh comes first so that a program that a CPU compiles ahead of time for a TPU gets the TPU's kernels.
    """
    if (name := _in_use.get()) in PLATFORMS:
        return name
    device = jax.sharding.get_abstract_mesh().abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name in ("cuda", "rocm") else name


def kernels_in_use() -> str:
    """`reference`, or the platform whose implementations run.

    Raises:
        ValueError: the environment variable has a value other than `reference`.
    """
    chosen = _in_use.get() or os.environ.get(ENVIRONMENT_VARIABLE)
    if not chosen:
        return platform()
    if chosen != REFERENCE and chosen != _in_use.get():
        raise ValueError(f"{ENVIRONMENT_VARIABLE} is {chosen!r}: expected {REFERENCE!r} or nothing")
    return chosen


@contextlib.contextmanager
def use_kernels(name: str) -> Iterator[None]:
    """Trace what is called inside with the plain formulas (`reference`) or as if compiling for a platform.

    A function that was jitted and called before keeps the kernels that it was traced with. The setting holds in the
    current thread.
    """
    if name not in (REFERENCE, *PLATFORMS):
        raise ValueError(f"kernels of {name!r}: expected one of {', '.join((REFERENCE, *PLATFORMS))}")
    token = _in_use.set(name)
    try:
        yield
    finally:
        _in_use.reset(token)


class Kernel(Generic[P, R]):
    """A function that has a plain formula and, for some platforms, a faster implementation with the same signature.

    A call runs the implementation for the platform that is being compiled for, and the formula where there is none.

    Args:
        default: the implementation of platforms without one of their own.

    Attributes:
        reference: the plain formula. Its docstring is the contract that every implementation keeps.
        implementations: platform -> implementation.
    """

    def __init__(
        self,
        reference: Callable[P, R],
        *,
        default: Callable[P, R] | None = None,
        cpu: Callable[P, R] | None = None,
        gpu: Callable[P, R] | None = None,
        tpu: Callable[P, R] | None = None,
    ):
        self.reference = reference
        given = {"cpu": cpu or default, "gpu": gpu or default, "tpu": tpu or default}
        self.implementations: Mapping[str, Callable[P, R]] = {
            platform: implementation for platform, implementation in given.items() if implementation is not None
        }
        self.__name__, self.__doc__ = reference.__name__, reference.__doc__

    def chosen(self) -> Callable[P, R]:
        """The implementation that a call would run here."""
        return self.implementations.get(kernels_in_use(), self.reference)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.chosen()(*args, **kwargs)
