"""The paper's tables: the counted cost of its rows, and the scores of finished runs."""

import csv
import json

import jax
import jax.numpy as jnp
import pytest

from mtmamba_jax import config as configuration
from mtmamba_jax.checkpoints.run_directory import RunDirectory
from mtmamba_jax.cli import main as cli
from mtmamba_jax.configs.ablations import VARIANTS
from mtmamba_jax.models.mtmamba import MODELS
from mtmamba_jax.models.ss2d import scan_flops
from mtmamba_jax.paper import cost
from mtmamba_jax.paper.cost_table import cost_table, row_cost
from mtmamba_jax.paper.published import ROWS
from mtmamba_jax.paper.table_formats import Spread, Table, comma_separated, latex, markdown
from tests.tiny import tiny_config

PRINTED = [row for row in ROWS if row.parameters is not None]


@pytest.mark.parametrize("row", PRINTED, ids=lambda row: row.name)
def test_a_model_costs_what_the_paper_prints_to_the_digit(row):
    assert row_cost(row) == (round(100 * row.parameters), round(100 * row.flops))


def test_the_compute_dtype_does_not_change_the_cost():
    costs = [cost.count_cost(tiny_config(model__dtype=dtype)) for dtype in ("float32", "bfloat16")]
    assert costs[0] == costs[1]


def test_every_row_of_tables_2_to_4_has_printed_costs():
    assert {row.name for row in PRINTED} == {
        row.name for row in ROWS if set(row.tables) & {2, 3, 4}
    }
    assert len(PRINTED) == 8


def test_rows_of_the_paper_correspond_to_variants_of_the_configuration():
    names = [name for row in ROWS for name in row.variants]
    assert sorted(names) == sorted(VARIANTS)
    for row in ROWS:
        for name in row.variants:
            config = configuration.load(f"ablations:{name}")
            assert config.model.name == row.model in MODELS
            assert config.model.encoder == row.encoder
            assert (len(config.tasks.selected) == 1) == row.single_task


def test_the_papers_gains_follow_from_its_scores():
    """Also checks the copied figures; the paper truncates or rounds them to 0.01."""
    lower = {"depth", "normals"}
    for row in ROWS:
        if row.gain is None:
            continue
        gains = [
            (-1 if task in lower else 1) * (score / ROWS[0].scores[task] - 1)
            for task, score in row.scores.items()
        ]
        assert 25 * sum(gains) == pytest.approx(row.gain, abs=0.0101), row.name


def shaped(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def count(function, weights, *inputs):
    program = jax.make_jaxpr(function)(weights, *inputs).jaxpr
    return cost._count(program, program.invars[-len(inputs) :])


def test_only_products_that_depend_on_the_image_are_counted():
    square = shaped(3, 3)
    assert count(lambda w, x: (w @ w) @ x, square, square) == 27
    assert count(lambda w, x: jax.checkpoint(jnp.matmul)(w, x + 1), square, square) == 27
    assert count(lambda w, x: jax.nn.softmax(w + x), square, square) == 0


def test_operations_without_a_counting_rule_are_refused():
    @jax.custom_vjp
    def unheard_of(x):
        return x @ x

    unheard_of.defvjp(lambda x: (x, x), lambda x, dy: (dy,))
    square = shaped(3, 3)
    with pytest.raises(NotImplementedError, match=r"no rule for unheard_of\. Decorate it with"):
        count(lambda w, x: unheard_of(x), square, square)
    with pytest.raises(NotImplementedError, match="no rule for a scan with products"):
        count(lambda w, x: jax.lax.scan(lambda c, _: (c @ w, None), x, length=5)[0], square, square)


def test_a_scans_einsum_counts_as_numpy_prints_it():
    # 2 x 4 directions x 6 pixels x 7 channels x 333: 111888, printed 1.119e+05.
    shapes = [(1, 1, 2, 3, 7), (1, 1, 2, 3, 4, 333), (), (), (), (1, 1, 2, 3, 4, 16)]
    each = 4 * 6 * 7
    selecting = each * (333 + 32)  # 2 x 61320 = 122640, printed 1.226e+05
    found = scan_flops(*shapes)
    assert found == each * (9 * 16 + 1) + 111900 / 2 + 122600 / 2 - selecting


def test_the_command_prints_published_costs_beside_ours_in_each_format(monkeypatch, capsys):
    rows = [row for row in ROWS if row.name in ("stm_1", "gate_0")]
    monkeypatch.setattr("mtmamba_jax.cli.tables.cost_table", lambda: cost_table(rows))
    assert cli.main(["tables"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split("|")[1:-1] == [
        *(" 2       ", " 1*STM "),
        *("      252.51 ", "        252.51 ", "         0.00 "),
        *("     354.13 ", "          354.13 ", "            0.00 "),
    ]
    assert cli.main(["tables", "--format=csv"]) == 0
    found = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["FLOPs, G"] for row in found] == ["354.13", "526.54"]
    assert [row["difference, G"] for row in found] == ["0.00", ""]
    assert cli.main(["tables", "--format=latex"]) == 0
    assert r"2 & 1$\times$STM & 252.51 & 252.51 & 0.00 &" in capsys.readouterr().out


MEASURED = Table(
    ("row", "score, %"),
    [("a & b", Spread((1.0, 2.0))), ("c -> d", Spread((-3.0,), sign=True)), ("e", "-")],
    title="two seeds",
)


def test_means_of_several_values_are_printed_with_their_deviation():
    assert markdown(MEASURED).splitlines()[2:] == [
        "| row    |    score, % |",
        "|:-------|------------:|",
        "| a & b  | 1.50 ± 0.71 |",
        "| c -> d |       -3.00 |",
        "| e      |           - |",
    ]
    assert comma_separated(MEASURED).splitlines() == [
        "# two seeds",
        'row,"score, %","score, % deviation"',
        "a & b,1.50,0.71",
        "c -> d,-3.00,",
        "e,-,",
    ]
    assert latex(MEASURED).splitlines() == [
        "% two seeds",
        r"\begin{tabular}{lr}",
        r"\hline",
        r"row & score, \% \\",
        r"\hline",
        r"a \& b & 1.50 $\pm$ 0.71 \\",
        r"c $\to$ d & $-3.00$ \\",
        r"e & - \\",
        r"\hline",
        r"\end{tabular}",
    ]


def write_run(folder, scores, *, finished=True, **keys):
    """Writes the files of a run that `tables` reads, without weights."""
    config = tiny_config(**keys)
    best = folder / "best" / "8"
    (best / "details").mkdir(parents=True)
    details = {"scores": {name: {score: v} for (name, score), v in scores.items()}}
    (best / "details" / "metadata").write_text(json.dumps(details))
    (folder / "latest" / str(config.train.steps if finished else 2)).mkdir(parents=True)
    RunDirectory(folder).write_config(config)


SEMSEG, DEPTH = ("semseg", "mIoU"), ("depth", "RMSE")


@pytest.fixture
def runs(tmp_path):
    """Single-task runs and MTMamba with two seeds each, and 2*STM, on a set of two tasks."""
    two = {"tasks__set": "cityscapes"}
    for seed in (0, 1):
        for score, value in ((SEMSEG, 39.0 + 2 * seed), (DEPTH, 2.0)):
            name = f"single_{score[0]}_{seed}"
            alone = {"tasks__names": f"('{score[0]}',)", "model__name": "swin_decoder"}
            write_run(tmp_path / name, {score: value}, seed=str(seed), **(two | alone))
        values = {SEMSEG: 44.0, DEPTH: 2.0 - 0.2 * seed}
        write_run(tmp_path / "deep" / f"mtmamba_{seed}", values, seed=str(seed), **two)
    values = {SEMSEG: 40.0, DEPTH: 2.5}
    write_run(tmp_path / "stm_2", values, model__name="stm_2", **two)
    write_run(tmp_path / "plus", values, model__name="mtmamba_plus", **two)
    write_run(tmp_path / "stopped", values, finished=False, **two)
    write_run(tmp_path / "stm_2_again", values, model__name="stm_2", **two)
    return tmp_path


def test_finished_runs_fill_in_rows_with_means_deviations_and_gains(runs, capsys):
    assert cli.main(["tables", f"--runs={runs}"]) == 0
    captured = capsys.readouterr()
    assert f"Skipped, not finished: {runs / 'stopped'}" in captured.err
    assert f"Skipped, matches no row of the paper: {runs / 'plus'}" in captured.err
    again = runs / "stm_2_again"
    assert f"Skipped, repeats another run and its seed: {again}" in captured.err
    lines = captured.out.splitlines()
    assert lines[0] == "**synthetic, 32x64, 20 steps**"
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert cells[0][:7] == [
        *("row", "encoder", "runs", "semseg mIoU ↑", "depth RMSE (px) ↓"),
        *("delta_m, %", "#Param, M"),
    ]
    # Baselines 40 and 2: gains of 10 % and 0, then 10 % and 10 %.
    assert [row[:6] for row in cells[2:]] == [
        ["Single-task 2*Swin", "swin_test", "4", "40.00 ± 1.41", "2.0000 ± 0.0000", "0"],
        ["2*STM", "swin_test", "1", "40.00", "2.5000", "-12.50"],
        ["2\\*STM+1\\*CTM", "swin_test", "2", "44.00 ± 0.00", "1.9000 ± 0.1414", "+7.50 ± 3.54"],
    ]
    costs = [float(row[6]) for row in cells[2:]]
    assert 0 < costs[1] < costs[2]


def test_runs_of_another_recipe_form_a_table_whose_title_shows_the_difference(runs, capsys):
    values = {SEMSEG: 1.0, DEPTH: 9.0}
    write_run(runs / "slow", values, tasks__set="cityscapes", optimizer__learning_rate="0.1")
    assert cli.main(["tables", f"--runs={runs}", "--format=csv"]) == 0
    titles = [x for x in capsys.readouterr().out.splitlines() if x.startswith("#")]
    assert titles == [
        "# synthetic, 32x64, 20 steps, optimizer.learning_rate=0.003",
        "# synthetic, 32x64, 20 steps, optimizer.learning_rate=0.1",
    ]


def test_runs_of_a_set_without_class_names_are_grouped_by_their_classes(tmp_path, capsys):
    own, alone = {"tasks__set": "custom"}, {"model__name": "swin_decoder"}
    names, classes = "('depth', 'normals')", "('background', 'crack')"
    few = {DEPTH: 0.5, ("normals", "mErr"): 20.0}
    write_run(tmp_path / "few", few, tasks__names=names, **own)
    write_run(tmp_path / "depth", {DEPTH: 0.5}, tasks__names="('depth',)", **own, **alone)
    named = {"tasks__names": "('semseg',)", "tasks__classes": classes}
    write_run(tmp_path / "semseg", {SEMSEG: 50.0}, **named, **own, **alone)
    assert cli.main(["tables", f"--runs={tmp_path}", "--format=csv"]) == 0
    captured = capsys.readouterr()
    assert f"Skipped, matches no row of the paper: {tmp_path / 'few'}" in captured.err
    found = {}
    for part in captured.out.strip().split("\n\n"):  # one recipe each, because their classes differ
        title, _, table = part.partition("\n")
        (found[title.rpartition("=")[2]],) = csv.DictReader(table.splitlines())
    scores = {k: (v["semseg mIoU ↑"], v["depth RMSE (m) ↓"]) for k, v in found.items()}
    assert scores == {"[]": ("-", "0.5000"), "['background', 'crack']": ("50.00", "-")}


def test_gains_need_single_task_runs_of_every_task(tmp_path, capsys):
    write_run(
        tmp_path / "one", {SEMSEG: 1.0, DEPTH: 9.0}, tasks__set="cityscapes", model__name="stm_1"
    )
    assert cli.main(["tables", f"--runs={tmp_path}"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert [cell.strip() for cell in line.split("|")][6] == "-"


def test_on_nyudv2_the_published_line_is_below_ours(tmp_path, capsys):
    scores = {SEMSEG: 50.0, DEPTH: 0.5, ("edge", "maxF"): 70.0, ("normals", "mErr"): 20.0}
    keys = {"data__name": "nyudv2", "tasks__names": "()", "model__encoder": "swin_tiny"}
    write_run(tmp_path / "run", scores, **keys)
    assert cli.main(["tables", f"--runs={tmp_path}"]) == 0
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in capsys.readouterr().out.splitlines()[-2:]
    ]
    assert lines[0][:7] == [
        "2\\*STM+1\\*CTM",
        "swin_tiny",
        "1",
        "50.00",
        "0.5000",
        "70.00",
        "20.00",
    ]
    assert lines[1][:7] == [
        *("the paper's", "swin_tiny", "", "49.25", "0.5299"),
        *("76.90 odsF", "19.74"),
    ]


@pytest.mark.parametrize(
    ("make", "message"), [(False, "there is no folder"), (True, "no finished")]
)
def test_a_folder_without_runs_is_reported(make, message, tmp_path, capsys):
    folder = tmp_path / "runs"
    if make:
        folder.mkdir()
    assert cli.main(["tables", f"--runs={folder}"]) == 2
    error = capsys.readouterr().err
    assert message in error and str(folder) in error


def test_unreadable_scores_are_reported(runs, capsys):
    (runs / "stm_2" / "best" / "8" / "details" / "metadata").write_text("{")
    assert cli.main(["tables", f"--runs={runs}"]) == 2
    assert str(runs / "stm_2" / "best" / "8") in capsys.readouterr().err


EDGE = ("edge", "maxF")


def write_odsf(folder, odsf, step=8, **settings):
    """Writes the part of eval --odsf's file that `tables` reads."""
    own = {"labels": None, "label_kind": "contours"}
    settings = own | {"max_distance": 0.0075, "images": 5} | settings
    written = {"step": step, "scores": {"edge": {"maxF": 1.0, "odsF": odsf}, "semseg": {"mIoU": 1}}}
    (folder / "scores_best.json").write_text(json.dumps(written | {"boundaries": settings}))


@pytest.fixture
def edge_runs(tmp_path):
    """MTMamba and single-task runs of four tasks; all runs with edges but the last have odsF."""
    values = {SEMSEG: 40.0, DEPTH: 2.0, EDGE: 20.0, ("normals", "mErr"): 10.0}
    for score, value in values.items():
        alone = {"tasks__names": f"('{score[0]}',)", "model__name": "swin_decoder"}
        write_run(tmp_path / score[0], {score: value}, **alone)
    write_odsf(tmp_path / "edge", 50.0)
    for seed in (0, 1):
        write_run(
            tmp_path / f"mtmamba_{seed}",
            values | {EDGE: 22.0},
            seed=str(seed),
            tasks__names="()",
        )
    write_odsf(tmp_path / "mtmamba_0", 60.0)
    return tmp_path


def printed(folder, capsys):
    """Returns the table's rows as {column: cell}, and what is printed to stderr."""
    assert cli.main(["tables", f"--runs={folder}"]) == 0
    captured = capsys.readouterr()
    lines = [line for line in captured.out.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]], captured.err


def test_odsf_is_an_extra_column_and_enters_delta_m_once_all_runs_have_it(edge_runs, capsys):
    (single, multi), _ = printed(edge_runs, capsys)
    assert [name for name in single if "edge" in name] == ["edge maxF ↑", "edge odsF ↑"]
    assert (single["edge maxF ↑"], single["edge odsF ↑"]) == ("20.00", "50.00")
    # One of two seeds has no odsF: a mean would be over other runs than the means beside it.
    assert multi["edge odsF ↑"] == "-"
    assert multi["delta_m with maxF, %"] == "+2.50 ± 0.00"  # 10 % of a task in four
    write_odsf(edge_runs / "mtmamba_1", 70.0)
    (single, multi), _ = printed(edge_runs, capsys)
    assert multi["edge maxF ↑"] == "22.00 ± 0.00"
    assert multi["edge odsF ↑"] == "65.00 ± 7.07"
    assert multi["delta_m with odsF, %"] == "+7.50 ± 3.54"  # 20 % and 40 % of a task in four
    assert single["delta_m with odsF, %"] == "0"


def test_odsf_of_another_step_is_skipped_and_reported(edge_runs, capsys):
    write_odsf(edge_runs / "mtmamba_1", 70.0, step=16)
    (_, multi), errors = printed(edge_runs, capsys)
    assert f"another step than the best checkpoint: {edge_runs}/mtmamba_1/scores" in errors
    assert f"--workdir={edge_runs}/mtmamba_1 --odsf" in errors
    assert multi["edge odsF ↑"] == "-"
    assert "delta_m with maxF, %" in multi


def test_a_score_file_without_odsf_changes_no_table(runs, capsys):
    before, _ = printed(runs, capsys)
    scores = {"step": 16, "scores": {"depth": {"RMSE": 9.0}}, "constants": {}}
    (runs / "stm_2" / "scores_best.json").write_text(json.dumps(scores))
    after, errors = printed(runs, capsys)
    assert after == before
    assert "step" not in errors


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"label_kind": "regions"}, "regions, {}, labels of the test set: "),
        ({"labels": "other"}, "contours, {}, labels of a folder: "),
    ],
)
def test_odsf_of_different_settings_is_refused(settings, expected, edge_runs, capsys):
    write_odsf(edge_runs / "mtmamba_1", 70.0, **settings)
    assert cli.main(["tables", f"--runs={edge_runs}"]) == 2
    error = capsys.readouterr().err
    expected = expected.format("max_distance=0.0075, images=5")
    assert f"label_kind={expected}{edge_runs}/mtmamba_1" in error
    assert "Score them with the same settings" in error


def test_a_truncated_score_file_is_reported(edge_runs, capsys):
    (edge_runs / "edge" / "scores_best.json").write_text('{"step": 8, "sco')
    assert cli.main(["tables", f"--runs={edge_runs}"]) == 2
    assert "scores_best.json cannot be read (JSONDecodeError" in capsys.readouterr().err


def test_on_nyudv2_the_published_odsf_is_below_ours(tmp_path, capsys):
    scores = {SEMSEG: 50.0, DEPTH: 0.5, EDGE: 70.0, ("normals", "mErr"): 20.0}
    keys = {"data__name": "nyudv2", "tasks__names": "()", "model__encoder": "swin_tiny"}
    write_run(tmp_path / "run", scores, **keys)
    write_odsf(tmp_path / "run", 75.0)
    (ours, papers), _ = printed(tmp_path, capsys)
    assert (ours["edge maxF ↑"], papers["edge maxF ↑"]) == ("70.00", "-")
    assert (ours["edge odsF ↑"], papers["edge odsF ↑"]) == ("75.00", "76.90")
