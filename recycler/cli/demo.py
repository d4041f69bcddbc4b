"""recycler demo: the whole line on a pool that is trained here and now."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from recycler.cli.arguments import Commands, add_command
from recycler.cli.progress import Progress
from recycler.cli.tables import align

if TYPE_CHECKING:  # the CLI's start loads no numpy
    from recycler.results.front import Front


def add_demo(commands: Commands) -> None:
    """Add `recycler demo`."""
    parser = add_command(
        commands,
        "demo",
        "train a small pool, recycle it, export the knee of the front",
        demo,
    )
    parser.add_argument(
        "--dir", default="demo-run", help="where everything goes (default: demo-run)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trials", type=int, default=40, help="merges to try (default: 40)")


def demo(arguments: argparse.Namespace) -> None:
    """Build the pool, run the job, print the front, export its knee, and ask some questions."""
    from recycler.cli.front_text import front_table  # loads numpy and sqlalchemy
    from recycler.cluster.ray_workers import RayWorkers
    from recycler.demo.job import write_job
    from recycler.demo.pool import build_pool
    from recycler.export.export import export_recipe
    from recycler.results.front import knee
    from recycler.run.driver import run_job
    from recycler.run.guard import open_pool_of
    from recycler.scoring.frozen import searched_test_tasks

    folder = Path(arguments.dir)
    with Progress() as progress:
        build_pool(folder, seed=arguments.seed, progress=progress.update)
        job = write_job(folder, seed=arguments.seed, trials=arguments.trials)
        front = run_job(
            job,
            folder / "run",
            make_workers=lambda work, num_workers: RayWorkers(work, num_workers=num_workers),
            listen=progress.listen,
            started=progress.started,
        )
    print(front_table(front, "holdout"))
    chosen = knee(front)
    if not (folder / "export").exists():
        export_recipe(
            chosen.recipe,
            open_pool_of(folder / "run"),
            folder / "export",
            trial=chosen,
            title="recycler demo: the knee of the front",
            searched=searched_test_tasks(folder / "run"),
        )
    print(
        f"recycler: trial {chosen.number}, the knee of the front, is exported to "
        f"{folder / 'export'}",
        file=sys.stderr,
    )
    print(_answers(folder, front))


def _answers(folder: Path, front: Front) -> str:
    """A few holdout questions, answered side by side by plain transformers.

    Base, best member, merge.
    """
    # loads numpy
    from recycler.demo.answers import answer, sample_questions
    from recycler.search.baselines import macro_average

    best = max(
        front.members, key=lambda trial: macro_average(trial, front.trials, front.objectives)
    )
    models = {
        "base": folder / "pool" / "base",
        f"best member ({best.label})": folder / "pool" / "members" / best.label,
        "merge": folder / "export",
    }
    questions = sample_questions(folder)
    columns = [
        answer(model, [question.prompt for question in questions]) for model in models.values()
    ]
    rows = [["question", "right answer", *models], []]
    rows += [
        [question.prompt.strip(), question.answer, *answers]
        for question, *answers in zip(questions, *columns, strict=True)
    ]
    return (
        "Answers of the base, the best member and the merge (holdout questions, plain "
        "transformers)\n" + align(rows)
    )
