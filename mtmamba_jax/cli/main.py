"""The command line: `python launch.py COMMAND`, installed as `mtmamba COMMAND`."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import traceback
from collections.abc import Callable, Sequence

from mtmamba_jax.cli.flags import create_parser
from mtmamba_jax.messages import check_name, nearest


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the process's exit code.

    0: done. 1: done in part, or stopped by what it met. 2: the command line is wrong.
    A user's mistake prints one message; `--traceback` shows where it came from.
    """
    # Orbax logs through absl: warnings of how this package calls it, and errors that it raises too.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = create_parser()
    if arguments and not arguments[0].startswith("-") and arguments[0] not in parser.commands:
        try:
            check_name("command", arguments[0], parser.commands)
        except ValueError as error:
            return _fail(str(error), 2)
    options, unknown = parser.parse_known_args(arguments)
    try:
        code = _run(options, unknown, parser)
    except BaseException:
        _leave_others(1, traceback.print_exc)
        raise
    if code:
        _leave_others(code)
    return code


def _run(options: argparse.Namespace, unknown: Sequence[str], parser) -> int:
    """Runs a command; a user's mistake becomes a message and an exit code."""
    try:
        options.overrides = _overrides(unknown, options.command, parser)
        # Only now: --help and a mistyped flag answer at once.
        command = importlib.import_module(f"mtmamba_jax.cli.{options.command}")
        return command.run(options)
    except KeyboardInterrupt:
        return _fail(f"Interrupted.{GOING_ON.get(options.command, '')}", 130)
    except ModuleNotFoundError as error:  # also kernels, configs, ... of a plain checkout
        return _fail(f"{error}. Install the package first: pip install -e .", 1)
    except (ValueError, OSError, RuntimeError) as error:
        if options.traceback:
            raise
        return _fail(str(error), 2 if isinstance(error, ValueError) else 1)


def _leave_others(code: int, say: Callable[[], object] = lambda: None) -> None:
    """Ends this process where it is one of several; see `processes.leave`."""
    processes = sys.modules.get("mtmamba_jax.devices.processes")  # elsewhere it is alone
    if processes is not None and processes.is_joined():
        say()
        processes.leave(code)


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _overrides(unknown: Sequence[str], command: str, parser) -> dict[str, str]:
    """Returns {key: text} of `--config.key=value`, or `--config.key value`."""
    flags = sorted(
        flag
        for action in parser.commands[command]._actions
        for flag in action.option_strings
        if flag.startswith("--")
    )
    overrides, rest = {}, list(unknown)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if command not in CONFIGURED or not flag.startswith("--config."):
            raise ValueError(
                f"Unknown argument {flag!r} of {command}.{nearest(flag, flags)} "
                f"Valid: {', '.join(flags)}."
            )
        if not equals:
            if not rest:
                raise ValueError(f"{flag} has no value; write {flag}=VALUE.")
            value = rest.pop(0)
        overrides[flag.removeprefix("--config.")] = value
    return overrides


GOING_ON = {  # said when these are interrupted
    "train": " The same command goes on from the last checkpoint, if there is one.",
    "prepare": " The same command goes on with what is not done yet.",
    "sweep": " The same command goes on from the last checkpoint of the run it was at.",
}
CONFIGURED = ("train", "sweep", "convert", "benchmark", "plan")  # these take --config.key=value
