"""The cache of compiled programs: its folder, switching it off, and failures."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from mtmamba_jax.cli import main as cli
from mtmamba_jax.devices import compilation_cache
from mtmamba_jax.devices.timing import compile_timed
from mtmamba_jax.files.paths import user_cache_folder


@pytest.fixture
def no_folder(monkeypatch):
    """Pretends that JAX runs on a GPU without a cache folder; restores the tests' own folder."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    folder = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", folder)


def test_folder_is_in_the_users_cache(no_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compilation_cache.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "cache" / "mtmamba_jax")
    assert (tmp_path / "cache" / "mtmamba_jax").is_dir()


@pytest.mark.parametrize("given", [None, "", "relative"])
def test_folder_is_in_the_home_by_default(given, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if given is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", given)
    assert user_cache_folder() == tmp_path / ".cache" / "mtmamba_jax"


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    unresolved = pathlib.Path("~/.cache/mtmamba_jax")
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: unresolved)
    with pytest.raises(RuntimeError, match=r"there is no home folder\. Set XDG_CACHE_HOME"):
        user_cache_folder()


def test_a_folder_set_in_jax_is_kept(no_folder, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compilation_cache.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path)


def test_a_disabled_cache_stays_disabled(no_folder):
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        compilation_cache.enable_compilation_cache()
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert jax.config.jax_compilation_cache_dir is None


def test_a_folder_that_cannot_be_written_is_logged(no_folder, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compilation_cache.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None
    (record,) = caplog.records
    assert "Compiled programs are not cached" in record.getMessage()
    assert "JAX_COMPILATION_CACHE_DIR" in record.getMessage()


def test_compile_time_tells_whether_the_program_was_cached():
    def timed():
        # A new function each time: JAX would keep the program of the same one in memory.
        return compile_timed(jax.jit(lambda x: jnp.sin(x) * 2.71828).lower, jnp.ones(3))[1]

    timed()
    assert timed()["compile_cached"]


def test_cpu_programs_are_not_cached_by_default(no_folder, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    compilation_cache.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None


def test_commands_cache_their_programs(no_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    arguments = ["--what=ss2d", "--spec=pixel", "--repeats=1"]
    assert cli.main(["benchmark", *arguments]) == 0
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mtmamba_jax")
