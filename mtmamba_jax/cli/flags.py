"""Declares the commands and their flags."""

import argparse
import importlib.metadata
from typing import Any, NoReturn

from mtmamba_jax.messages import program_name

_CONFIG = "NAME or NAME:VARIANT of configs/, or the path of a file of your own"


class Parser(argparse.ArgumentParser):
    """The command line's parser, with the parser of each command by name.

    Mistakes are one line, as all errors of commands are.
    """

    commands: dict[str, argparse.ArgumentParser]

    def error(self, message: str) -> NoReturn:
        """Prints a mistake and exits with code 2."""
        text = message[:1].upper() + message[1:]
        self.exit(2, f"error: {text}. {self.prog} --help lists what is valid.\n")


def create_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(
        prog=program_name(),
        description="MTMamba: several dense maps from one image, in JAX.",
        epilog="Exit codes: 0 success; 1 the command, or a part of it, failed; 2 the command line "
        "or its input is wrong; 130 interrupted by Ctrl-C.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=importlib.metadata.version("mtmamba_jax")
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=Parser
    )
    parser.commands = {}
    for name, (add_flags, help) in _COMMANDS.items():
        command = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        text = "show where an error was raised"
        command.add_argument("--traceback", action="store_true", help=text)
        add_flags(command)
        parser.commands[name] = command
    return parser


def _train(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    _add_config(command, default="synthetic")
    add("--workdir", help="folder or gs://... to write to and resume from (runs/NAME)")
    add("--extend", action="store_true", help="resume a run with a larger train.steps")
    add("--profile", metavar="START:STOP", help="trace these steps into WORKDIR/profile")
    _add_processes(command)


def _eval(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    _add_run(command)
    add(
        "--save_predictions",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="write every prediction in the format of the official tools "
        "(WORKDIR/predictions_CHECKPOINT)",
    )
    add("--odsf", action="store_true", help="also evaluate edges with the boundary benchmark")
    group = command.add_argument_group("with --odsf")
    group.add_argument(
        "--boundary_labels",
        metavar="DIR",
        help="NAME.png or NAME.mat whose regions define the true contours (test set labels)",
    )
    group.add_argument(
        "--all", action="store_true", help="evaluate all images, not only the published subset"
    )
    group.add_argument("--workers", type=int, help="number of processes (one per core)")
    _add_processes(command)


def _export(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    _add_run(command)
    add(
        "--format",
        choices=("jax", "torch"),
        default="jax",
        help="a folder with a program, or weights for the official PyTorch code (jax)",
    )
    add("--output", required=True, help="folder to write; for torch: FILE.pth or FILE.safetensors")
    add("--platform", choices=("cpu", "cuda", "tpu"), help="where it will run")
    add("--size", help="HEIGHTxWIDTH of its input images (size in training)")
    add("--batch", metavar="N", help="batch size; with --scan=xla also any (1)")
    add(
        "--scan",
        choices=("fused", "xla"),
        help="fused kernels, for TPUs and recent GPUs, or XLA operations, which run on any device "
        "of the platform but are slower (fused if the platform has kernels)",
    )


def _predict(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    _add_run(command)
    add("photos", nargs="+", help="files or folders")
    add("--output", default="predictions", help="folder to write (predictions)")
    add("--size", help="HEIGHTxWIDTH that photos are fitted into (as in training)")
    add(
        "--bits",
        type=int,
        choices=range(8, 17),
        metavar="8..16",
        help="bits that hold the data of 16-bit photos (as many as the largest value needs)",
    )
    add("--overlay", action="store_true", help="also draw classes over the photo")
    add("--features", action="store_true", help="also draw the final decoder features")


def _convert(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--from",
        dest="source",
        required=True,
        metavar="FILE|hf:REPO",
        help="weights of MTMamba, MTMamba++ or a Swin encoder: .safetensors, .pth, .pth.tar, .pt, "
        ".bin, .ckpt",
    )
    add("--to", required=True, metavar="DIR|FILE.safetensors", help="work directory or file")
    add(
        "--patch_merging",
        choices=("mmsegmentation", "microsoft"),
        help="an encoder alone: whose order its patch mergings have (that of the names)",
    )
    _add_config(command, help=f"{_CONFIG} (the published one with these tasks)")


def _benchmark(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--what", required=True, choices=("ss2d", "step", "inference", "devices", "input"))
    add("--repeats", type=int, default=20, help="number of timing samples (20)")
    add("--output", help="JSON file for every number (benchmark_WHAT.json)")
    add("--spec", metavar="NAME,...", help="ss2d: named shapes (all decoder stages)")
    add("--implementation", metavar="NAME,...", help="ss2d: backends (the platform's choice)")
    add("--dtype", help="ss2d: bfloat16 or float32 (bfloat16)")
    add("--profile", action="store_true", help="step, inference: the time of each kind of kernel")
    _add_config(command)


def _prepare(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--dataset", required=True, help="nyudv2, pascal_context or cityscapes")
    add("--source", help="the published archives, or a folder of their contents")
    add("--data_dir", help="where to write (TFDS's data_dir)")
    add("--allow_partial", action="store_true", help="accept fewer examples than were published")
    add("--workers", type=int, help="number of processes (one per core)")
    add("--check", action="store_true", help="read every record back")


def _checks(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON")


def _plan(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--topology", required=True, help="KIND:SHAPE of TPUs (v5e:4x4), KIND:NUMBER of GPUs")
    add("--what", choices=("step", "inference"), default="step", help="which program (step)")
    _add_config(command, default="synthetic")
    add("--profile", action="store_true", help="estimate the time of each kind of operation (TPUs)")
    add("--trace", metavar="FILE", help="write these estimates as a trace for Perfetto")
    add("--quick", action="store_true", help="optimize less for TPUs: compiles twice as fast")
    add("--json", action="store_true", help="print every number as JSON")


def _sweep(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    _add_config(command, required=True, help="NAME of configs/ or path of a file, with VARIANTS")
    add("--rows", metavar="NAME,...", help="variants; * matches any text (all that have a name)")
    add("--seeds", default="0", metavar="N,...", help="seeds of each variant (0)")
    add("--workdir", help="folder for the work directories (runs/NAME)")
    add("--print", action="store_true", help="only print the commands of unfinished runs")
    _add_processes(command)


def _boundaries(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add(
        "--dataset",
        required=True,
        choices=("nyudv2", "pascal_context"),
        help="sets the matching distance and the published subset of images",
    )
    add("--predictions", required=True, help="folder of NAME.png, 8 bits")
    add("--labels", required=True, help="folder of NAME.png or NAME.mat")
    add(
        "--label_kind",
        choices=("regions", "contours"),
        default="regions",
        help="labels hold regions, as published, or contours: true contours lie between the "
        "regions, or where the label is not 0 (regions)",
    )
    add("--ids", help="file with the names of the images to score")
    add("--all", action="store_true", help="score all images, not only the published subset")
    add("--workers", type=int, help="number of processes (one per core)")
    add("--output", help="folder to write (boundaries_DATASET)")


def _tables(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--runs", metavar="DIR", help="folder of finished runs whose scores to print")
    add("--format", choices=("markdown", "csv", "latex"), default="markdown", help="(markdown)")


def _add_run(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--workdir", required=True, help="work directory of a training run")
    add("--checkpoint", choices=("best", "latest"), default="best", help="which weights (best)")


def _add_config(
    command: argparse.ArgumentParser, help: str = f"{_CONFIG} (synthetic)", **options: Any
) -> None:
    command.add_argument("--config", help=help, **options)
    # Only shown in the help: `main` reads --config.key=value.
    help = "set a key of configs/common.py"
    command.add_argument("--config.KEY", metavar="VALUE", dest="_", help=help)


def _add_processes(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group(
        "several processes", "detected on Cloud TPU, GKE, SLURM and Open MPI"
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of the first process")
    group.add_argument("--num_processes", type=int, metavar="N", help="number of processes")
    group.add_argument("--process_id", type=int, metavar="I", help="index of this one, from 0")


_COMMANDS = {
    "train": (_train, "Train a model, evaluate it and draw predictions."),
    "eval": (_eval, "Evaluate a trained model on its test set."),
    "predict": (_predict, "Predict the maps of photos."),
    "boundaries": (_boundaries, "Score a folder of predicted contours: odsF, oisF and AP."),
    "export": (_export, "Export a trained model, to run with jax alone or in PyTorch."),
    "convert": (_convert, "Convert PyTorch weights to a work directory or a plain file."),
    "benchmark": (
        _benchmark,
        "Time the scan, a training step, inference, several devices or the input pipeline.",
    ),
    "checks": (_checks, "Show what is installed, and which devices and kernels it will use."),
    "plan": (_plan, "Check whether a program fits on accelerators that are not in this machine."),
    "tables": (_tables, "Print the paper's tables: costs of the models, or scores of runs."),
    "sweep": (_sweep, "Train the variants of a configuration one after another."),
    "prepare": (_prepare, "Convert the published files of a dataset to records."),
}
