"""The command `export`: writes a trained model to run elsewhere."""

import argparse
import pathlib

from flax import nnx

from mtmamba_jax.checkpoints.load import load_run
from mtmamba_jax.cli.console import parse_size
from mtmamba_jax.convert import to_torch
from mtmamba_jax.convert.weight_files import find_writer
from mtmamba_jax.export import program as export
from mtmamba_jax.export.model_card import NEEDS, create_card, describe_run
from mtmamba_jax.files.json_files import to_json


def run(options: argparse.Namespace) -> int:
    """Exports a trained model, to run with JAX alone or in PyTorch."""
    if options.format == "torch":
        return _torch(options)
    if options.platform is None:
        raise ValueError("--platform is missing: give the platform to run on, cpu, cuda or tpu.")
    output = pathlib.Path(options.output)
    export.check_output(output)
    size = parse_size(options.size) if options.size else None
    batch = export.parse_batch(options.batch or "1")
    scan = export.choose_scan(options.platform, options.scan, batch)
    run = load_run(options.workdir, options.checkpoint, one_device=True)
    print(
        f"Exporting step {run.step} ({options.checkpoint}) of {options.workdir} for "
        f"{options.platform}, scan: {scan}",
        flush=True,
    )
    size = size or run.config.data.size
    program = export.export_program(
        run.config, run.tasks, platform=options.platform, size=size, batch=batch, scan=scan
    )
    card = create_card(run, program, checkpoint=options.checkpoint, scan=scan)
    export.write_artifact(output, program, export.name_weights(run.parameters), card)
    print(
        f"Wrote {output}: the program, its weights, model_card.md (inputs and outputs) and run.py\n"
        f"Next: python {output / export.SCRIPT} IMAGE.npy, on any machine with jax, flatbuffers "
        f"and {NEEDS[options.platform, scan]}"
    )
    return 0


def _torch(options: argparse.Namespace) -> int:
    for flag in ("platform", "size", "batch", "scan"):
        if getattr(options, flag) is not None:
            raise ValueError(
                f"--{flag} does not go with --format=torch, which only writes weights."
            )
    write = find_writer(options.output)
    run = load_run(options.workdir, options.checkpoint, one_device=True)
    tensors = to_torch(nnx.merge(run.graph, run.parameters))
    about = to_json(describe_run(run, options.checkpoint))
    write(options.output, tensors, {"model_card": about})
    print(
        f"Wrote {options.output}: {len(tensors)} tensors of step {run.step}, named as in the "
        "official code"
    )
    return 0
