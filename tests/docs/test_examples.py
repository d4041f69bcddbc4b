"""The scripts of examples/ run, and so do the commands of the page that tells a first job."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import pytest
import yaml

from places import ROOT
from recycler.cli import main
from recycler.specs.job import read_job

PAGE = (ROOT / "docs/first-job.md").read_text()
COMMANDS = re.findall(r"^    recycler (.*)$", PAGE, re.MULTILINE)
MEMBERS = ("m0", "m1", "m2")


def run_example(name: str, *arguments: str | Path) -> str:
    """Run a script of examples/ as a program; return its standard output."""
    script = ROOT / "examples" / f"{name}.py"
    said = StringIO()
    with patch.object(sys, "argv", [script.name, *map(str, arguments)]), redirect_stdout(said):
        runpy.run_path(str(script), run_name="__main__")
    return said.getvalue()


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """The folder of the first job, with what its script printed."""
    folder = tmp_path_factory.mktemp("first") / "first-job"
    said = run_example("first_job", folder)
    (folder / "said.txt").write_text(said)
    return folder


def test_every_example_is_run_here():
    names = {path.stem for path in (ROOT / "examples").glob("*.py")}
    assert names == set(re.findall(r'run_example\("(\w+)"', Path(__file__).read_text()))


def test_a_first_job_ends_with_a_front_beside_its_members(first):
    said = (first / "said.txt").read_text()
    assert all(f"member {name}" in said for name in MEMBERS)
    assert "knee" in said or "front" in said


def test_the_page_of_a_first_job_shows_the_job_of_the_script(first):
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert block == (first / "job.yaml").read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_page_do_what_it_says(first, command, capsys, monkeypatch):
    """In the page's order; the run has ended, so `recycler run` starts no cluster."""
    monkeypatch.chdir(first)
    assert main(shlex.split(command)) == 0, capsys.readouterr().err
    assert capsys.readouterr().out


def test_the_page_has_commands_from_a_look_at_the_pool_to_a_served_model():
    names = [command.split()[0] for command in COMMANDS]
    assert names == ["inspect", "plan", "run", "front", "why", "export", "score"]


def test_a_job_is_written_for_checkpoints_of_your_own(first, tmp_path):
    members = sorted((first / "pool/members").iterdir())
    said = run_example("own_pool", tmp_path / "job.yaml", *members, "--base", first / "pool/base")
    assert all(re.search(rf"{name} +-?[01]\.\d\d", said) for name in MEMBERS)
    job, _ = read_job(tmp_path / "job.yaml")
    assert job.pool.members == [str(member) for member in members]
    assert job.budget.trials == 30


def test_the_sampler_alone_finds_merges_between_the_peaks():
    lines = run_example("sampler_alone", "--trials", "12").splitlines()
    assert len(lines) >= 3
    for line in lines:
        weights = [float(number) for number in re.findall(r"(?:math|code|chat) ([\d.]+)", line)]
        assert sum(weights) == pytest.approx(1.0, abs=0.02)


def test_a_run_is_read_into_pandas(first, tmp_path):
    run_example("run_to_pandas", first / "run", "--parquet", tmp_path / "trials.parquet")
    trials = pd.read_parquet(tmp_path / "trials.parquet")
    assert set(trials.loc[trials.kind == "member", "label"]) == set(MEMBERS)
    assert (trials.state == "SCORED").all() and len(trials) >= 15
    assert trials["search echo:capitals/bits_per_byte stderr"].gt(0).all()
    run_example("run_to_pandas", first / "run", "--items", "0", "--parquet", tmp_path / "i.parquet")
    items = pd.read_parquet(tmp_path / "i.parquet")
    assert len(items) == 120 and items.bits_per_byte.gt(0).all()


def test_a_front_is_plotted_without_a_network(first, tmp_path):
    pytest.importorskip("plotly")
    run_example("plot_front", first / "run", tmp_path / "front.html")
    page = (tmp_path / "front.html").read_text()
    assert "echo:capitals" in page and "Plotly.newPlot" in page
    assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//', page)


def test_jobs_of_examples_parse(first):
    assert yaml.safe_load((first / "job.yaml").read_text())["version"] == 1
    assert read_job(first / "job.yaml")[0].name == "first-job"
