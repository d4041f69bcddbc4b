"""What the front would be worth without a member, as the search's own model sees it, and the merge that would show it.

The same estimate as `recycler why` gives, see `recycler.search.why`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from recycler.merge.recipe_yaml import recipe_to_yaml
from recycler.search.why import Loss, Surrogate
from recycler.service.documents import finite
from recycler.service.store import Snapshot


def leave_out_document(snapshot: Snapshot, surrogate: Surrogate | str) -> dict[str, Any]:
    """For each member: estimated share of the front's volume that is lost without it, with a 90 % interval, and a merge to try.

    `surrogate` is the model, or why there is none; then `members` is empty and `reason` says it. Seconds for hundreds of trials.
    """
    if isinstance(surrogate, str):
        return {"schema_version": 1, "reason": surrogate, "num_trials": 0, "members": []}
    losses = {loss.member: loss for loss in surrogate.losses()}
    return {"schema_version": 1, "reason": "" if losses else "no merge beats the worst member at everything", "num_trials": len(surrogate.trials),
            "members": [_member(snapshot, losses[name]) for name in surrogate.members if name in losses]}


def _member(snapshot: Snapshot, loss: Loss) -> dict[str, Any]:
    like = next(trial.recipe for trial in snapshot.trials if trial.state == "SCORED" and len(trial.recipe.weights) == len(loss.remaining) and trial.recipe.members == snapshot.pool.names)
    recipe = replace(like, weights=loss.remaining)
    return {"name": loss.member, "loss": finite(loss.hypervolume), "low": finite(loss.low), "high": finite(loss.high), "try": {
        "weights": {group.name: dict(zip(recipe.members, row, strict=True)) for group, row in zip(recipe.groups, recipe.weights, strict=True)},
        "predicted": {name: {"value": finite(value), "stderr": finite(stderr)} for name, (value, stderr) in loss.predicted.items()},
        "recipe": recipe_to_yaml(recipe, {checkpoint.name: checkpoint.location for checkpoint in snapshot.pool.checkpoints})}}
