"""Checks of a job that read no weights: each returns a list of problems, empty when it is sound.

A job's keys are compared with its method, its space and the metrics of its suites. Every problem
names the line of the job file.
"""

from __future__ import annotations

from collections.abc import Mapping

from recycler.errors import Problem, did_you_mean
from recycler.io.strict_yaml import KeyPath, YamlDocument
from recycler.merge.methods.problems import MethodWords, method_problems
from recycler.merge.methods.registry import MERGE_METHODS
from recycler.scoring.tasks import objective_metrics
from recycler.specs.job import CostSpec, JobSpec
from recycler.specs.space import NO_WEIGHT, SearchSpace, reachable_sums
from recycler.specs.suite import SuiteSpec
from recycler.types import Objective, Pool

WORDS = MethodWords(
    no_base="the pool has no base",
    add_base="Add base: under pool:",
    members="members, the pool has",
    change_members="Use another method, or a pool of those two",
)


def check_method(job: JobSpec, document: YamlDocument) -> list[Problem]:
    """An unknown method, or one that needs a base where the pool has none."""

    def where(key: KeyPath) -> str:
        return document.where(("pool",) if key == ("base",) else key)

    return method_problems(job.method, WORDS, has_base=job.pool.base is not None, where=where)


def check_number_of_members(job: JobSpec, document: YamlDocument, pool: Pool) -> list[Problem]:
    """A method that merges another number of members than the pool has."""
    if job.method not in MERGE_METHODS:
        return []
    return method_problems(job.method, WORDS, num_members=len(pool.members), where=document.where)


# ---------------------------------------------------------------- costs


def check_costs(job: JobSpec, document: YamlDocument) -> list[Problem]:
    """Costs that the merges of this job do not have, or that their weights do not tell."""
    if job.method not in MERGE_METHODS:
        return []
    problems: list[Problem] = []
    for index, spec in enumerate(job.objectives):
        if not isinstance(spec, CostSpec):
            continue
        where = document.where(("objectives", index))
        if spec.cost == "members":
            problems += _members_cost_problems(job, where)
        if spec.cost == "distance":
            problems += _distance_cost_problems(job, where)
    return problems


def _members_cost_problems(job: JobSpec, where: str) -> list[Problem]:
    if not MERGE_METHODS[job.method].reads_all:
        return []
    return [
        Problem(
            thing="cost members",
            cause=f"says nothing of {job.method}, which uses members of weight 0 too",
            remedy="Leave it out, or use another method",
            where=where,
        )
    ]


def _distance_cost_problems(job: JobSpec, where: str) -> list[Problem]:
    problems = []
    if job.pool.base is None:
        problems.append(
            Problem(
                thing="cost distance",
                cause="is that from the base, and the pool has none",
                remedy="Add base: under pool:",
                where=where,
            )
        )
    if job.method != "linear":
        problems.append(
            Problem(
                thing="cost distance",
                cause=f"cannot be told from the weights of {job.method}: it is exact for linear "
                "merges alone",
                remedy="Use method: linear, or leave it out",
                where=where,
            )
        )
    return problems


def check_distance_in_space(
    space: SearchSpace, job: JobSpec, document: YamlDocument
) -> list[Problem]:
    """The cost distance beside a space that searches more than weights."""
    places = _places_of_cost("distance", job)
    if not places or not space.options:
        return []
    return [
        Problem(
            thing="cost distance",
            cause="cannot be told from the weights alone while the space searches "
            f"{space.options[0][0]}",
            remedy="Take that option out of the space, or leave the cost out",
            where=document.where(("objectives", places[0])),
        )
    ]


def check_max_members(space: SearchSpace, job: JobSpec, document: YamlDocument) -> list[Problem]:
    """A floor of the cost members below the number that the space needs."""
    index, number = max_members(job)
    if number is None:
        return []
    where = document.where(("objectives", index, "floor"))
    must = [
        name
        for name, low, high in zip(space.members, space.low, space.high, strict=True)
        if low > 0.0 or high < 0.0
    ]
    if len(must) > number:
        return [
            Problem(
                thing=f"at most {number} members",
                cause="is fewer than the space gives a weight to in every merge "
                f"({', '.join(must)})",
                remedy="Raise floor:, or let those weights be 0",
                where=where,
            )
        ]
    few = min(number, space.max_nonzero or number)
    least, largest = reachable_sums(space.low, space.high, few)
    if least > space.total[1] + NO_WEIGHT or largest < space.total[0] - NO_WEIGHT:
        return [
            Problem(
                thing=f"at most {number} members",
                cause=f"are too few: their weights sum to {least:g} to {largest:g}, and the space "
                f"wants [{space.total[0]:g}, {space.total[1]:g}]",
                remedy="Raise floor:, or widen the space's bounds or sum",
                where=where,
            )
        ]
    return []


def max_members(job: JobSpec) -> tuple[int, int | None]:
    """Place and floor of the cost members among the objectives; (0, None) where there is none."""
    for index, spec in enumerate(job.objectives):
        if isinstance(spec, CostSpec) and spec.cost == "members" and spec.floor is not None:
            return index, int(spec.floor)
    return 0, None


def _places_of_cost(name: str, job: JobSpec) -> list[int]:
    return [
        index
        for index, spec in enumerate(job.objectives)
        if isinstance(spec, CostSpec) and spec.cost == name
    ]


# ---------------------------------------------------------------- samplers


def check_signs(space: SearchSpace, job: JobSpec, document: YamlDocument) -> list[Problem]:
    """Free weights below 0 with a sampler that never proposes any: half of the space is unseen."""
    below = [
        name
        for name, low, high in zip(space.members, space.low, space.high, strict=True)
        if low < 0.0 and low < high
    ]
    if not below or job.sampler in ("simplex_gp", "grid"):
        return []
    return [
        Problem(
            thing=f"sampler {job.sampler}",
            cause="proposes shares of a sum, none of them below 0, and the space allows that of "
            f"{', '.join(below)}",
            where=document.where(("sampler",)),
            remedy="Use sampler: simplex_gp, or raise those bounds to 0; a weight that is fixed "
            "may be negative with any sampler",
        )
    ]


def check_grid(space: SearchSpace, job: JobSpec, document: YamlDocument) -> list[Problem]:
    """A space that is no line, with the sampler that lays a grid on one."""
    if job.sampler != "grid":
        return []
    other, number = "use another sampler", len(space.members)
    wrong = [
        (
            number != 2,
            f"goes along the line between two members, and the pool has {number}",
            f"Name two under pool.members or leave the others out by pool.without, or {other}",
        ),
        (
            len(space.groups) != 1,
            f"has one row of weights, and the space has {len(space.groups)} groups",
            f"Write groups: global, or {other}",
        ),
        (
            space.total[0] < space.total[1],
            f"needs a fixed sum, and the space searches it in [{space.total[0]:g}, "
            f"{space.total[1]:g}]",
            f"Write space: search_spaces/simplex.yaml, or a space with sum: 1, or {other}",
        ),
        (
            bool(space.knobs),
            "moves weights alone, and the space searches "
            f"{', '.join(name for name, _ in space.knobs)}",
            f"Give these one value, such as [0.5, 0.5], or {other}",
        ),
    ]
    where = document.where(("sampler",))
    return [
        Problem(thing="sampler grid", cause=cause, remedy=remedy, where=where)
        for is_wrong, cause, remedy in wrong
        if is_wrong
    ]


# ---------------------------------------------------------------- objectives


def check_objectives(
    job: JobSpec, document: YamlDocument, suites: Mapping[str, SuiteSpec]
) -> list[Problem]:
    """Tasks and metrics that the suites, by name, do not have."""
    problems: list[Problem] = []
    for index, objective in enumerate(job.searched_objectives):
        if objective.is_cost or objective.suite not in suites:
            continue
        metrics = objective_metrics(suites[objective.suite])
        problems += _metric_problems(objective, metrics, document.where(("objectives", index)))
    return problems


def _metric_problems(
    objective: Objective, metrics: Mapping[str, tuple[str, ...]], where: str
) -> list[Problem]:
    if objective.task is not None and objective.task not in metrics:
        return [
            Problem(
                thing=f"task {objective.task!r}",
                cause=f"not in suite {objective.suite!r}",
                remedy=did_you_mean(objective.task, metrics),
                where=where,
            )
        ]
    tasks = metrics if objective.task is None else [objective.task]
    known = {metric for task in tasks for metric in metrics[task]}
    if objective.metric in known:
        return []
    return [
        Problem(
            thing=f"metric {objective.metric!r}",
            cause=f"not given by {objective.suite!r}",
            remedy=did_you_mean(objective.metric, known),
            where=where,
        )
    ]
