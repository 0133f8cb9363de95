"""The command `eval`."""

from __future__ import annotations

import argparse
import json

from etils import epath

from mtmamba_jax.commands.console import announce, join_processes, program_name
from mtmamba_jax.evaluate import Evaluator, score_table
from mtmamba_jax.panels import write_panels
from mtmamba_jax.processes import is_first
from mtmamba_jax.training.run import load_run


def run(options: argparse.Namespace) -> int:
    """Scores a trained model on its test set."""
    join_processes(options)
    workdir = epath.Path(options.workdir)
    run = load_run(workdir, options.checkpoint)
    announce(
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
        f"Next: {program_name()} predict --workdir={options.workdir} PHOTO_OR_FOLDER..."
    )
    return 0
