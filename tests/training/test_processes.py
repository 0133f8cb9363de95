"""Several processes train the model that one trains, and resume from each other's checkpoints."""

import itertools
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys

import pytest

from mtmamba_jax.cli.main import main
from mtmamba_jax.metrics.depth import DELTAS
from mtmamba_jax.training.report import read_metrics

ROOT = pathlib.Path(__file__).parents[2]
DEVICES = 4
# Processes, and devices that share one copy of the state.
LAYOUTS = [(1, 1), (2, 1), (2, 2), (4, 1), (1, 2), (4, 2)]
FAST = [(1, 1), (2, 2)]
SETTINGS = ["train.batch_size=4", "eval.batch_size=4", "train.checkpoint_every=8"]
SAVED = 16  # the last step before the end that is saved


def run(workdir, layout, *overrides):
    """Trains a pixel model for 20 steps, or to their end, on four CPU devices."""
    return finish(start(workdir, layout, *overrides))


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start_each(command, count, *arguments, flags=""):
    """Starts `count` processes with four CPU devices together: a number of each in the command."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES // count} {flags}",
    }
    return [
        subprocess.Popen(
            [*command, str(index), *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]


def start(workdir, layout, *overrides):
    """Starts the processes of `run`."""
    count, fsdp = layout
    settings = [*SETTINGS, f"mesh.fsdp={fsdp}", *overrides]
    module = "tests.training.one_of_several"
    command = [sys.executable, "-m", module, str(free_port()), str(count)]
    flags = "--xla_backend_optimization_level=0"
    return start_each(command, count, str(workdir), *settings, flags=flags)


def finish(started):
    """Waits for processes, which must end well, and returns what they printed."""
    try:
        outputs = [process.communicate(timeout=240)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * len(started), "\n".join(outputs)
    return outputs


def losses(workdir):
    return {line["step"]: line["loss"] for line in read_metrics(workdir) if line["kind"] == "train"}


def marked(layouts, fast=FAST):
    """Returns parameters for pytest, slow ones marked."""
    return [
        each if each in fast else pytest.param(each, marks=pytest.mark.slow) for each in layouts
    ]


class Runs(dict):
    """The work directory and output of a run on each layout, trained when asked for."""

    def __init__(self, factory):
        self._factory = factory

    def __missing__(self, layout):
        workdir = self._factory.mktemp("run")
        self[layout] = workdir, run(workdir, layout)
        return self[layout]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory)


@pytest.mark.parametrize("layout", marked(LAYOUTS[1:]))
def test_every_layout_gives_the_losses_of_one_process(layout, runs):
    wanted, found = losses(runs[LAYOUTS[0]][0]), losses(runs[layout][0])
    assert list(found) == list(wanted) == list(range(1, 21))
    # The bound of the project; only the order of float32 sums differs.
    assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("layout", marked(LAYOUTS[1:]))
def test_every_layout_gives_the_scores_of_one_process(layout, runs):
    # Five test examples: the last batch of four is filled up in three of its places, some of them
    # on processes that have no example of it at all.
    def scores(workdir):
        lines = [line for line in read_metrics(workdir) if line["kind"] != "train"]
        return [{key: value for key, value in line.items() if key != "kind"} for line in lines]

    wanted, found = scores(runs[LAYOUTS[0]][0]), scores(runs[layout][0])
    assert found[0] == pytest.approx(
        wanted[0], rel=1e-6
    )  # of constants, before anything is learned
    assert len(found) == len(wanted) == 4
    counted = [f"depth/{name}" for name in DELTAS]
    for a, b in zip(found, wanted, strict=True):
        for name in counted:
            # Two of 5x32x64 pixels, whose ratios are at a limit and round to either side of it.
            assert a.pop(name, 0) == pytest.approx(b.pop(name, 0), abs=100 * 2 / (5 * 32 * 64))
        assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize("layout", marked(LAYOUTS))
def test_only_the_first_process_prints_and_draws(layout, runs):
    workdir, outputs = runs[layout]
    assert "step 20/20" in outputs[0]
    assert not any("step" in output for output in outputs[1:])
    assert len(list((workdir / "panels").glob("*.png"))) == 2


@pytest.mark.parametrize(
    "layouts",
    marked([*itertools.pairwise([*LAYOUTS, LAYOUTS[0]]), tuple(FAST[::-1])], [tuple(FAST[::-1])]),
)
def test_a_checkpoint_of_each_layout_resumes_on_another(layouts, runs, tmp_path):
    saved, layout = layouts
    workdir = shutil.copytree(runs[saved][0], tmp_path / "run")
    shutil.rmtree(workdir / "latest" / "20")
    assert [path.name for path in (workdir / "latest").iterdir()] == [str(SAVED)]
    output = run(workdir, layout)[0]
    assert f"Resuming from step {SAVED}" in output
    assert losses(workdir) == pytest.approx(losses(runs[saved][0]), rel=1e-5)


@pytest.mark.slow
def test_every_layout_starts_from_the_weights_of_another_run(runs, tmp_path):
    # Nothing is learned at this rate: the losses are those of the weights it begins with.
    settings = ("optimizer.learning_rate=1e-30", "train.steps=2", f"init.run={runs[1, 1][0]}")
    found = {}
    for layout in ((1, 1), (2, 2)):
        output = run(tmp_path / str(layout), layout, *settings)[0]
        assert f"config.init.run: weights of {runs[1, 1][0]}/best/" in output
        found[layout] = losses(tmp_path / str(layout))
    assert found[2, 2] == pytest.approx(found[1, 1], rel=1e-5)
    assert found[1, 1][1] != pytest.approx(losses(runs[1, 1][0])[1], rel=1e-3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_processes=2"], "--coordinator, --process_id missing: give"),
        (["--coordinator=here", "--num_processes=2", "--process_id=0"], "--coordinator=HOST:PORT"),
        (["--coordinator=a:1", "--num_processes=2", "--process_id=2"], "< --num_processes, got"),
    ],
)
def test_incomplete_or_contradictory_flags_are_refused(flags, message, tmp_path, capsys):
    assert main(["train", f"--workdir={tmp_path}", *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("used", [False, True])
def test_a_single_process_joins_nothing(used):
    code = (
        "import sys, jax\n"
        "from mtmamba_jax.devices import processes\n"
        f"{'jax.devices()' if used else ''}\n"
        "out = sys.stdout\n"
        "processes.join()\n"
        "assert processes.is_first() and sys.stdout is out and jax.process_count() == 1\n"
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment)


def test_sums_of_all_processes_are_exact_in_64_bits():
    code = (
        "import sys\n"
        "import numpy as np\n"
        "from mtmamba_jax.devices import processes\n"
        "processes.join(f'localhost:{sys.argv[1]}', 2, int(sys.argv[2]))\n"
        "own = 2**40 + 1 + int(sys.argv[2])\n"
        "sums = {'a': np.array([[own, -5]]), 'b': np.int64(own)}\n"
        "found = processes.sum_over_processes(sums)\n"
        "assert found['a'].tolist() == [[2**41 + 3, -10]], found\n"
        "assert found['b'].shape == () and found['b'] == 2**41 + 3, found\n"
    )
    port, environment = free_port(), os.environ | {"JAX_PLATFORMS": "cpu"}
    finish(
        [
            subprocess.Popen(
                [sys.executable, "-c", code, str(port), str(index)],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for index in range(2)
        ]
    )


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "2 processes were .* --process_id=.OMPI_COMM_WORLD_RANK"),
        ({"PMI_SIZE": "4"}, "4 processes were started .* --num_processes=.PMI_SIZE and"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, "JAX_COORDINATOR_ADDRESS is set, so this is one of"),
    ],
)
def test_processes_that_do_not_see_each_other_do_not_start_one_by_one(told, message, tmp_path):
    command = [sys.executable, "launch.py", "eval", f"--workdir={tmp_path}"]  # joins as train does
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | told
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert re.search(message, done.stderr)
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("nodes", "shown", "taken"),
    [
        (1, ("0,1", "0,1"), ("0", "1")),  # JAX's way: the i-th task of a node, the i-th GPU
        (2, ("0,1", "0,1"), ("all", "all")),  # --ntasks-per-node=1
        (1, ("0", "1"), ("all", "all")),  # --gpus-per-task=1
        (1, (None, None), ("0", "1")),
    ],
)
def test_a_slurm_task_takes_the_gpus_that_no_other_task_takes(nodes, shown, taken):
    code = (
        "import jax, sys\n"
        "from mtmamba_jax.devices import processes\n"
        "processes.join()\n"
        "taken = jax.config.read('jax_cuda_visible_devices')\n"
        "print(f'{jax.process_count()} tasks; this takes {taken}.', file=sys.stderr)\n"
    )
    port = free_port()
    started = []
    for index in range(2):
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_COORDINATOR_PORT": str(port),
            "SLURM_JOB_ID": "1",
            "SLURM_STEP_NODELIST": "localhost",  # of which JAX takes the first
            "SLURM_STEP_NUM_NODES": str(nodes),
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(index),
            "SLURM_LOCALID": str(index if nodes == 1 else 0),
        }
        environment.pop("CUDA_VISIBLE_DEVICES", None)
        if shown[index] is not None:
            environment["CUDA_VISIBLE_DEVICES"] = shown[index]
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    for output, devices in zip(finish(started), taken, strict=True):
        assert f"2 tasks; this takes {devices}." in output
