"""The command `eval`: scores a trained model on its test set."""

import argparse
import collections
import pathlib
from collections.abc import Mapping

import tqdm
from etils import epath

from mtmamba_jax.checkpoints.load import Run, load_run
from mtmamba_jax.cli.console import announce, join_processes
from mtmamba_jax.devices.processes import is_first, max_over_processes, sum_over_processes
from mtmamba_jax.evaluation.boundaries import Benchmark, choose_benchmark, count_test_set
from mtmamba_jax.evaluation.evaluate import Evaluator
from mtmamba_jax.evaluation.report import class_ious, format_details, score_table, write_confusions
from mtmamba_jax.evaluation.saved_predictions import PredictionWriter
from mtmamba_jax.files.json_files import write_json
from mtmamba_jax.messages import command, counted
from mtmamba_jax.metrics import compute_scores
from mtmamba_jax.metrics.boundaries.report import remove_report_of_other_step, write_report
from mtmamba_jax.metrics.boundaries.report import score_table as boundary_table
from mtmamba_jax.metrics.boundaries.scores import BoundarySums, compute, sum_counts
from mtmamba_jax.visualization.figures import write_figure
from mtmamba_jax.visualization.panels import write_panels
from mtmamba_jax.visualization.precision_recall import CURVE_FILE, draw_precision_recall


def run(options: argparse.Namespace) -> int:
    """Evaluates a trained model on its test set."""
    join_processes(options)
    run = load_run(options.workdir, options.checkpoint)
    directory = run.directory
    benchmark, writer = _benchmark(options, run), _prediction_writer(options, run)
    announce(
        f"Evaluating the {options.checkpoint} checkpoint (step {run.step}) of {options.workdir} "
        f"on the test set of {run.config.data.name}"
    )
    config = run.config
    evaluator = Evaluator(config.data, config.eval.batch_size, run.graph, run.tasks, run.mesh)
    totals, constants = evaluator.totals(run.parameters), evaluator.constants()
    scores = compute_scores(run.tasks, totals)
    print(score_table(run.tasks, scores, constants), flush=True)
    path = directory.scores_file(options.checkpoint)
    ious = class_ious(run.tasks, totals)
    written = {"step": run.step, "scores": scores, "constants": constants, "class_iou": ious}
    _write(path, written)
    boundaries = directory / f"boundaries_{options.checkpoint}"
    if is_first():  # which the scores do not name any more
        remove_report_of_other_step(boundaries, run.step, CURVE_FILE)
    sums = _write_and_count(evaluator, run, benchmark, writer) if benchmark or writer else None
    if writer:
        count = len(evaluator)
        writer.finish({"workdir": options.workdir, "step": run.step, "images": count})
        print(f"\nPredictions of {counted(count, 'image')}: {writer.folder}")
    if benchmark and sums and sums["images"]:
        settings = {**benchmark.settings, "images": int(sums["images"])}
        edge = benchmark.task.name
        scores = scores | {edge: scores[edge] | compute(sums)}
        _write(path, written | {"scores": scores, "boundaries": settings})
        if is_first():
            write_report(boundaries, sums, {**settings, "step": run.step})
            write_figure(boundaries / CURVE_FILE, draw_precision_recall(sums))
        print(f"\n{benchmark.describe()}\n{boundary_table(sums)}\nThe curve: {boundaries}")
    print(f"\n{format_details(config, run.tasks, totals, scores, constants)}")
    # Those of the best checkpoint replace the ones that training wrote.
    suffix = "" if options.checkpoint == "best" else f"_{options.checkpoint}"
    drawings = write_confusions(directory.path, run.tasks, totals, suffix)
    folder = f"panels{suffix}"
    examples = evaluator.examples_with_logits(run.parameters, config.eval.panels)
    panels = write_panels(directory / folder, run.tasks, examples)
    names = "".join(f", {drawing.name}" for drawing in drawings)
    print(
        f"\nWrote {path} with every score{names} and {counted(len(panels), 'panel')} in "
        f"{options.workdir}/{folder}\n"
        f"Next: {command('predict', f'--workdir={options.workdir}', 'PHOTO_OR_FOLDER...')}"
    )
    if sums and not sums["images"]:  # last, once everything else is written
        raise ValueError(
            "--odsf found no image to score: no image of the test set has an edge label, or the "
            "published subset excludes all of them (--all includes them)."
        )
    return 0


def _write(path: epath.Path, scores: Mapping[str, object]) -> None:
    if is_first():
        write_json(path, scores)


def _benchmark(options: argparse.Namespace, run: Run) -> Benchmark | None:
    """Returns the boundary benchmark, None without --odsf."""
    labels, workers = options.boundary_labels, options.workers
    if options.odsf:
        choices = {"include_all": options.all, "num_workers": workers}
        folder = None if labels is None else pathlib.Path(labels)
        return choose_benchmark(run.config.data.name, run.tasks, labels=folder, **choices)
    if labels is not None or options.all or workers is not None:
        raise ValueError("--boundary_labels, --all and --workers need --odsf: add it.")
    return None


def _prediction_writer(options: argparse.Namespace, run: Run) -> PredictionWriter | None:
    """Returns the writer of --save_predictions, None without the flag."""
    if options.save_predictions is None:
        return None
    default = epath.Path(options.workdir) / f"predictions_{options.checkpoint}"
    return PredictionWriter(options.save_predictions or default, run.tasks)


def _write_and_count(
    evaluator: Evaluator, run: Run, benchmark: Benchmark | None, writer: PredictionWriter | None
) -> BoundarySums | None:
    """Writes and counts predictions in one pass; returns the counts of all processes together."""
    hide = None if is_first() else True  # None hides the bar unless stderr is a terminal
    predictions = evaluator.predictions(run.parameters)
    predictions = tqdm.tqdm(predictions, total=evaluator.own_examples, unit="image", disable=hide)
    if writer:
        predictions = writer.write_each(predictions)
    if not benchmark:
        collections.deque(predictions, maxlen=0)
        max_over_processes(0)  # waits until all have written theirs
        return None
    return sum_over_processes(sum_counts(count_test_set(benchmark, predictions)))
