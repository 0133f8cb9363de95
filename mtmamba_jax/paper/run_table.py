"""Fills in one of the paper's tables with the scores of finished runs."""

from collections.abc import Callable, Mapping, Sequence

from mtmamba_jax.messages import counted, short
from mtmamba_jax.metrics.multitask import delta_m, is_baseline
from mtmamba_jax.models.swin import SWIN_SIZES
from mtmamba_jax.paper.cost import count_cost
from mtmamba_jax.paper.published import DATASET, ROWS, SCORES, Row
from mtmamba_jax.paper.run_groups import LineKey, Lines, all_tasks
from mtmamba_jax.paper.runs import FinishedRun
from mtmamba_jax.paper.table_formats import Spread, Table
from mtmamba_jax.tasks.table import Task

CONTOURS = "odsF"
"""Name of the score in `FinishedRun.contours`; higher is better."""

Column = tuple[Task, str]
"""A column of scores: the task and the score's name."""

ScoreChoice = Callable[[FinishedRun], Mapping[str, float]]
"""Selects the scores of a run that enter delta_m."""


def run_table(lines: Lines, title_keys: Sequence[str]) -> Table:
    """Returns a table of runs, with the published lines below ours on the paper's dataset.

    Args:
      lines: The runs of each line, from `group_runs`.
      title_keys: Config keys shown in the title, besides dataset, image size and steps.

    Raises:
      ValueError: If odsF was computed with different settings for different runs.
    """
    runs = [run for line in lines.values() for run in line]
    config, tasks = runs[0].config, all_tasks(runs[0])
    flat, (height, width) = config.flat(), config.data.size
    title = f"{config.data.name}, {height}x{width}, {counted(config.train.steps, 'step')}"
    title += "".join(f", {key}={flat.get(key)}" for key in title_keys)
    _check_contour_settings(runs)
    scores, (gain_title, main_scores) = _score_columns(tasks, runs), _choose_scores(tasks, runs)
    columns = ["row", "encoder", "runs", *(_score_title(*column) for column in scores)]
    columns += [gain_title, "#Param, M", "FLOPs, G"]
    rows, order = [], list(SWIN_SIZES)
    for key in sorted(lines, key=lambda k: (k.row, order.index(k.encoder), k.weights or "")):
        rows.append(_cells(key, lines[key], scores, _gain(key, lines, tasks, main_scores)))
        if config.data.name == DATASET:
            rows += _published_rows(key, scores)
    return Table(columns, rows, left=2, title=title)


def _check_contour_settings(runs: Sequence[FinishedRun]) -> None:
    """Raises ValueError if odsF was computed with different settings."""
    found = {}
    for run in runs:
        if run.contours:
            used = run.benchmark
            settings = [
                f"{key}={used.get(key)}" for key in ("label_kind", "max_distance", "images")
            ]
            # The folder's path is left out, because it differs between machines.
            labels = "the test set" if used.get("labels") is None else "a folder"
            found.setdefault(", ".join([*settings, f"labels of {labels}"]), run.workdir)
    if len(found) > 1:
        listed = "".join(f"\n    {settings}: {workdir}" for settings, workdir in found.items())
        raise ValueError(
            f"The odsF of runs in one table was computed with different settings:{listed}\n"
            "Score them with the same settings: the command eval, with --odsf."
        )


def _score_columns(tasks: Sequence[Task], runs: Sequence[FinishedRun]) -> list[Column]:
    """Returns each task's score, followed by odsF if any run has it."""
    return [
        (task, score)
        for task in tasks
        for score in (task.score, CONTOURS)
        if score == task.score or any(task.name in run.contours for run in runs)
    ]


def _choose_scores(tasks: Sequence[Task], runs: Sequence[FinishedRun]) -> tuple[str, ScoreChoice]:
    """Returns the title of delta_m and the function that selects a run's scores for it.

    delta_m includes odsF, as in the paper, once every run with that task has it.
    """
    scored = [task for task in tasks if any(task.name in run.contours for run in runs)]
    if not scored:
        return "delta_m, %", lambda run: run.scores
    names = {task.name for task in scored}
    if all(names & run.scores.keys() <= run.contours.keys() for run in runs):
        return f"delta_m with {CONTOURS}, %", lambda run: {**run.scores, **run.contours}
    own = " and ".join(task.score for task in scored)
    return f"delta_m with {own}, %", lambda run: run.scores


def _score_title(task: Task, score: str) -> str:
    own = score == task.score
    unit = f" ({task.unit})" if own and task.unit else ""
    return f"{task.name} {score}{unit} {'↓' if own and task.lower_is_better else '↑'}"


def _gain(
    key: LineKey, lines: Lines, tasks: Sequence[Task], main_scores: ScoreChoice
) -> str | Spread:
    """Returns a line's delta_m over single-task models with its encoder.

    It is "-" if one of them is missing or has a score that delta_m cannot divide by.
    """
    index = next(i for i, row in enumerate(ROWS) if row.single_task)
    found: dict[str, list[float]] = {}
    for run in lines.get(key._replace(row=index), ()):
        for name, score in main_scores(run).items():
            found.setdefault(name, []).append(score)
    if set(found) != {task.name for task in tasks}:
        return "-"
    if ROWS[key.row].single_task:
        return "0"
    baselines = {name: sum(values) / len(values) for name, values in found.items()}
    if not all(map(is_baseline, baselines.values())):
        return "-"
    gains = tuple(delta_m(tasks, main_scores(run), baselines) for run in lines[key])
    return Spread(gains, sign=True)


def _cells(
    key: LineKey, runs: Sequence[FinishedRun], scores: Sequence[Column], gain: str | Spread
) -> list[str | Spread]:
    row = ROWS[key.row]
    encoder = f"{key.encoder}, given weights" if key.weights else key.encoder
    measured = [_score_cell(task, score, runs) for task, score in scores]
    models = {run.tasks: run.config for run in runs}.values()  # in the single-task row one per task
    complete = not row.single_task or len(models) == len({task for task, _ in scores})
    totals = ["-", "-"]
    if complete:
        costs = [count_cost(config) for config in models]
        totals = [short(sum(c.parameters for c in costs)), short(sum(c.flops for c in costs))]
    return [row.title, encoder, str(len(runs)), *measured, gain, *totals]


def _score_cell(task: Task, score: str, runs: Sequence[FinishedRun]) -> str | Spread:
    """Returns the scores of a line's runs, "-" if there are none or a run has no odsF."""
    scored = [run for run in runs if task.name in run.scores]
    found = [run.scores if score == task.score else run.contours for run in scored]
    values = tuple(scores[task.name] for scores in found if task.name in scores)
    return Spread(values, _digits(task)) if values and len(values) == len(found) else "-"


def _digits(task: Task) -> int:
    return 4 if task.metric == "depth" else 2


def _published_rows(key: LineKey, scores: Sequence[Column]) -> list[list[str]]:
    """Returns the paper's lines for a line of ours, if it has any."""
    model = ROWS[key.row].model, ROWS[key.row].single_task, key.encoder
    return [
        [
            *("the paper's", key.encoder, ""),
            *(_published_score(column, row, scores) for column in scores),
            *("-" if v is None else f"{v:.2f}" for v in (row.gain, row.parameters, row.flops)),
        ]
        for row in ROWS
        if (row.model, row.single_task, row.encoder) == model
    ]


def _published_score(column: Column, row: Row, columns: Sequence[Column]) -> str:
    """Returns the paper's score, labelled with its name if it has no column of its own."""
    task, score = column
    published = SCORES.get(task.name)
    if published is None or (score != published and (task, published) in columns):
        return "-"
    text = f"{row.scores[task.name]:.{_digits(task)}f}"
    return text if score == published else f"{text} {published}"
