"""The command line: `python launch.py COMMAND`; once installed, also `mtmamba COMMAND` and
`python -m mtmamba_jax COMMAND`."""

import argparse
import importlib
import logging
import sys
import threading
import time
import traceback
from collections.abc import Sequence

from mtmamba_jax.cli.flags import Parser, create_parser
from mtmamba_jax.cli.interrupts import Interrupts
from mtmamba_jax.cli.streams import open_streams
from mtmamba_jax.messages import check_name, nearest

_AFTER_INTERRUPTION = {
    "train": " The same command resumes from the last checkpoint, if there is one.",
    "prepare": " The same command continues with what is not done yet.",
    "sweep": " The same command resumes from the last checkpoint of the interrupted run.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Errors of the user are printed as one message; `--traceback` shows where they were raised.

    Returns:
      The exit code; the help lists their meanings.
    """
    open_streams()
    _silence_repeated_errors()
    if arguments is None:  # a program that gives them has its own log
        _show_log()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = create_parser()
    if arguments and not arguments[0].startswith("-") and arguments[0] not in parser.commands:
        try:
            check_name("command", arguments[0], parser.commands)
        except ValueError as error:
            return _fail(str(error), 2)
    options, unknown = parser.parse_known_args(arguments)
    try:
        with Interrupts(f"error: {_interrupted(options)}") as interrupts:
            code = _run(options, unknown, parser, interrupts)
    except BaseException:
        _exit_if_one_of_several(1, traceback.format_exc())
        raise
    if code:
        _exit_if_one_of_several(code)
    return code


def _run(
    options: argparse.Namespace, unknown: Sequence[str], parser: Parser, interrupts: Interrupts
) -> int:
    """Runs a command; turns errors of the user into a message and an exit code."""
    try:
        options.overrides = parse_overrides(unknown, options.command, parser)
        # Imported late: --help and a mistyped flag answer at once.
        with interrupts.at_once():
            command = importlib.import_module(f"mtmamba_jax.cli.{options.command}")
        code = command.run(options)
        sys.stdout.flush()  # here, where an error becomes a message
        return code
    except KeyboardInterrupt:
        return _fail(_interrupted(options), 130)
    except (ValueError, OSError, RuntimeError) as error:
        if "KeyboardInterrupt" in str(error):  # that came in a callback of XLA
            return _fail(_interrupted(options), 130)
        if options.traceback:
            raise
        return _fail(str(error), 2 if isinstance(error, ValueError) else 1)
    except Exception:
        time.sleep(0.2)  # the thread that counts may be behind this one
        if not interrupts.count:
            raise
        return _fail(_interrupted(options), 130)  # an import or a library made this of Ctrl-C


def _interrupted(options: argparse.Namespace) -> str:
    return f"Interrupted.{_AFTER_INTERRUPTION.get(options.command, '')}"


def _silence_repeated_errors() -> None:
    """Silences usage warnings of Orbax, and tracebacks of errors that are raised as well.

    When a disk is full, Orbax's event loops would print one for each of a thousand arrays, the
    thread that writes TensorBoard's file one more, and that file another when Python closes it.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    def report(unraisable):
        of_tensorboard = "/events.out.tfevents." in str(getattr(unraisable.object, "name", ""))
        if not of_tensorboard and str(unraisable.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(unraisable)

    def report_thread(error):
        if type(error.thread).__module__ != "tensorboardX.event_file_writer":
            threading.__excepthook__(error)

    if sys.unraisablehook is sys.__unraisablehook__:  # not a test's
        sys.unraisablehook, threading.excepthook = report, report_thread


class _Stderr(logging.Handler):
    """Writes to what is standard error at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def _show_log() -> None:
    """Shows the messages of the kernels below warnings too: which backend the scan runs."""
    logger = logging.getLogger("mtmamba_jax.kernels")
    logger.addHandler(_Stderr())
    logger.setLevel(logging.INFO)
    logger.propagate = False  # libraries call logging.basicConfig, which would show it again


def _exit_if_one_of_several(code: int, message: str = "") -> None:
    """Ends a process that has joined others at once; see `processes.exit_now`."""
    processes = sys.modules.get("mtmamba_jax.devices.processes")  # imported if it has joined
    if processes and processes.is_joined():
        print(message, end="", file=sys.stderr)
        processes.exit_now(code)


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def parse_overrides(unknown: Sequence[str], command: str, parser: Parser) -> dict[str, str]:
    """Returns {key: text} for `--config.key=value` and `--config.key value`."""
    sub = parser.commands[command]
    flags = sorted(flag for flag in sub._option_string_actions if flag.startswith("--"))
    overrides, rest = {}, list(unknown)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if "--config.KEY" not in flags or not flag.startswith("--config."):
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
