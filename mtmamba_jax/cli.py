"""The command line: `python launch.py COMMAND`, installed as `mtmamba COMMAND`."""

from __future__ import annotations

import argparse
import json
import logging
import pathlib
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence

from mtmamba_jax.arguments import create_parser
from mtmamba_jax.names import check_name, nearest

# Commands import what they need when they run: --help and a mistyped flag answer at once.


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the process's exit code.

    0: done. 1: done in part, or stopped by what it met. 2: the command line is wrong.
    A user's mistake prints one message; `--traceback` shows where it came from.
    """
    # Orbax logs through absl: warnings of how this package calls it, and errors that it raises too.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = create_parser()
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        try:
            check_name("command", arguments[0], COMMANDS)
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
        return COMMANDS[options.command](options)
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
    processes = sys.modules.get("mtmamba_jax.processes")  # elsewhere it is alone
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


def _train(options: argparse.Namespace) -> int:
    from mtmamba_jax import config as configuration
    from mtmamba_jax.evaluate import score_table
    from mtmamba_jax.training.loop import train
    from mtmamba_jax.training.profile import parse_steps
    from mtmamba_jax.training.stopping import StoppedError

    config = configuration.load(options.config)
    configuration.override(config, options.overrides)
    tasks = configuration.tasks(config)
    workdir = options.workdir or f"runs/{configuration.run_name(options.config)}"
    profile = options.profile and parse_steps(options.profile, config.train.steps)
    _join(options)
    _announce(
        f"Training {config.model.name} with {config.model.encoder} on {config.data.name}: "
        f"{', '.join(task.name for task in tasks)}",
        f"{config.train.steps} steps of batch {config.train.batch_size}, "
        f"{config.data.size[0]}x{config.data.size[1]} pixels, {config.model.dtype}",
        f"Writing to {workdir}",
    )
    start = time.monotonic()
    try:
        result = train(config, workdir, profile)
    except StoppedError as stopped:
        print(f"{stopped} The same command goes on from there.", flush=True)
        return 130 if stopped.number == signal.SIGINT else 0
    print(
        f"\nBest model: step {result.step}. On the test set, beside the best constant "
        f"prediction:\n{score_table(tasks, result.scores, result.constants)}\n"
        f"\nTook {(time.monotonic() - start) / 60:.1f} minutes. Wrote to {workdir}:"
        f"\n  panels/         {len(result.panels)} test images with predictions and labels"
        "\n  metrics.jsonl   every number of the run"
        "\n  tensorboard/    the same with pictures: tensorboard --logdir DIR"
        "\n  best/, latest/  checkpoints\n"
        "\nNext:"
        f"\n  {_program()} predict --workdir={workdir} PHOTO_OR_FOLDER..."
        f"\n  {_program()} eval --workdir={workdir}"
    )
    return 0


def _eval(options: argparse.Namespace) -> int:
    from etils import epath

    from mtmamba_jax.evaluate import Evaluator, score_table
    from mtmamba_jax.panels import write_panels
    from mtmamba_jax.processes import is_first
    from mtmamba_jax.training.run import load_run

    _join(options)
    workdir = epath.Path(options.workdir)
    run = load_run(workdir, options.checkpoint)
    _announce(
        f"Evaluating the {options.checkpoint} checkpoint (step {run.step}) of {options.workdir} "
        f"on the test set of {run.config.data.name}"
    )
    evaluator = Evaluator(run.config, run.graph, run.tasks, run.mesh)
    scores, constants = evaluator.scores(run.parameters), evaluator.constants()
    print(score_table(run.tasks, scores, constants))
    path = workdir / f"scores_{options.checkpoint}.json"
    written = {"step": run.step, "scores": scores, "constants": constants}
    if is_first():
        path.write_text(json.dumps(written, indent=2) + "\n")
    # The best checkpoint's panels are those that training wrote.
    folder = "panels" if options.checkpoint == "best" else f"panels_{options.checkpoint}"
    panels = write_panels(
        workdir / folder,
        run.tasks,
        evaluator.predictions(run.parameters, run.config.eval.panels),
    )
    print(
        f"\nWrote {path} (every score) and {len(panels)} panels in {options.workdir}/{folder}\n"
        f"Next: {_program()} predict --workdir={options.workdir} PHOTO_OR_FOLDER..."
    )
    return 0


def _predict(options: argparse.Namespace) -> int:
    import tqdm

    from mtmamba_jax.evaluate import create_predict_step
    from mtmamba_jax.predict import Failure, find_photos, overlay_task, predict_photos
    from mtmamba_jax.training.run import load_run

    output = pathlib.Path(options.output)
    photos, failures = find_photos([pathlib.Path(path) for path in options.photos], skip=output)
    run = load_run(options.workdir, options.checkpoint, batch_size=1)
    size = _parse_size(options.size) if options.size else run.config.data.size
    if options.overlay:
        overlay_task(run.tasks)
    _announce(
        f"Predicting {', '.join(task.name for task in run.tasks)} for {len(photos)} photos, "
        f"fitted into {size[0]}x{size[1]}, with step {run.step} of {options.workdir}"
    )
    step = create_predict_step(run.graph, run.mesh)
    results = predict_photos(
        photos,
        run.tasks,
        lambda images: step(run.parameters, images),
        output,
        size=size,
        with_overlay=options.overlay,
    )
    folders = []
    for result in tqdm.tqdm(results, total=len(photos), unit="photo"):
        (failures if isinstance(result, Failure) else folders).append(result)
    for failure in failures:
        print(f"error: {failure.path}: {failure.reason}", file=sys.stderr)
    if folders:
        print(
            f"Wrote {len(folders)} of {len(photos)} photos to {output}: in a folder for each, "
            "panel.png and, for each task, a picture (.png) and the raw array (.npy).\n"
            f"Next: look at {folders[0] / 'panel.png'}"
        )
    return 1 if failures else 0


def _export(options: argparse.Namespace) -> int:
    from mtmamba_jax import export
    from mtmamba_jax.model_card import create_card
    from mtmamba_jax.training.run import load_run

    output = pathlib.Path(options.output)
    export.check_output(output)
    size = _parse_size(options.size) if options.size else None
    batch = export.parse_batch(options.batch)
    scan = export.choose_scan(options.platform, options.scan, batch)
    run = load_run(options.workdir, options.checkpoint, batch_size=1)
    print(
        f"Exporting step {run.step} ({options.checkpoint}) of {options.workdir} for "
        f"{options.platform}, scan: {scan}",
        flush=True,
    )
    program = export.export_program(
        run.config,
        run.tasks,
        platform=options.platform,
        size=size or run.config.data.size,
        batch=batch,
        scan=scan,
    )
    card = create_card(run, program, checkpoint=options.checkpoint, scan=scan)
    export.write_artifact(output, program, export.name_weights(run.parameters), card)
    print(
        f"Wrote {output}: program and weights, model_card.md (what goes in, what comes out) and "
        f"run.py\nNext: python {output / export.SCRIPT} IMAGE.npy, wherever jax and flatbuffers "
        "are installed"
    )
    return 0


def _benchmark(options: argparse.Namespace) -> int:
    output = pathlib.Path(options.output or f"benchmark_{options.what}.json")
    if not output.parent.is_dir():
        raise ValueError(f"--output={output}: there is no folder {output.parent}.")
    run, allowed = {
        "ss2d": (_benchmark_ss2d, ("spec", "implementation", "dtype")),
        "step": (_benchmark_model, ("config",)),
        "inference": (_benchmark_model, ("config",)),
        "devices": (_benchmark_model, ("config",)),
        "saving": (_benchmark_model, ("config",)),
        "input": (_benchmark_input, ("spec",)),
    }[options.what]
    for name in ("spec", "implementation", "dtype", "config"):
        if name not in allowed and getattr(options, name) is not None:
            raise ValueError(f"--{name} does not go with --what={options.what}.")
    if options.overrides and "config" not in allowed:
        key = next(iter(options.overrides))
        raise ValueError(f"--config.{key} does not go with --what={options.what}.")
    if options.repeats is None:
        options.repeats = 3 if options.what == "saving" else 20
    code = run(options, output)
    print(f"\nWrote {output} (every number)")
    return code


def _benchmark_ss2d(options: argparse.Namespace, output: pathlib.Path) -> int:
    from mtmamba_jax.benchmark import check_ss2d
    from mtmamba_jax.benchmark_report import report_ss2d
    from mtmamba_jax.kernels.ss2d.arg_specs import DECODER

    specs = options.spec.split(",") if options.spec else list(DECODER)
    implementations = options.implementation.split(",") if options.implementation else []
    dtype = options.dtype or "bfloat16"
    check_ss2d(specs, implementations, dtype, options.repeats)
    _announce(f"Timing LN(ss2d(x, ...)), {dtype}, median of {options.repeats}")
    errors = report_ss2d(specs, implementations, dtype, options.repeats, output)
    for error in errors:
        _fail(error, 1)
    return 1 if errors else 0


def _benchmark_model(options: argparse.Namespace, output: pathlib.Path) -> int:
    from mtmamba_jax import config as configuration
    from mtmamba_jax.benchmark import model_record
    from mtmamba_jax.benchmark_devices import report_devices
    from mtmamba_jax.benchmark_report import model_table, write
    from mtmamba_jax.benchmark_saving import saving_record, saving_table

    name = options.config or "synthetic"
    config = configuration.load(name)
    configuration.override(config, options.overrides)
    what = _described(options.what, config, "random ")
    _announce(f"Timing {what}, median of {options.repeats}")
    settings = {"repeats": options.repeats, "config_name": name}
    settings["config"] = configuration.flatten(config)
    if options.what == "devices":
        report_devices(config, options.repeats, output, settings)
        return 0
    if options.what == "saving":
        record = saving_record(config, options.repeats, output.parent)
        table = saving_table(record)
    else:
        record = model_record(options.what, config, options.repeats)
        table = model_table(record)
    print(f"\n{table}")
    write(output, options.what, settings, [record])
    return 0


def _benchmark_input(options: argparse.Namespace, output: pathlib.Path) -> int:
    from mtmamba_jax.benchmark_input import EXAMPLES, check_input, report_input
    from mtmamba_jax.data_pipelines.records import DATASETS

    names = options.spec.split(",") if options.spec else list(DATASETS)
    check_input(names, options.repeats)
    print(
        f"Timing training batches of {', '.join(names)}: {EXAMPLES} made-up examples of the "
        f"published size each, median of {options.repeats}",
        flush=True,
    )
    report_input(names, options.repeats, output)
    return 0


def _described(what: str, config, kind: str = "") -> str:
    """A model's program in words; `kind` of images."""
    program = "the prediction" if what == "inference" else "a training step"
    height, width = config.data.size
    return (
        f"{program} of {config.model.name} with {config.model.encoder} on {kind}{height}x{width} "
        f"images, {config.model.dtype}"
    )


def _plan(options: argparse.Namespace) -> int:
    from mtmamba_jax import config as configuration
    from mtmamba_jax import topology as topologies
    from mtmamba_jax.plan_report import plan_json, report_plan

    config = configuration.load(options.config)
    configuration.override(config, options.overrides)
    topology = topologies.find(options.topology)

    if options.json:
        text, fits = plan_json(options.what, config, topology)
        print(text)
        return 0 if fits else 1
    print(f"Compiling {_described(options.what, config)}, for {topology.name}", flush=True)
    return 0 if report_plan(options.what, config, topology) else 1


def _prepare(options: argparse.Namespace) -> int:
    from mtmamba_jax.data_pipelines.parallel import available_cores
    from mtmamba_jax.prepare import SHEET_FILE, check, prepare, summary, trainable

    workers = available_cores() if options.workers is None else options.workers
    folder = prepare(
        options.dataset,
        options.source,
        options.data_dir,
        allow_partial=options.allow_partial,
        num_workers=workers,
    )
    if options.check:
        count = check(options.dataset, options.data_dir, workers)
        print(f"All {count} records can be read and hold what they should.")
    print(
        f"\n{summary(options.dataset, options.data_dir)}\n"
        f"In {folder}\n"
        f"\nNext: look at {folder / SHEET_FILE}, some examples with all their labels"
    )
    if trainable(options.dataset, options.data_dir):
        place = f" --config.data.dir={options.data_dir}" if options.data_dir else ""
        print(f"  {_program()} train --config={options.dataset}{place}")
    return 0


def _program() -> str:
    """Returns how this process was called, for commands that are proposed."""
    name = pathlib.Path(sys.argv[0]).name
    return f"python {name}" if name.endswith(".py") else "mtmamba"


def _parse_size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise ValueError(f"--size wants HEIGHTxWIDTH in pixels, such as 448x576; got {text!r}.")
    return int(height), int(width)


def _join(options: argparse.Namespace) -> None:
    from mtmamba_jax.processes import join

    join(options.coordinator, options.num_processes, options.process_id)


def _announce(*lines: str) -> None:
    """Says what is about to run, on which devices; from here on they keep their programs."""
    import jax

    from mtmamba_jax.compilation_cache import keep_programs

    keep_programs()
    devices = jax.devices()
    kinds = sorted({device.device_kind for device in devices})
    print("\n".join(lines))
    count = jax.process_count()
    processes = f" of {count} processes" if count > 1 else ""
    kinds = ", ".join(kinds)
    print(f"Devices: {len(devices)} x {kinds}{processes} (jax {jax.__version__})", flush=True)


COMMANDS = {
    "train": _train,
    "eval": _eval,
    "export": _export,
    "predict": _predict,
    "benchmark": _benchmark,
    "plan": _plan,
    "prepare": _prepare,
}
GOING_ON = {  # said when these are interrupted
    "train": " The same command goes on from the last checkpoint, if there is one.",
    "prepare": " The same command goes on with what is not done yet.",
}
CONFIGURED = ("train", "benchmark", "plan")  # these take --config.key=value
