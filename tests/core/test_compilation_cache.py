"""The cache of compiled programs: where it is, and who decides."""

import os
import pathlib
import subprocess
import sys

import pytest

from spirit_jax.core import compilation_cache
from spirit_jax.core.compilation_cache import CompilationCacheError, use_compilation_cache
from spirit_jax.core.paths import PathError

NAMES = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """A process that has not imported JAX, with a cache directory of its own."""
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.delitem(sys.modules, "jax", raising=False)


def test_the_cache_is_in_the_users_cache_directory_by_default(tmp_path):
    use_compilation_cache(None)
    directory = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    assert directory.is_dir()
    assert directory.parent == tmp_path / "caches" / "spirit_jax" / "compiled"


def test_a_directory_of_the_environment_wins_over_the_default_and_an_option_over_both(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/from/environment")
    use_compilation_cache(None)
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "/from/environment"
    use_compilation_cache(str(tmp_path / "mine"))
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "mine")


def test_none_turns_the_cache_off():
    use_compilation_cache("none")
    assert os.environ["JAX_ENABLE_COMPILATION_CACHE"] == "False"


def test_a_directory_that_cannot_be_used_is_refused_if_the_user_names_it(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(CompilationCacheError, match="file: cannot be used"):
        use_compilation_cache(str(tmp_path / "file"))
    with pytest.raises(PathError, match="gs:// is not read or written"):
        use_compilation_cache("gs://bucket/cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    use_compilation_cache(None)
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_the_oldest_programs_of_a_large_default_cache_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation_cache, "MAX_BYTES", 100)
    directory = compilation_cache.default_directory()
    directory.mkdir(parents=True)
    for age in range(4):
        (directory / f"{age}-cache").write_bytes(b"x" * 30)
        os.utime(directory / f"{age}-cache", (1e9 - age, 1e9 - age))
    use_compilation_cache(None)
    assert [path.name for path in directory.iterdir()] == ["0-cache"]


def test_a_command_keeps_its_programs(tmp_path):
    """In a process of its own, which compiles a program after it has read its options."""
    script = (
        "import dataclasses\nfrom spirit_jax import config\n"
        "@dataclasses.dataclass(frozen=True)\nclass C:\n    x: int = 0\n"
        "config.parse(C, ['--x', '1', '--compilation-cache', 'DIR'], 'x', '')\n"
        "import jax\njax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "jax.jit(lambda x: x @ x)(jax.numpy.ones((8, 8)))"
    ).replace("DIR", str(tmp_path / "kept"))
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    subprocess.run([sys.executable, "-c", script], check=True, env={**environment, "JAX_PLATFORMS": "cpu"})
    assert any(path.name.endswith("-cache") for path in (tmp_path / "kept").iterdir())
