"""The wheel: one top-level name, and it works far from the repository."""

import configparser
import pathlib
import shutil
import subprocess
import sys
import zipfile

FOLDERS = ("mtmamba_jax", "configs", "data_pipelines", "kernels")
ROOT = pathlib.Path(__file__).parents[1]
MODULES = (
    "kernels.ss2d",
    "data_pipelines.synthetic",
    "data_pipelines.builders.nyudv2.files",
    "configs.common",
    "training.loop",
    "cli",
)


def test_every_package_is_listed():
    folders = [path.parent for path in ROOT.glob("*/**/__init__.py")] + [ROOT / "mtmamba_jax"]
    code = [folder for folder in folders if folder.relative_to(ROOT).parts[0] in FOLDERS]
    names = {".".join(folder.relative_to(ROOT).parts) for folder in code}
    wanted = {n if n.startswith("mtmamba_jax") else f"mtmamba_jax.{n}" for n in names}
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert wanted == set(settings["options"]["packages"].split())


def test_wheel_has_one_top_level_name_and_imports_elsewhere(tmp_path):
    source = tmp_path / "source"  # a build leaves files behind
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = {name.split("/")[0] for name in file.namelist()}
        assert "mtmamba_jax/data_pipelines/builders/nyudv2/CITATIONS.bib" in file.namelist()
        assert "mtmamba_jax/py.typed" in file.namelist()
        assert "mtmamba_jax/metrics/boundaries/pascal_context_excluded.txt" in file.namelist()
        metadata = next(name for name in file.namelist() if name.endswith("top_level.txt"))
        assert file.read(metadata).decode().split() == ["mtmamba_jax"]
    assert {name for name in names if not name.endswith(".dist-info")} == {"mtmamba_jax"}

    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = [*pip, "install", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True, text=True)
    imports = "; ".join(f"import mtmamba_jax.{name}" for name in MODULES)
    check = f"{imports}; print(mtmamba_jax.kernels.ss2d.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", check],
        cwd=elsewhere,
        env={"PYTHONPATH": str(target), "PATH": ""},
        check=True,
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip().startswith(str(target))
