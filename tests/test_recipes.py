"""Bash and the command line accept the commands in the README and the docs."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import tarfile

import pytest

from mtmamba_jax import config as configuration
from mtmamba_jax.cli.flags import create_parser
from mtmamba_jax.cli.main import parse_overrides

ROOT = pathlib.Path(__file__).parents[1]
DOCS = "\n".join(path.read_text() for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))])


def blocks_of(text, language="sh"):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


BLOCKS = blocks_of(DOCS)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Writes the Python files shown in the docs to the folders that commands read them from."""
    folders = (tmp_path, tmp_path / "path" / "to")
    folders[1].mkdir(parents=True)
    for block in blocks_of(DOCS, "python"):
        if name := re.match(r"# (\w+\.py)\n", block):
            for folder in folders:
                (folder / name[1]).write_text(block)
    monkeypatch.chdir(tmp_path)


def commands(text):
    """Returns the arguments of each of this project's commands in a text."""
    text = text.replace("\\\n", " ")
    found = re.findall(r"(?:python launch\.py|(?<![.\w])mtmamba) (\w+(?: [^\n`'\"#;|&>]*)?)", text)
    # A variable may be a number or a name: 1 is valid as both.
    return [re.sub(r"\$\w+", "1", arguments) for arguments in found]


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_is_valid_bash(block):
    done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("arguments", commands(DOCS))
def test_every_documented_command_is_accepted(arguments):
    parser = create_parser()
    options, unknown = parser.parse_known_args(shlex.split(arguments))
    overrides = parse_overrides(unknown, options.command, parser)
    if hasattr(options, "config"):
        name = options.config or "synthetic"
        if options.command == "sweep":  # --config is a configuration without its variant
            name += f":{configuration.variants(name)[0]}"
        configuration.load(name, overrides)


def test_every_command_is_documented():
    shown = {arguments.split()[0] for arguments in commands("\n".join(BLOCKS))}
    assert shown == set(create_parser().commands)


def test_every_cluster_recipe_trains():
    recipes = blocks_of((ROOT / "docs" / "clusters.md").read_text())
    assert [len(commands(block)) for block in recipes] == [1, 1, 1, 1]
    assert all(commands(block)[0].startswith("train ") for block in recipes)


def test_the_tpu_report_runs_valid_commands_and_packs_their_output(tmp_path):
    (tmp_path / "docs").mkdir()
    script = shutil.copy(ROOT / "docs" / "tpu_report.sh", tmp_path / "docs")
    done = subprocess.run(
        ["bash", script, "found"],
        env=os.environ | {"PYTHON": "echo"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = [shlex.split(line) for line in re.findall(r"launch\.py (.*)", done.stdout)]
    assert len(found) >= 6
    for arguments in found:
        parser = create_parser()
        options, unknown = parser.parse_known_args(arguments)
        parse_overrides(unknown, options.command, parser)
    assert "step: exit code 0" in (tmp_path / "found" / "times.txt").read_text()
    with tarfile.open(tmp_path / "found.tgz") as packed:
        assert {"found/tests.txt", "found/step.txt", "found/times.txt"} <= set(packed.getnames())
