"""Estimated worth of the front without a member, and the merge that would show it.

The same estimate as `recycler why` gives, see `recycler.results.attribution`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from recycler.merge.files.recipe_yaml import recipe_to_yaml
from recycler.results.attribution import Loss, SearchModel
from recycler.service.documents import finite
from recycler.service.store import Snapshot


def leave_out_document(snapshot: Snapshot, surrogate: SearchModel | str) -> dict[str, Any]:
    """Estimated loss of the front's volume without each member, and a merge to try.

    With a 90 % interval.

    `surrogate` is the model, or why there is none; then the members have nulls and `reason` says
    it. Seconds for hundreds of trials.
    """
    losses: dict[str, Loss] = {}
    if isinstance(surrogate, str):
        reason, num_trials = surrogate, 0
    else:
        losses = {loss.member: loss for loss in surrogate.losses()}
        reason = "" if losses else "no merge beats the worst member at everything"
        num_trials = len(surrogate.trials)
    members = []
    for name in snapshot.pool.names:
        entry = {"name": name, "loss": None, "low": None, "high": None, "try": None}
        members.append(_member(snapshot, losses[name]) if name in losses else entry)
    return {
        "schema_version": 1,
        "reason": reason,
        "num_trials": num_trials,
        "members": members,
    }


def _member(snapshot: Snapshot, loss: Loss) -> dict[str, Any]:
    like = next(
        trial.recipe
        for trial in snapshot.trials
        if trial.state == "SCORED"
        and len(trial.recipe.weights) == len(loss.remaining)
        and trial.recipe.members == snapshot.pool.names
    )
    recipe = replace(like, weights=loss.remaining)
    return {
        "name": loss.member,
        "loss": finite(loss.hypervolume),
        "low": finite(loss.low),
        "high": finite(loss.high),
        "try": {
            "weights": {
                group.name: dict(zip(recipe.members, row, strict=True))
                for group, row in zip(recipe.groups, recipe.weights, strict=True)
            },
            "predicted": {
                name: {"value": finite(value), "stderr": finite(stderr)}
                for name, (value, stderr) in loss.predicted.items()
            },
            "recipe": recipe_to_yaml(
                recipe,
                {one.name: str(one.location) for one in snapshot.pool.checkpoints},
            ),
        },
    }
