"""Costs are shown as what they are: exact, with no error and no items."""

import json
from contextlib import closing

import pytest

pytest.importorskip("fastapi", reason="needs recycler[service]")

from cost_job import figures, ran
from recycler.ledger import Ledger
from recycler.results.html import html_report
from recycler.run.prepare import prepare
from recycler.service.documents import compare_document, pool_document, trials_document
from recycler.service.store import _read
from recycler.service.table import table_document, trial_document


def test_the_service_and_a_report_show_costs_without_errors_or_items(job, tmp_path):
    _, trials = ran(job)
    with closing(Ledger(job / "run" / "ledger.sqlite")) as ledger:
        snapshot = _read(ledger, ())
        outcomes = {trial.number: ledger.outcomes(trial.number, "search") for trial in trials}
        status = snapshot.status
    items = {item.id: item for item in prepare(job / "job.yaml").items}
    first, second = [trial for trial in trials if trial.state == "SCORED"][:2]
    compared = compare_document(
        snapshot,
        (first, second),
        "search",
        [outcomes[first.number], outcomes[second.number]],
        items,
    )
    told = {entry["objective"]: entry for entry in compared["against"][0]["objectives"]}
    assert (
        told["cost:distance"]["paired"] is None
        and told["cost:distance"]["flips"] is None
        and told["echo:bits/bits_per_byte"]["paired"]
    )
    assert (
        told["cost:distance"]["score_difference"]
        == figures([second], "cost:distance")[second.number]
        - figures([first], "cost:distance")[first.number]
    )
    table, one = table_document(snapshot, ""), trial_document(snapshot, second)
    assert [objective.get("exact", False) for objective in table["objectives"]] == [
        False,
        False,
        True,
        True,
    ]
    assert table["scores"]["search"]["cost:members"]["value"] == [
        float(sum(map(bool, trial.recipe.weights[0]))) for trial in trials
    ]
    assert "cost:members" not in one["why"]["holdout_gap"] and not any(
        "cost" in entry["name"] for entry in one["why"]["against"]
    )
    for document in (compared, table, one, trials_document(snapshot, ""), pool_document(snapshot)):
        assert json.dumps(document, allow_nan=False)
    page = html_report(snapshot.front, status)
    assert (
        "cost:members (minimize), search" in page
        and "<td>3</td>" in page
        and "1.0000 ± 0.0000" not in page
    )
