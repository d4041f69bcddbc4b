"""Runs for others: one HTML file, an Optuna study, CSV and Parquet say what the ledger says, and
nothing in them acts.
"""

import io
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from recycler.cli import main
from recycler.cli.front_text import front_table
from recycler.ledger.runs import open_ledger, read_status
from recycler.location import parse_location
from recycler.results.documents import front_document
from recycler.results.front import read_front
from recycler.results.html import html_report
from recycler.results.open import open_front
from recycler.search.baselines import average, fixed_baselines
from recycler.types import Checkpoint, Group, Objective, Pool, Recipe, Score, Trial
from service_runs import EVIL, NAMES, OBJECTIVES, make_run

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    make_run(root, "demo")
    make_run(root, "evil", merges=3, label=EVIL)
    return root


class Tags(HTMLParser):
    """Elements and attributes of a page, and its text."""

    def __init__(self, text):
        super().__init__()
        self.names, self.attributes, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text.append(data)


def report_of(folder):
    ledger = open_ledger(folder)
    try:
        return html_report(open_front(folder), read_status(ledger))
    finally:
        ledger.close()


@pytest.mark.parametrize("run", ["demo", "evil"])
def test_a_report_has_no_script_and_asks_nobody(root, run):
    page = Tags(report_of(root / run))
    assert not set(page.names) & {
        "script",
        "img",
        "link",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
        "a",
    }
    assert not [
        name
        for name, value in page.attributes
        if name.startswith("on")
        or name in ("src", "href", "action")
        or "http" in (value or "")
        and name != "http-equiv"
    ]
    assert "default-src 'none'" in dict(page.attributes)["content"] or any(
        "default-src 'none'" in (value or "") for _, value in page.attributes
    )


def test_names_in_a_report_are_text(root):
    page = Tags(report_of(root / "evil"))
    assert EVIL in " ".join(page.text)


def test_a_report_shows_the_front_its_baselines_and_every_pair(root):
    text, front = report_of(root / "demo"), open_front(root / "demo")
    page = Tags(text)
    assert page.names.count("svg") == 3 and page.names.count("circle") >= 3 * len(front.trials)
    assert all(f"trial {trial.number}:" in text for trial in front.front) and all(
        name in text for name in NAMES
    )
    assert report_of(root / "demo") == text


def test_the_same_weights_stand_once_with_all_their_names(tmp_path):
    """However they came about: thirds of a soup and thirds of six digits, one row or equal rows,
    another recipe of one digest.
    """
    pool = Pool(
        members=tuple(
            Checkpoint(name=name, location=parse_location(name), tensors={}, config={})
            for name in "abc"
        ),
        base=None,
    )
    objectives = (
        Objective(suite="s", metric="x", direction="maximize"),
        Objective(suite="s", metric="y", direction="maximize"),
    )
    recipes = [
        (plan.kind, plan.label, plan.recipe, "") for plan in fixed_baselines(pool, "bfloat16")
    ]  # a, b, c, uniform
    two = tuple(Group(name=name, match=name) for name in ("x", ""))
    third = (0.333333, 0.333333, 0.333333)
    recipes += [
        ("greedy_soup", "greedy soup: a + b", average(pool, "bfloat16", "ab"), ""),
        (
            "merge",
            "",
            Recipe(method="linear", members=tuple("abc"), weights=(third, third), groups=two),
            "",
        ),
        ("merge", "", Recipe(method="ties", members=tuple("abc"), weights=(third,)), "d"),
        ("merge", "", Recipe(method="ties", members=tuple("abc"), weights=((0.5, 0.5, 0.5),)), "d"),
        (
            "merge",
            "",
            Recipe(
                method="linear", members=tuple("abc"), weights=(third, (0.5, 0.5, 0.0)), groups=two
            ),
            "",
        ),
    ]
    values = [
        (0.9, 0.1),
        (0.5, 0.5),
        (0.1, 0.9),
        (0.7, 0.7),
        (0.6, 0.6),
        (0.7, 0.7),
        (0.8, 0.3),
        (0.8, 0.3),
        (0.3, 0.8),
    ]
    trials = [
        Trial(
            number=number,
            kind=kind,
            state="SCORED",
            label=label,
            recipe=recipe,
            weights_digest=digest,
            search=tuple(
                Score(objective=o.name, value=value, stderr=0.01, n=50)
                for o, value in zip(objectives, pair, strict=True)
            ),
        )
        for number, ((kind, label, recipe, digest), pair) in enumerate(
            zip(recipes, values, strict=True)
        )
    ]
    front = read_front(trials, objectives, pool, "bfloat16")
    assert [trial.number for trial in front.front] == [0, 2, 3, 6, 8] and front.greedy.number == 3
    assert front.names == {
        0: "member a",
        1: "member b",
        2: "member c",
        3: "uniform soup = greedy soup = merge 5",
        4: "greedy step",
        6: "merge = merge 7",
        8: "merge",
    }
    rows = [
        line.split()[0]
        for line in front_table(front).splitlines()
        if line and line.split()[0].isdecimal()
    ]
    assert rows == ["0", "2", "3", "6", "8", "1"] and [
        trial.number for trial in front.baselines
    ] == [0, 1, 2, 3]
    assert {entry["trial"]: entry["same_weights"] for entry in front_document(front)["front"]} == {
        0: [],
        2: [],
        3: [5],
        6: [7],
        8: [],
    }


def test_report_writes_one_file(root, tmp_path, capsys):
    assert main(["report", str(root / "demo"), "--html", str(tmp_path / "r.html")]) == 0
    assert (tmp_path / "r.html").read_text() == report_of(root / "demo") and [
        path.name for path in tmp_path.iterdir()
    ] == ["r.html"]
    assert (
        main(["report", str(root / "demo"), "--html", str(tmp_path / "no/such/folder/r.html")]) == 2
    )
    assert main(["report", str(root / "demo"), "--html", str(tmp_path)]) == 2
    assert main(["report", str(root / "nowhere"), "--html", str(tmp_path / "x.html")]) == 3
    assert not (tmp_path / "x.html").exists()


# ---------------------------------------------------------------- Optuna


@pytest.fixture(scope="module")
def study(root, tmp_path_factory):
    import optuna

    storage = f"sqlite:///{tmp_path_factory.mktemp('study')}/study.db"
    assert main(["study", str(root / "demo"), "--storage", storage]) == 0
    return optuna.load_study(study_name="demo", storage=storage)


def test_a_study_holds_every_closed_trial(study, root):
    ledger = open_ledger(root / "demo")
    trials = ledger.trials()
    ledger.close()
    states = [trial.state.name for trial in study.trials]
    assert (
        len(study.trials) == len(trials)
        and states.count("COMPLETE") == 36
        and states.count("FAIL") == 1
    )
    assert [direction.name.lower() for direction in study.directions] == [
        objective.direction for objective in OBJECTIVES
    ]
    assert study.metric_names == [objective.name for objective in OBJECTIVES]
    for theirs, ours in zip(study.trials, trials, strict=True):
        assert theirs.params == pytest.approx(
            dict(zip(ours.recipe.members, ours.recipe.weights[0], strict=True))
        )
        assert theirs.user_attrs["trial"] == ours.number
        if ours.state == "SCORED":
            assert dict(zip(study.metric_names, theirs.values, strict=True)) == {
                score.objective: score.value for score in ours.search
            }


def test_optuna_finds_the_same_front(study, root):
    """The observed front: optuna knows no errors.

    It keeps equal recipes that the front counts once.
    """
    front = open_front(root / "demo")
    assert {trial.number for trial in front.observed} <= {
        trial.user_attrs["trial"] for trial in study.best_trials
    }


def test_optuna_s_plots_draw_a_study(study):
    pytest.importorskip("plotly", reason="needs recycler[service]")
    from optuna import visualization as plots

    target = {"target": lambda trial: trial.values[0], "target_name": "math"}
    for figure in (
        plots.plot_pareto_front(study),
        plots.plot_parallel_coordinate(study, **target),
        plots.plot_slice(study, **target),
        plots.plot_contour(study, params=list(NAMES[:2]), **target),
        plots.plot_optimization_history(study, **target),
        plots.plot_edf(study, **target),
    ):
        assert figure.data


def test_a_study_is_not_written_twice_and_a_bad_storage_is_told(study, root, tmp_path, capsys):
    storage = (
        study._storage._backend.url if hasattr(study._storage, "_backend") else study._storage.url
    )
    assert main(["study", str(root / "demo"), "--storage", storage]) == 2
    assert main(["study", str(root / "demo"), "--storage", storage, "--name", "another"]) == 0
    for bad in ("nonsense", "sqlite:////no/such/folder/x.db", "mysterydb://x/y"):
        assert main(["study", str(root / "demo"), "--storage", bad]) in (2, 5), bad
    assert "Traceback" not in capsys.readouterr().err


def test_optuna_is_loaded_only_when_asked_for():
    code = (
        "import recycler.cli.share, recycler.search.optuna.study, sys; sys.exit('optuna' in "
        "sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---------------------------------------------------------------- files


def test_csv_and_parquet_agree_with_the_ledger(root):
    pytest.importorskip("fastapi", reason="needs recycler[service]")
    pandas = pytest.importorskip("pandas")
    from recycler.service.downloads import trials_csv_text, trials_parquet_bytes
    from recycler.service.store import Store

    store = Store(root)
    snapshot = store.snapshot(store.run("demo"))
    parquet = pandas.read_parquet(io.BytesIO(trials_parquet_bytes(snapshot)))
    csv = pandas.read_csv(io.StringIO(trials_csv_text(snapshot)))
    assert list(parquet.columns) == list(csv.columns) and len(parquet) == len(csv) == 37
    for column in parquet.columns:
        if parquet[column].dtype.kind in "fi":
            assert (
                (parquet[column] == csv[column]) | (parquet[column].isna() & csv[column].isna())
            ).all(), column
    scored = next(trial for trial in snapshot.trials if trial.state == "SCORED")
    assert all(
        parquet[f"{score.objective} search value"][0] == score.value for score in scored.search
    )
