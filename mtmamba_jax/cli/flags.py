"""What the command line takes: commands and their flags."""

from __future__ import annotations

import argparse

import mtmamba_jax

BENCHMARKS = ("ss2d", "step", "inference", "devices", "input")


def create_parser() -> argparse.ArgumentParser:
    """Returns the parser; its `commands` are those of each command, by name."""
    parser = argparse.ArgumentParser(
        prog="mtmamba", description=mtmamba_jax.__doc__, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=mtmamba_jax.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parser.commands = {}

    def command(name: str, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        sub.add_argument("--traceback", action="store_true", help="show where an error comes from")
        parser.commands[name] = sub
        return sub

    train = command("train", "Train a model, evaluate it and draw what it predicts.")
    train.add_argument(
        "--config", default="synthetic", help="NAME or NAME:VARIANT of configs/ (synthetic)"
    )
    _add_config_key(train)
    train.add_argument(
        "--workdir", help="where to write, and to go on from; a folder or gs://... (runs/NAME)"
    )
    train.add_argument(
        "--profile", metavar="START:STOP", help="trace these steps into WORKDIR/profile"
    )
    _add_processes(train)

    for name, help in (
        ("eval", "Score a trained model on its test set."),
        ("export", "Write a trained model for elsewhere: to run with jax alone, or for PyTorch."),
        ("predict", "Predict the maps of photos."),
    ):
        sub = command(name, help)
        sub.add_argument("--workdir", required=True, help="of a training run")
        sub.add_argument(
            "--checkpoint", choices=("best", "latest"), default="best", help="which weights (best)"
        )
    _add_eval(parser.commands["eval"])
    _add_processes(parser.commands["eval"])
    _add_export(parser.commands["export"])
    sub.add_argument("photos", nargs="+", help="files or folders")
    sub.add_argument("--output", default="predictions", help="where to write (predictions)")
    sub.add_argument("--size", help="HEIGHTxWIDTH photos are fitted into (that of training)")
    sub.add_argument("--overlay", action="store_true", help="also draw classes over the photo")
    sub.add_argument(
        "--features", action="store_true", help="also draw what each task's head is given"
    )

    convert = command("convert", "Turn weights of PyTorch into a run, or into a plain file.")
    convert.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="FILE|hf:REPO",
        help="of MTMamba, MTMamba++ or a Swin encoder: .safetensors, .pth, .pth.tar, .pt, .bin",
    )
    convert.add_argument(
        "--to", required=True, metavar="DIR|FILE.safetensors", help="a work directory, or a file"
    )
    convert.add_argument("--config", help="of the model (the published one that has its tasks)")
    _add_config_key(convert)

    benchmark = command(
        "benchmark",
        "Time the scan, a training step, inference, several devices or the input pipeline.",
    )
    benchmark.add_argument("--what", required=True, choices=BENCHMARKS)
    benchmark.add_argument("--repeats", type=int, default=20, help="number of timing samples (20)")
    benchmark.add_argument("--output", help="JSON of every number (benchmark_WHAT.json)")
    benchmark.add_argument(
        "--spec",
        metavar="NAME,...",
        help="ss2d: of arg_specs.py (all decoder stages); input: datasets (all)",
    )
    benchmark.add_argument(
        "--implementation", metavar="NAME,...", help="ss2d: side by side (the platform's choice)"
    )
    benchmark.add_argument("--dtype", help="ss2d: bfloat16 or float32 (bfloat16)")
    benchmark.add_argument(
        "--config", help="a model's: NAME or NAME:VARIANT of configs/ (synthetic)"
    )
    _add_config_key(benchmark)

    prepare = command("prepare", "Turn a dataset's published files into records to train from.")
    prepare.add_argument("--dataset", required=True, help="nyudv2, pascal_context or cityscapes")
    prepare.add_argument("--source", help="the published archives, or a folder of what is in them")
    prepare.add_argument("--data_dir", help="where to write (where TFDS keeps datasets)")
    prepare.add_argument(
        "--allow_partial", action="store_true", help="take fewer examples than were published"
    )
    prepare.add_argument("--workers", type=int, help="processes that convert (as many as cores)")
    prepare.add_argument("--check", action="store_true", help="read every record back")

    plan = command(
        "plan", "Check whether a program fits on accelerators that are not in this machine."
    )
    plan.add_argument(
        "--topology", required=True, help="KIND:SHAPE of a TPU (v5e:4x4), KIND:NUMBER of GPUs"
    )
    plan.add_argument(
        "--what", choices=("step", "inference"), default="step", help="which program (step)"
    )
    plan.add_argument(
        "--config", default="synthetic", help="NAME or NAME:VARIANT of configs/ (synthetic)"
    )
    _add_config_key(plan)
    plan.add_argument("--json", action="store_true", help="print every number as JSON")

    sweep = command("sweep", "Train the variants of a config, one after another; go on with them.")
    sweep.add_argument("--config", required=True, help="NAME of configs/, such as ablations")
    _add_config_key(sweep)
    sweep.add_argument("--rows", metavar="NAME,...", help="its variants; * is any text (all)")
    sweep.add_argument("--seeds", default="0", metavar="N,...", help="of each (0)")
    sweep.add_argument("--workdir", help="a folder with a work directory for each (runs/NAME)")
    sweep.add_argument(
        "--print", action="store_true", help="only print the commands of what is left, a run a line"
    )

    tables = command(
        "tables", "Print the paper's tables: what the models cost, or what runs scored."
    )
    tables.add_argument("--runs", metavar="DIR", help="of finished runs, whose scores to print")
    tables.add_argument(
        "--format", choices=("markdown", "csv", "latex"), default="markdown", help="(markdown)"
    )
    return parser


def _add_eval(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument(
        "--save_predictions",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="write every prediction, as the official tools read them "
        "(WORKDIR/predictions_CHECKPOINT)",
    )
    evaluate.add_argument(
        "--odsf", action="store_true", help="score edge by the boundary benchmark too"
    )
    group = evaluate.add_argument_group("with --odsf")
    group.add_argument(
        "--boundary_labels",
        metavar="DIR",
        help="NAME.png or NAME.mat, whose regions give the true contours (the test set's labels)",
    )
    group.add_argument(
        "--all", action="store_true", help="score every image, not only published ones"
    )
    group.add_argument("--workers", type=int, help="processes (one a core)")


def _add_export(export: argparse.ArgumentParser) -> None:
    export.add_argument(
        "--format",
        choices=("jax", "torch"),
        default="jax",
        help="a folder with a program, or the weights for the official PyTorch code (jax)",
    )
    export.add_argument(
        "--output", required=True, help="folder to write; for torch: FILE.pth or FILE.safetensors"
    )
    export.add_argument("--platform", choices=("cpu", "cuda", "tpu"), help="where it is to run")
    export.add_argument("--size", help="HEIGHTxWIDTH of its images (that of training)")
    export.add_argument("--batch", metavar="N", help="images at once; with xla also: any (1)")
    export.add_argument(
        "--scan",
        choices=("fused", "xla"),
        help="fused kernels, for Hopper GPUs and TPUs, or XLA's operations, for any device of the "
        "platform, slower (fused where the platform has them)",
    )


def _add_processes(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group(
        "several processes", "on Cloud TPU, GKE, SLURM and Open MPI they are found without these"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of the first process")
    group.add_argument("--num_processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process_id", type=int, metavar="I", help="which this is, from 0")


def _add_config_key(command: argparse.ArgumentParser) -> None:
    """Shows --config.KEY in the help; `_overrides` reads it."""
    command.add_argument(
        "--config.KEY", metavar="VALUE", dest="_", help="set a key of configs/common.py"
    )
