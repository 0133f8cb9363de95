"""The commands and their flags."""

import argparse

import mtmamba_jax

BENCHMARKS = ("ss2d", "step", "inference", "devices", "input")

_CONFIG = "NAME or NAME:VARIANT of configs/, or the path of a file of your own"


class Parser(argparse.ArgumentParser):
    """The command line's parser.

    Attributes:
      commands: The parser of each command, by name.
    """

    commands: dict[str, argparse.ArgumentParser]


def create_parser() -> Parser:
    """Returns the parser of the command line."""
    parser = Parser(
        prog="mtmamba",
        description="MTMamba: several dense maps from one image, in JAX.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=mtmamba_jax.__version__)
    commands = parser.add_subparsers(
        dest="command",
        required=True,
        metavar="COMMAND",
        parser_class=argparse.ArgumentParser,
    )
    parser.commands = {}
    for name, (add_flags, help) in _COMMANDS.items():
        command = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        command.add_argument(
            "--traceback", action="store_true", help="show where an error was raised"
        )
        add_flags(command)
        parser.commands[name] = command
    return parser


def _train(command: argparse.ArgumentParser) -> None:
    _add_config(command, default="synthetic")
    command.add_argument(
        "--workdir", help="folder or gs://... to write to and resume from (runs/NAME)"
    )
    command.add_argument(
        "--profile", metavar="START:STOP", help="trace these steps into WORKDIR/profile"
    )
    _add_processes(command)


def _eval(command: argparse.ArgumentParser) -> None:
    _add_run(command)
    command.add_argument(
        "--save_predictions",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="write every prediction in the format of the official tools "
        "(WORKDIR/predictions_CHECKPOINT)",
    )
    command.add_argument(
        "--odsf", action="store_true", help="also evaluate edges with the boundary benchmark"
    )
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
    _add_run(command)
    command.add_argument(
        "--format",
        choices=("jax", "torch"),
        default="jax",
        help="a folder with a program, or weights for the official PyTorch code (jax)",
    )
    command.add_argument(
        "--output", required=True, help="folder to write; for torch: FILE.pth or FILE.safetensors"
    )
    command.add_argument("--platform", choices=("cpu", "cuda", "tpu"), help="where it will run")
    command.add_argument("--size", help="HEIGHTxWIDTH of its input images (size in training)")
    command.add_argument("--batch", metavar="N", help="batch size; with --scan=xla also any (1)")
    command.add_argument(
        "--scan",
        choices=("fused", "xla"),
        help="fused kernels, for Hopper GPUs and TPUs, or XLA operations, which run on any device "
        "of the platform but are slower (fused if the platform has kernels)",
    )


def _predict(command: argparse.ArgumentParser) -> None:
    _add_run(command)
    command.add_argument("photos", nargs="+", help="files or folders")
    command.add_argument("--output", default="predictions", help="folder to write (predictions)")
    command.add_argument("--size", help="HEIGHTxWIDTH that photos are fitted into (as in training)")
    command.add_argument("--overlay", action="store_true", help="also draw classes over the photo")
    command.add_argument(
        "--features", action="store_true", help="also draw the final decoder features"
    )


def _convert(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="FILE|hf:REPO",
        help="weights of MTMamba, MTMamba++ or a Swin encoder: .safetensors, .pth, .pth.tar, .pt, "
        ".bin",
    )
    command.add_argument(
        "--to", required=True, metavar="DIR|FILE.safetensors", help="work directory or file"
    )
    _add_config(command, help=f"{_CONFIG} (the published one with these tasks)")


def _benchmark(command: argparse.ArgumentParser) -> None:
    command.add_argument("--what", required=True, choices=BENCHMARKS)
    command.add_argument("--repeats", type=int, default=20, help="number of timing samples (20)")
    command.add_argument("--output", help="JSON file for every number (benchmark_WHAT.json)")
    command.add_argument(
        "--spec", metavar="NAME,...", help="ss2d: named shapes (all decoder stages)"
    )
    command.add_argument(
        "--implementation", metavar="NAME,...", help="ss2d: backends (the platform's choice)"
    )
    command.add_argument("--dtype", help="ss2d: bfloat16 or float32 (bfloat16)")
    _add_config(command, help=f"{_CONFIG} (synthetic)")


def _prepare(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dataset", required=True, help="nyudv2, pascal_context or cityscapes")
    command.add_argument("--source", help="the published archives, or a folder of their contents")
    command.add_argument("--data_dir", help="where to write (TFDS's data_dir)")
    command.add_argument(
        "--allow_partial", action="store_true", help="accept fewer examples than were published"
    )
    command.add_argument("--workers", type=int, help="number of processes (one per core)")
    command.add_argument("--check", action="store_true", help="read every record back")


def _plan(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--topology", required=True, help="KIND:SHAPE of TPUs (v5e:4x4), KIND:NUMBER of GPUs"
    )
    command.add_argument(
        "--what", choices=("step", "inference"), default="step", help="which program (step)"
    )
    _add_config(command, default="synthetic")
    command.add_argument("--json", action="store_true", help="print every number as JSON")


def _sweep(command: argparse.ArgumentParser) -> None:
    _add_config(command, required=True, help="NAME of configs/, such as ablations")
    command.add_argument("--rows", metavar="NAME,...", help="variants; * matches any text (all)")
    command.add_argument("--seeds", default="0", metavar="N,...", help="seeds of each variant (0)")
    command.add_argument("--workdir", help="folder for the work directories (runs/NAME)")
    command.add_argument(
        "--print", action="store_true", help="only print the commands of unfinished runs"
    )


def _boundaries(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--dataset",
        required=True,
        choices=("nyudv2", "pascal_context"),
        help="sets the matching distance and the published subset of images",
    )
    command.add_argument("--predictions", required=True, help="folder of NAME.png, 8 bits")
    command.add_argument("--labels", required=True, help="folder of NAME.png or NAME.mat")
    command.add_argument(
        "--reading",
        choices=("regions", "contours"),
        default="regions",
        help="true contours lie between regions of a label, as published, or where it is not 0",
    )
    command.add_argument("--ids", help="file with the names of the images to score")
    command.add_argument(
        "--all", action="store_true", help="score all images, not only the published subset"
    )
    command.add_argument("--workers", type=int, help="number of processes (one per core)")
    command.add_argument("--output", help="folder to write (boundaries_DATASET)")


def _tables(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--runs", metavar="DIR", help="folder of finished runs whose scores to print"
    )
    command.add_argument(
        "--format", choices=("markdown", "csv", "latex"), default="markdown", help="(markdown)"
    )


def _add_run(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workdir", required=True, help="work directory of a training run")
    command.add_argument(
        "--checkpoint", choices=("best", "latest"), default="best", help="which weights (best)"
    )


def _add_config(
    command: argparse.ArgumentParser,
    *,
    default: str | None = None,
    required: bool = False,
    help: str | None = None,
) -> None:
    help = help or f"{_CONFIG} ({default})"
    command.add_argument("--config", default=default, required=required, help=help)
    # Only shown in the help: `main` reads --config.key=value.
    command.add_argument(
        "--config.KEY", metavar="VALUE", dest="_", help="set a key of configs/common.py"
    )


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
    "plan": (_plan, "Check whether a program fits on accelerators that are not in this machine."),
    "tables": (_tables, "Print the paper's tables: costs of the models, or scores of runs."),
    "sweep": (_sweep, "Train the variants of a configuration one after another."),
    "prepare": (_prepare, "Convert the published files of a dataset to records."),
}
