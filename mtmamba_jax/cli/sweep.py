"""The command `sweep`: trains the variants of a configuration."""

import argparse
import signal
import sys

import jax

from mtmamba_jax.cli import train
from mtmamba_jax.cli.console import default_workdir, join_processes
from mtmamba_jax.files.paths import is_remote
from mtmamba_jax.messages import command, counted
from mtmamba_jax.paper.sweep import Job, create_jobs
from mtmamba_jax.training.stopping import StoppedError


def run(options: argparse.Namespace) -> int:
    """Trains the variants of a configuration or, with --print, prints the commands to do so."""
    workdir = options.workdir or default_workdir(options.config)
    patterns = options.rows.split(",") if options.rows else []
    seeds = _parse_seeds(options.seeds)
    jobs = create_jobs(options.config, patterns, seeds, workdir, options.overrides)
    left = [job for job in jobs if not job.is_done()]
    if options.print:
        for job in left:
            print(command(*job.arguments()))
        return 0
    join_processes(options)
    print(
        f"{counted(len(jobs), 'run')} in {workdir}, {len(jobs) - len(left)} of them finished.",
        flush=True,
    )
    failed = 0
    for number, job in enumerate(left, len(jobs) - len(left) + 1):
        print(f"\n[{number} of {len(jobs)}] {job.config}, seed {job.overrides['seed']}", flush=True)
        try:
            stop = _train(job)
        except StoppedError as stopped:
            print(stopped, flush=True)
            return train.exit_code(stopped.number)
        except (OSError, RuntimeError) as error:  # the other runs may still succeed
            if jax.process_count() > 1:  # the other processes are waiting within this run
                raise
            print(f"error: {job.workdir}: {error}", file=sys.stderr, flush=True)
            failed += 1
            continue
        if stop:  # after the last step of this run
            print(f"Stopped by {stop.name}. Run the same command to resume.", flush=True)
            return train.exit_code(stop)
    if failed:
        print(f"error: {failed} of {counted(len(jobs), 'run')} failed.", file=sys.stderr)
        return 1
    if is_remote(workdir):
        print("\nAll runs are finished. For the command tables, copy the folder to a local disk.")
    else:
        print(f"\nAll runs are finished. Next:\n  {command('tables', f'--runs={workdir}')}")
    return 0


def _train(job: Job) -> signal.Signals | None:
    try:
        return train.train_once(job.load(), job.workdir)
    finally:
        jax.clear_caches()  # the next run does not use this run's programs


def _parse_seeds(text: str) -> list[int]:
    """Parses --seeds; raises ValueError unless it lists distinct numbers."""
    parts = text.split(",")
    if not all(part.isdigit() for part in parts) or len(set(map(int, parts))) < len(parts):
        raise ValueError(f"--seeds must be distinct numbers, such as 0,1,2; got {text!r}.")
    return [int(part) for part in parts]
