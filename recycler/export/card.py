"""The model card: a merge's parents, its recipe, and its scores on search and on holdout items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from recycler.io.strict_yaml import dump_yaml
from recycler.types import Pool, Recipe, Score, Trial


def model_card(
    title: str,
    pool: Pool,
    recipe: Recipe,
    trial: Trial | None,
    recipe_text: str,
    *,
    mergekit: str = "",
    searched: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """README.md of an export, with the metadata that model hubs read.

    `mergekit` is a sentence on the recipe in mergekit's words. `searched` has, for each suite of
    the run, the tasks whose search items are a published test set; it is None where that is not
    known.
    """
    used = used_members(recipe)
    parents = [pool.find(name) for name in used]
    if recipe.base:
        parents.append(pool.find(recipe.base))
    names = [str(parent.config.get("_name_or_path") or parent.name) for parent in parents]
    metadata = {
        "base_model": names,
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "recycler"],
    }
    lines = [
        "---",
        dump_yaml(metadata).rstrip(),
        "---",
        "",
        f"# {title}",
        "",
        f"A merge of {len(used)} checkpoints ({', '.join(used)}) with method `{recipe.method}`, "
        "found and exported by recycler.",
        "",
    ]
    if trial is not None and (trial.search or trial.holdout):
        lines += [
            "## Scores",
            "",
            "Search items chose this merge, so its search scores are optimistic. Holdout items "
            "were scored once, after the choice.",
            "",
            *_searched_note(trial, searched),
            *_dtype_note(recipe, trial),
            "| objective | search | holdout |",
            "|---|---|---|",
            *_score_rows(trial.search, trial.holdout),
            "",
        ]
    lines += ["## Recipe", "", "```yaml", recipe_text.rstrip(), "```", ""]
    if mergekit:
        lines += [mergekit, ""]
    return "\n".join(lines)


def _searched_note(trial: Trial, searched: Mapping[str, Sequence[str]] | None) -> list[str]:
    """A sentence on the rows that were searched: a benchmark's test set, or others."""
    if searched is None:
        return []
    names = [score.objective for score in trial.search if not score.is_exact]
    on_test = []
    for name in names:
        suite, _, task = name.partition("/")[0].partition(":")
        if task in searched.get(suite, ()) or not task and searched.get(suite):
            on_test.append(name)
    if not on_test:
        return [
            "No search items come from a published test set as far as their names say: train, "
            "validation or other rows were searched.",
            "",
        ]
    note = (
        f"Search items of {', '.join(on_test)} come from a benchmark's published test set: "
        "compare these scores with nobody's."
    )
    if len(on_test) < len(names):
        note += " The other search items come from train, validation or other rows."
    return [note, ""]


def _dtype_note(recipe: Recipe, trial: Trial) -> list[str]:
    """A sentence for weights in another dtype than the one that was scored."""
    if recipe.dtype == trial.recipe.dtype:
        return []
    return [
        f"The scores are those of the merge in {trial.recipe.dtype}; these weights are in "
        f"{recipe.dtype}.",
        "",
    ]


def used_members(recipe: Recipe) -> list[str]:
    """Members with a non-zero weight in some group, in the pool's order."""
    columns = zip(recipe.members, zip(*recipe.weights, strict=True), strict=True)
    return [name for name, column in columns if any(column)]


def _score_rows(search: Sequence[Score], holdout: Sequence[Score]) -> list[str]:
    """Lines of the table of scores."""
    held = {score.objective: score for score in holdout}
    return [
        f"| {score.objective} | {_figure(score)} | {_figure(held.get(score.objective))} |"
        for score in search
    ]


def _figure(score: Score | None) -> str:
    if score is None:
        return "not scored"
    if score.is_exact:
        return f"{score.value:.4g} (by its recipe)"
    return f"{score.text(4)} (n = {score.n})"
