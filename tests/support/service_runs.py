"""Run folders made of nothing but a ledger, for the service and its dashboard: synthetic trials
through the real Ledger.
"""

import socket
import subprocess
import sys
import threading
import zlib
from contextlib import contextmanager

import numpy as np

from handmade import model_arrays, write_checkpoint
from recycler.ledger import Ledger
from recycler.ledger.facts import JobFacts
from recycler.location import parse_location
from recycler.scoring.frozen import write_frozen
from recycler.search.baselines import average, fixed_baselines
from recycler.specs.suite import EvalSuite
from recycler.types import (
    Checkpoint,
    Failure,
    Item,
    Objective,
    Outcome,
    Pool,
    Recipe,
    Score,
    Scorecard,
)

OBJECTIVES = (
    Objective(suite="demo", task="math", metric="exact_match", direction="maximize"),
    Objective(suite="demo", task="code", metric="exact_match", direction="maximize"),
    Objective(suite="demo", task="prose", metric="bits_per_byte", direction="minimize"),
)
NAMES = ("math-v3", "code-v1", "prose-v2", "chat-v1")
ITEMS = 40
EVIL = "<img src=x onerror=\"document.title='XSS'\"><script>document.title='XSS'</script>"


def pool_at(folder):
    return Pool(
        members=tuple(
            Checkpoint(name=name, location=parse_location(folder / name), tensors={}, config={})
            for name in NAMES
        ),
        base=Checkpoint(
            name="base", location=parse_location(folder / "base"), tensors={}, config={}
        ),
    )


def scorecard_of(recipe, role="search", *, items=ITEMS, says=""):
    """Smooth in the weights, 0 or 1 for each item; equal for equal recipes."""
    row = np.array(recipe.weights[0])
    skill = 1 / (
        1
        + np.exp(
            -(
                4
                * np.array(
                    [
                        row[0] + 0.3 * row[3] - 0.2 * row[1],
                        row[1] + 0.4 * row[3] - 0.1 * row[2],
                        row[2] + 0.2 * row[3],
                    ]
                )
                - 1.5
                - 0.8 * (row.sum() - 1) ** 2
            )
        )
    )
    noise = np.random.default_rng(zlib.crc32(repr((role, row.round(6).tolist())).encode()))
    outcomes, scores = [], []
    for objective, level in zip(OBJECTIVES, skill, strict=True):
        hard = np.linspace(0.05, 0.95, items)
        values = (
            (level > hard + noise.normal(0, 0.08, items)).astype(float)
            if objective.direction == "maximize"
            else 2.0 - level + noise.normal(0, 0.05, items)
        )
        outcomes += [
            Outcome(
                item=f"demo/{objective.task}/{role}-{index}",
                values=((objective.metric, float(value)),),
                output=f"{says}answer {index}" if objective.direction == "maximize" else "",
                num_tokens=5,
            )
            for index, value in enumerate(values)
        ]
        scores.append(
            Score(
                objective=objective.name,
                value=float(values.mean()),
                stderr=float(values.std(ddof=1) / np.sqrt(items)),
                n=items,
            )
        )
    return Scorecard(
        role=role,
        scores=tuple(scores),
        outcomes=tuple(outcomes),
        weights_digest="",
        engine_fingerprint="synthetic",
        num_tokens=15 * items,
        merge_seconds=0.1,
        score_seconds=0.4,
    )


def frozen_suite(items=ITEMS, cluster_size=4):
    """The items that `scorecard_of` answers; neighbours form clusters."""
    return EvalSuite(
        name="demo",
        items=tuple(
            Item(
                id=f"demo/{o.task}/{role}-{index}",
                suite="demo",
                task=o.task,
                role=role,
                kind="generate" if o.direction == "maximize" else "loglikelihood",
                scorer=o.metric,
                prompt=f"What is {o.task} {index}?",
                prompt_ids=(1, 2),
                gold=f"gold {index}",
                continuations=() if o.direction == "maximize" else ((3,),),
                num_bytes=8,
                cluster=f"{o.task}-{index // cluster_size}",
                max_new_tokens=4,
            )
            for o in OBJECTIVES
            for role in ("search", "holdout")
            for index in range(items)
        ),
    )


def make_run(
    root,
    run_id="demo",
    *,
    merges=30,
    finished=True,
    label="",
    items=ITEMS,
    seed=0,
    checkpoints=False,
    suites=False,
    place=None,
):
    """A run folder `root/run_id`: members, base, soups, `merges` random merges, one failure;
    holdout when finished.

    With `checkpoints` the members are there too, a few kilobytes each, so that a trial can be
    exported; with `suites` the frozen items are. `place` puts the ledger into a database, and its
    address into the folder.
    """
    if checkpoints:
        for index, name in enumerate((*NAMES, "base")):
            write_checkpoint(root / "pool" / name, model_arrays(index))
    folder = root / run_id
    folder.mkdir(parents=True)
    if suites:
        write_frozen(frozen_suite(items), folder / "suites/demo.jsonl")
    pool, ledger = pool_at(root / "pool"), Ledger(place or folder / "ledger.sqlite")
    if place:
        (folder / "ledger.url").write_text(f"{place}\n")
    ledger.facts.job = JobFacts(
        name=run_id,
        dtype="bfloat16",
        trials=merges,
        objectives=OBJECTIVES,
        members=tuple((member.name, str(member.location)) for member in pool.members),
        base=("base", str(pool.base.location)),
    )
    ledger.facts.digests = {}
    ledger.facts.gram = [
        [0.0004 if a == b else 0.0001 for b in range(len(NAMES))] for a in range(len(NAMES))
    ]
    planned = [(plan.kind, plan.label, plan.recipe) for plan in fixed_baselines(pool, "bfloat16")]
    planned.append(
        ("greedy_soup", "greedy soup: math-v3 + code-v1", average(pool, "bfloat16", NAMES[:2]))
    )
    planned += [
        ("merge", label, merge_recipe(pool, seed * 100_000 + index)) for index in range(merges)
    ]
    for number, (kind, name, recipe) in enumerate(planned):
        ledger.open_trial(number, kind, recipe, label=name)
        card = scorecard_of(recipe, items=items, says=label)
        if number == len(planned) - 1 and merges:
            ledger.fail_trial(
                number, Failure(blame="recipe", reason=f"weights are not finite {label}")
            )
            continue
        ledger.close_trial(number, card)
        if finished and number < 12:
            ledger.add_holdout(number, scorecard_of(recipe, "holdout", items=items))
    ledger.facts.elapsed_seconds = 120.0
    if finished:
        ledger.facts.finished = merges
    ledger.close()
    return folder


def merge_recipe(pool, seed):
    row = np.random.default_rng(seed).dirichlet(np.full(len(NAMES), 0.7)) * np.random.default_rng(
        seed + 1
    ).uniform(0.8, 1.3)
    return Recipe(method="linear", members=pool.names, weights=(tuple(row.tolist()),), base="base")


def add_trial(folder, seed):
    """One more scored merge, as the driver would write it."""
    ledger = Ledger(folder / "ledger.sqlite")
    number, recipe = len(ledger.trials()), merge_recipe(pool_at(folder.parent / "pool"), seed)
    ledger.open_trial(number, "merge", recipe)
    ledger.close_trial(number, scorecard_of(recipe))
    ledger.close()
    return number


@contextmanager
def driven(folder):
    """Another process that holds the run's lock, as a driver at work does; gives its process id."""
    code = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); "
        "print('held', flush=True); time.sleep(300)"
    )
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code, str(folder / "driver.lock")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    process.stdout.readline()
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class served:
    """The service in a thread, on a port of its own; closed at the end."""

    def __init__(self, root, **settings):
        from recycler.service import create_app

        self.app = create_app(root, **{"token": None, **settings})

    def __enter__(self):
        import uvicorn

        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen(64)  # before the thread: who asks early waits instead of being refused
        self.server = uvicorn.Server(
            uvicorn.Config(self.app, log_level="warning", timeout_graceful_shutdown=1)
        )
        self.thread = threading.Thread(
            target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True
        )
        self.thread.start()
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}"

    def __exit__(self, *_exception):
        self.server.should_exit = True
        self.thread.join(20)
        self.socket.close()
