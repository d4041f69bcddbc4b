"""The model card: where a merge comes from, how it was made, and how it scored; search and holdout apart."""

from __future__ import annotations

from collections.abc import Sequence

from recycler.types import Pool, Recipe, Score, Trial
from recycler.yamls import dump_yaml


def model_card(title: str, pool: Pool, recipe: Recipe, trial: Trial | None, recipe_text: str, *, mergekit: str = "") -> str:
    """README.md of an export, with the metadata that model hubs read; `mergekit` says whether its words were found for the recipe."""
    used = used_members(recipe)
    parents = [pool.find(name) for name in (*used, *([recipe.base] if recipe.base else []))]
    metadata = {"base_model": [str(parent.config.get("_name_or_path") or parent.name) for parent in parents], "base_model_relation": "merge",
                "library_name": "transformers", "tags": ["merge", "recycler"]}
    lines = ["---", dump_yaml(metadata).rstrip(), "---", "", f"# {title}", "",
             f"A merge of {len(used)} checkpoints ({', '.join(used)}) with method `{recipe.method}`, found and exported by recycler.", ""]
    if trial is not None and (trial.search or trial.holdout):
        lines += ["## Scores", "", "Search items chose this merge, so its search scores are optimistic. Holdout items were scored once, after the choice.", "",
                  *_dtype_note(recipe, trial), "| objective | search | holdout |", "|---|---|---|", *_score_rows(trial.search, trial.holdout), ""]
    lines += ["## Recipe", "", "```yaml", recipe_text.rstrip(), "```", "", *([mergekit, ""] if mergekit else [])]
    return "\n".join(lines)


def _dtype_note(recipe: Recipe, trial: Trial) -> list[str]:
    return [] if recipe.dtype == trial.recipe.dtype else [f"The scores are those of the merge in {trial.recipe.dtype}; these weights are in {recipe.dtype}.", ""]


def used_members(recipe: Recipe) -> list[str]:
    """Members with a non-zero weight in some group, in the pool's order."""
    return [name for index, name in enumerate(recipe.members) if any(row[index] != 0.0 for row in recipe.weights)]


def _score_rows(search: Sequence[Score], holdout: Sequence[Score]) -> list[str]:
    held = {score.objective: score for score in holdout}
    return [f"| {score.objective} | {_figure(score)} | {_figure(held.get(score.objective))} |" for score in search]


def _figure(score: Score | None) -> str:
    return "not scored" if score is None else f"{score.value:.4f} ± {score.stderr:.4f} (n = {score.n})"
