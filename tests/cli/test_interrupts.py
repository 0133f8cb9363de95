"""Ctrl-C: once, a command ends as soon as it can; twice, at once, whatever it is doing."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.training.test_processes import ROOT

COMMAND = """
import hashlib, os, signal, sys, time, types
from mtmamba_jax.cli.main import main

def run(options):
    {work}

sys.modules["mtmamba_jax.cli.train"] = types.SimpleNamespace(run=run)
sys.exit(main(["train"]))
"""
COMPILES = """
    print("started", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # does not return to Python
"""
LOSES = """
    while True:
        try: print("started", flush=True); time.sleep(100)
        except KeyboardInterrupt: print("lost", flush=True)
"""
SAVES = """
    try: print("started", flush=True); time.sleep(100)
    finally: print("saving", flush=True); time.sleep(100)
"""
FORKED = """
    if not os.fork(): signal.signal(signal.SIGINT, lambda *_: None); time.sleep(2); os._exit(0)
    try: print("started", flush=True); time.sleep(100)
    except KeyboardInterrupt: time.sleep(0.4)
    return 5
"""
IMPORTS = """
    try: print("started", flush=True); time.sleep(100)
    except KeyboardInterrupt: raise ImportError("numpy.core.multiarray failed to import")
"""
CALLS_BACK = """
    try: print("started", flush=True); time.sleep(100)
    except KeyboardInterrupt: raise RuntimeError("CpuCallback error: KeyboardInterrupt") from None
"""
# A shell that starts the tests in the background has made them ignore Ctrl-C.
HEEDS = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""
MESSAGE = "error: Interrupted. The same command resumes from the last checkpoint, if there is one."


def interrupt(command, *waits, after="started", first=signal.SIGINT):
    """Sends Ctrl-C to a command as a terminal does, the first time the signal `first`; returns its
    exit code, output and seconds."""
    process = subprocess.Popen(
        [sys.executable, "-c", HEEDS, *command],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout
        while after and after not in process.stdout.readline():
            assert process.poll() is None
        for number, seconds in enumerate(waits):
            time.sleep(seconds)
            os.killpg(process.pid, signal.SIGINT if number else first)
        begun = time.monotonic()
        output = process.communicate(timeout=240)[0]
    finally:
        process.kill()
    return process.returncode, output, time.monotonic() - begun


@pytest.mark.parametrize("work", [COMPILES, LOSES, SAVES], ids=["compiles", "loses", "saves"])
def test_a_second_interrupt_ends_a_command_at_once(work):
    code, output, seconds = interrupt([sys.executable, "-c", COMMAND.format(work=work)], 0.2, 0.5)
    assert code == 130
    assert output.endswith(f"\n{MESSAGE}\n")
    assert "Traceback" not in output
    assert seconds < 10


HINT = "\nWaiting for what cannot be interrupted, such as a compilation, or for a step to be saved."


@pytest.mark.parametrize(
    ("number", "again"), [(signal.SIGINT, "again"), (signal.SIGTERM, "twice")], ids=str
)
def test_a_first_signal_that_has_no_effect_yet_is_answered_with_what_to_do(number, again):
    work = f"    signal.signal({number:d}, lambda *_: None)\n{COMPILES}"
    code, output, _ = interrupt(
        [sys.executable, "-c", COMMAND.format(work=work.strip())], 0.2, 1.5, 0.1, first=number
    )
    assert code == 130
    assert output.startswith(f"{HINT} Ctrl-C {again} stops immediately.\n")
    assert output.count(HINT) == 1


def test_one_interrupt_of_a_process_group_counts_once():
    code, output, _ = interrupt([sys.executable, "-c", COMMAND.format(work=FORKED)], 0.5)
    assert (code, output) == (5, "")


def test_one_interrupt_ends_a_command_that_is_being_imported(tmp_path):
    (tmp_path / "slow_library.py").write_text(
        "import time\nprint('started', flush=True)\n"
        "try: time.sleep(100)\nexcept KeyboardInterrupt: print('broken off', flush=True)\n"
    )
    importing = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import mtmamba_jax.cli.main as main\n"
        "main.importlib.import_module = lambda name: __import__('slow_library')\n"
        "sys.exit(main.main(['train']))"
    )
    code, output, _ = interrupt([sys.executable, "-c", importing], 0.2)
    assert code == 130
    assert "broken off" not in output
    assert output.strip() == MESSAGE


@pytest.mark.parametrize("work", [IMPORTS, CALLS_BACK], ids=["imports", "calls back"])
def test_an_error_that_an_interrupt_became_is_reported_as_an_interrupt(work):
    code, output, _ = interrupt([sys.executable, "-c", COMMAND.format(work=work)], 0.2)
    assert (code, output) == (130, f"{MESSAGE}\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("after", "wait"),
    [("jax._src", 0.0), ("Compiling", 5.0), ("step 1/", 0.0), ("step 8/", 0.1)],
)
def test_a_second_interrupt_ends_training_in_every_phase(after, wait, tmp_path):
    command = [sys.executable, "-m", "tests.training.killed_run", str(tmp_path / "run"), "tiny"]
    if after == "jax._src":  # while it imports
        command = [sys.executable, "-X", "importtime", "launch.py", "train", "--workdir=nowhere"]
    code, output, seconds = interrupt(command, wait, 0.3, after=after)
    assert code == 130
    assert "Traceback" not in output
    assert seconds < 10
