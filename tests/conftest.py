"""Set up before any test module is imported."""

import contextlib
import ctypes
import gc
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator

import jaxtyping
import pytest

# Tests, and the commands that they start, compile the same small models again and again. With the cache, each program
# is compiled once a session.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # pytest-xdist's workers share their parent's
    _programs = tempfile.TemporaryDirectory(prefix="spirit_jax_compiled_")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
# transformers imports torchaudio if it is installed. A build for another torch does not load, and no test needs it.
sys.modules.setdefault("torchaudio", None)  # pyright: ignore[reportArgumentType] (None stops an import)

# Shapes and types in the annotations of these modules are checked in every call that a test makes in its own process
# (loader workers and subprocesses import without the hook). `data` is not among them: its configs refuse wrong values
# with errors of their own, and checking its inner loops makes the tests slower by half.
CHECKED = (
    "spirit_jax.units",
    "spirit_jax.audio",
    "spirit_jax.vocabulary",
    "spirit_jax.checkpoint",
    "spirit_jax.core",
    "spirit_jax.speech.features",
    "spirit_jax.speech.f0",
    "spirit_jax.speech.scratch.griffin_lim",
    "spirit_jax.speech.scratch.kmeans",
    "spirit_jax.speech.scratch.prosody",
)
# is_pep484_tower: as every static checker has it, `float` includes int
jaxtyping.install_import_hook(CHECKED, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")


def _on_accelerator(config: pytest.Config) -> bool:
    """Whether `-m accelerator` chose the tests that run on the GPU or TPU of this machine."""
    return config.getoption("markexpr") == "accelerator"


def pytest_configure(config: pytest.Config) -> None:
    """Choose the platform before anything imports JAX: CPUs, or with `-m accelerator` the best one that JAX finds."""
    if not _on_accelerator(config):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


@pytest.fixture(scope="session")
def _emulator():
    """A server of buckets for the whole session, and the settings that lead every process to it."""
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # read when gcsfs is imported; see core.buckets
    pytest.importorskip("gcsfs")
    pytest.importorskip("gcp_storage_emulator")
    from tests.support.buckets import emulated_bucket

    with emulated_bucket() as (address, faults), pytest.MonkeyPatch.context() as patch:
        for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
            patch.setenv(name, address)
        yield faults


@pytest.fixture
def bucket(_emulator, request, tmp_path, monkeypatch):
    """A folder of an emulated bucket for one test; `bucket_faults` has the faults of the server."""
    _emulator.clear()
    monkeypatch.setenv("SPIRIT_BUCKET_CACHE", str(tmp_path / "bucket_cache"))
    yield f"gs://spirit/{abs(hash(request.node.nodeid))}"
    _emulator.clear()


@pytest.fixture
def bucket_faults(_emulator, monkeypatch):
    """What goes wrong in the server of buckets; waiting before requests are repeated takes no time."""
    import asyncio
    import types

    async def at_once(seconds):
        del seconds

    monkeypatch.setattr("gcsfs.retry.asyncio", types.SimpleNamespace(**{**vars(asyncio), "sleep": at_once}))
    monkeypatch.setattr("spirit_jax.core.buckets.time", types.SimpleNamespace(sleep=lambda seconds: None))
    return _emulator


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A worker for each core, up to four, where whole directories are to be tested; named files run in this process.

    So do the tests for accelerators, because processes do not share one.
    """
    if _on_accelerator(config):
        return 0
    files = all(pathlib.Path(argument.split("::")[0]).is_file() for argument in config.args)
    return 0 if files else min(os.cpu_count() or 1, 4)


LONGEST = ("test_train.py", "test_scheduler.py", "test_examples.py", "test_finetuning.py", "test_end_to_end.py")
"""Files that take longest, which must not be left for the end."""


def _is_optimized(node: pytest.Item | pytest.Module) -> bool:
    return node.get_closest_marker("optimized") is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files go first, so that the workers end at about the same time.

    After the first one, files whose programs are compiled as users compile them come before the others, so that
    workers seldom change the kind of compilation.
    """
    rank = {name: index for index, name in enumerate(LONGEST, -len(LONGEST))}
    first, *_ = LONGEST
    items.sort(key=lambda item: (item.path.name != first, not _is_optimized(item), rank.get(item.path.name, 0)))


def _resident_bytes() -> int:
    """Memory of this process; 0 where the operating system does not say."""
    statm = pathlib.Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def _forget_programs() -> None:
    """Forget all compiled programs and give their memory back, which glibc would keep."""
    import jax

    gc.unfreeze()
    jax.clear_caches()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


_compiled_as = None


@pytest.fixture(scope="module", autouse=True)
def compilation(request: pytest.FixtureRequest) -> Iterator[None]:
    """Programs compile fast and run slowly, except in files that are marked `optimized`.

    Files that compare numbers with recorded outputs or with kernels' references run the programs that users run.
    Compiled programs are forgotten between files where they have taken much memory. What lives longer than a file, such
    as modules, is frozen, so that garbage collection does not visit it again and again.
    """
    from tests.support.compilation import fast_compilation

    global _compiled_as
    optimized = _is_optimized(request.node)
    if _compiled_as not in (None, optimized) or _resident_bytes() > 2 * 1024**3:
        _forget_programs()
    _compiled_as = optimized
    gc.freeze()
    with contextlib.nullcontext() if optimized else fast_compilation():
        yield
