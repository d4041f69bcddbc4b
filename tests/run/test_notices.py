"""What a run says of itself while it goes on, each line once: through the run, with simulated
workers.
"""

import numpy as np
import pytest

from fakes import FakeWorkers
from recycler.cli import main
from recycler.cli.progress import Progress
from recycler.digest import derive_seed
from recycler.run.driver import run_job
from recycler.scoring.outcomes import aggregate
from recycler.types import Outcome, Scorecard
from small_job import set_job


class AlikeWorkers(FakeWorkers):
    """The member that is best at one benchmark is best at the other."""

    work = None

    def answer(self, recipe, role, items):
        chosen = self.work.items_of(role, items)
        level = np.tanh(
            sum(
                weight * (0.3 + 0.2 * int(name[1:]))
                for name, weight in zip(recipe.members, recipe.weights[0], strict=True)
            )
        )
        values = [
            (level if item.scorer == "exact_match" else 2 - level)
            + 0.1 * np.random.default_rng(derive_seed(0, item.id)).random()
            for item in chosen
        ]
        outcomes = tuple(
            Outcome(item=item.id, values=((item.scorer, float(value)),))
            for item, value in zip(chosen, values, strict=True)
        )
        return Scorecard(
            role=role,
            scores=aggregate(chosen, outcomes, self.work.objectives),
            outcomes=outcomes,
            weights_digest=str(recipe.weights),
            engine_fingerprint="fake",
        )


def told(folder, **changes):
    """(kind of the event's trial, line) of every note of a run, and its front."""
    set_job(folder, **changes)
    workers, notes = AlikeWorkers(), []

    def make(work, num_workers):
        workers.work = work
        return workers

    def listen(event):
        Progress().listen(event)
        notes.extend((event.trial.kind, note) for note in event.notes)

    return notes, run_job(folder / "job.yaml", folder / "run", make_workers=make, listen=listen)


@pytest.fixture
def line():
    return (
        "echo:echo/exact_match and echo:bits/bits_per_byte do not trade off: m2 is the best "
        "member at both"
    )


def test_benchmarks_that_do_not_trade_off_are_told_of_when_the_members_are_scored_and_once(
    job, line, capsys
):
    notes, _ = told(job, sampler="random")
    ((kind, said),) = [(kind, note) for kind, note in notes if "trade off" in note]
    assert kind == "member" and said.startswith(line)
    shown = capsys.readouterr().err
    assert shown.count(said) == 1 and shown.index(said) < shown.index("holdout")
    again, _ = told(job, sampler="random", budget={"trials": 4})
    assert again == []
    for command in ("status", "front"):
        assert main([command, str(job / "run")]) == 0 and line in capsys.readouterr().out


def test_members_of_an_earlier_run_are_told_of_too(job, line):
    told(job, sampler="random")
    (job / "run").rename(job / "first")
    notes, _ = told(job, sampler="random", earlier=["first"], seed=1)
    assert [note.startswith(line) for _, note in notes] == [True]


@pytest.mark.parametrize("sampler", ["simplex_gp", "tpe", "random", "paper"])
def test_a_search_that_has_tried_everything_says_so_and_holds_out(job, sampler, capsys):
    (job / "s.yaml").write_text("version: 1\nsum: 1\nbounds: [0, 1]\nmax_nonzero: 1\n")
    notes, front = told(job, sampler=sampler, space="s.yaml", budget={"trials": 9})
    assert [note for _, note in notes if "left to try" in note] == [
        "nothing that the space allows is left to try: the search ends with 0 of its 9 merges "
        "proposed"
    ]
    assert (
        all(trial.holdout for trial in front.finalists) and main(["status", str(job / "run")]) == 0
    )
    assert "finished" in capsys.readouterr().out
