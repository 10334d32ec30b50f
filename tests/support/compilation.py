"""Fast compilation for tests, which spend most of their time in XLA's compiler and little in what it compiles."""

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax._src import compiler

_FAST = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
"""XLA's options that compile a training step four times faster: LLVM does not optimize, and fusions are emitted by
XLA's older code, which jax 0.12 no longer has. Sums may be rounded in another order."""


@functools.cache
def _options() -> dict[str, int | bool]:
    """Those of the fast options that this version of XLA has."""

    def exists(name: str) -> bool:
        try:
            jax.jit(lambda: 0, compiler_options={name: _FAST[name]}).lower().compile()
        except jax.errors.JaxRuntimeError:
            return False
        return True

    return {name: value for name, value in _FAST.items() if exists(name)}


@contextlib.contextmanager
def fast_compilation() -> Iterator[None]:
    """A context in which this process compiles every program with the fast options."""
    original = compiler.get_compile_options

    def get_compile_options(*args, env_options_overrides: Mapping[str, Any] | None = None, **kwargs):
        options: dict[str, Any] = {**_options(), **(env_options_overrides or {})}
        return original(*args, env_options_overrides=options, **kwargs)

    _options()
    # JAX takes options for one jitted function, or from XLA_FLAGS for the whole process. Neither fits one test file.
    compiler.get_compile_options = get_compile_options
    try:
        yield
    finally:
        compiler.get_compile_options = original


def fast_environment(devices: int = 1) -> dict[str, str]:
    """The environment of a command that compiles with the fast options and has this many simulated devices."""
    flags = [f"--xla_force_host_platform_device_count={devices}"]
    flags += [f"--{name}={str(value).lower()}" for name, value in _options().items()]
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}
