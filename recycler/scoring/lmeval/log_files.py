"""Results in the files that lm-eval 0.4.13 writes, and old lm-eval runs read back as baselines.

`results_DATE.json` holds a mean and a standard error for each task, metric and filter;
`samples_TASK_DATE.jsonl` one line for each item and filter, with `prompt_hash`, the SHA-256 of the
prompt, by which its items are found among ours.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from recycler.errors import NotFoundError, Problem, UnsafeInputError
from recycler.scoring.outcomes import aggregate
from recycler.scoring.scorers import detail, item_metrics, lm_eval_filter
from recycler.types import Item, Objective, Outcome, Score

_LOWER_IS_BETTER = (
    "bits_per_byte",
    "byte_perplexity",
    "word_perplexity",
    "perplexity",
    "brier_score",
    "ter",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LmEvalRun:
    """An old run: its model, date and scores; `Score.objective` is TASK/METRIC or
    TASK/METRIC,FILTER in lm-eval's names.
    """

    model: str
    date: str
    scores: tuple[Score, ...]


def lm_eval_task_name(item: Item) -> str:
    """lm-eval knows tasks, not suites: SUITE when the task is called the same, else SUITE_TASK."""
    return item.suite if item.suite == item.task else f"{item.suite}_{item.task}"


def write_lm_eval(
    folder: Path, items: Sequence[Item], outcomes: Iterable[Outcome], *, model: str, date: str = ""
) -> Path:
    """Write results_DATE.json and one samples file a task into `folder`; the path of the results
    file.

    items and outcomes: one each, of one split. `date` is ISO 8601, now by default; colons become
    dashes in file names.
    """
    outcomes = {outcome.item: outcome for outcome in outcomes}
    date = (date or datetime.now().isoformat()).replace(":", "-")
    folder.mkdir(parents=True, exist_ok=True)
    tasks: dict[str, list[Item]] = {}
    for item in items:
        tasks.setdefault(lm_eval_task_name(item), []).append(item)
    results: dict[str, Any] = {
        "results": {},
        "group_subtasks": {},
        "configs": {},
        "versions": {},
        "n-shot": {},
        "higher_is_better": {},
        "n-samples": {},
        "config": {"model": "recycler", "model_args": {"pretrained": model}},
        "model_name": model,
        "model_source": "recycler",
        "date": date,
        "task_hashes": {},
    }
    for task, own in tasks.items():
        told = [outcomes[item.id] for item in own]
        lines = [
            line
            for item, outcome in zip(own, told, strict=True)
            for line in _samples(item, outcome)
        ]
        (folder / f"samples_{task}_{date}.jsonl").write_text(
            "".join(_json(line) + "\n" for line in lines), encoding="utf-8"
        )
        results["results"][task] = {"alias": task} | _figures(own, told)
        results["group_subtasks"][task] = []
        results["configs"][task] = {
            "task": task,
            "output_type": "generate_until" if own[0].kind == "generate" else "multiple_choice",
        }
        results["higher_is_better"][task] = {
            metric.partition(",")[0]: metric.partition(",")[0] not in _LOWER_IS_BETTER
            for metric in item_metrics(own[0])
        }
        results["n-samples"][task] = {"original": len(own), "effective": len(own)}
        results["task_hashes"][task] = _sha(
            "".join(line["doc_hash"] + line["prompt_hash"] + line["target_hash"] for line in lines)
        )
    path = folder / f"results_{date}.json"
    path.write_text(_json(results, indent=2), encoding="utf-8")
    return path


def read_lm_eval_scores(path: Path) -> LmEvalRun:
    """Scores of a results_*.json (or of the newest one in a folder).

    Raises NotFoundError or UnsafeInputError.

    What is no finite number is no score and is left out. A standard error that the run did not
    estimate ("N/A") becomes that of a share, sqrt(v (1 - v) / n), or 0.5 outside [0, 1].
    """
    path = _newest(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        scores = [
            score
            for task, figures in data["results"].items()
            for score in _scores(
                task, figures, int(data.get("n-samples", {}).get(task, {}).get("effective", 0))
            )
        ]
        return LmEvalRun(
            model=str(data.get("model_name") or data.get("config", {}).get("model", "")),
            date=str(data.get("date", "")),
            scores=tuple(scores),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise _broken(path, error) from None


def read_lm_eval_outcomes(path: Path, items: Sequence[Item]) -> tuple[Outcome, ...]:
    """Outcomes of a samples_*.jsonl for those of our items that were asked word for word, in our
    order; others are left out.

    Where several have one prompt, the item's id or its right answer tells which is which. With them
    an old run is compared item by item. Raises NotFoundError or UnsafeInputError.
    """
    if not path.is_file():
        raise NotFoundError(
            Problem(
                thing=str(path),
                cause="no such file",
                remedy="Give a samples_TASK_DATE.jsonl of lm-eval (--log_samples)",
            )
        )
    asked: dict[str, dict[Any, _Sample]] = {}
    try:
        for line in path.read_text(encoding="utf-8").split("\n"):
            if line:
                sample = json.loads(line)
                of_prompt = asked.setdefault(sample["prompt_hash"], {})
                known = of_prompt.setdefault(
                    sample["doc_id"],
                    _Sample(values={}, output=_text(sample), target=sample.get("target_hash")),
                )
                known.values.update(
                    {
                        _key(metric, sample["filter"]): _mean(sample[metric])
                        for metric in sample["metrics"]
                    }
                )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(path, error) from None
    hashes = {item.id: _sha(item.prompt) for item in items}
    alike = Counter(hashes.values())
    found = [
        (item, _sample_of(item, asked.get(hashes[item.id], {}), alone=alike[hashes[item.id]] == 1))
        for item in items
    ]
    return tuple(
        Outcome(item=item.id, values=values, output=sample.output)
        for item, sample in found
        if sample
        and (
            values := tuple(
                (name, value) for name, value in sample.values.items() if math.isfinite(value)
            )
        )
    )


@dataclass(frozen=True, slots=True)
class _Sample:
    values: dict[str, float]
    output: str
    target: str | None


def _sample_of(item: Item, samples: Mapping[Any, _Sample], *, alone: bool) -> _Sample | None:
    """The sample of an item among those with its prompt: by id, as the only one, or by the right
    answer; None where none or several could be.
    """
    if item.id in samples:
        return samples[item.id]
    if alone and len(samples) == 1:
        return next(iter(samples.values()))
    right = [sample for sample in samples.values() if sample.target == _sha(item.gold)]
    return right[0] if right and all(sample.values == right[0].values for sample in right) else None


def _figures(items: Sequence[Item], outcomes: Sequence[Outcome]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for metric in item_metrics(items[0]):
        (score,) = aggregate(
            items,
            outcomes,
            [
                Objective(
                    suite=items[0].suite, task=items[0].task, metric=metric, direction="maximize"
                )
            ],
        )
        name, _, filter_name = metric.partition(",")
        figures |= {
            f"{name},{filter_name or 'none'}": score.value,
            f"{name}_stderr,{filter_name or 'none'}": score.stderr,
        }
    return figures


def _samples(item: Item, outcome: Outcome) -> Iterator[dict[str, Any]]:
    doc = {"id": item.id, "cluster": item.cluster}
    match = detail(item, "match")
    filters = json.loads(match)["filters"] if match else {}
    for filter_name in dict.fromkeys(
        metric.partition(",")[2] or "none" for metric, _ in outcome.values
    ):
        values = {
            metric.partition(",")[0]: value
            for metric, value in outcome.values
            if (metric.partition(",")[2] or "none") == filter_name
        }
        steps = next(
            (steps for metric, steps in filters.items() if metric.endswith(f",{filter_name}")), []
        )
        arguments = {
            "gen_args_0": {
                "arg_0": item.prompt,
                "arg_1": {
                    "until": list(item.stop),
                    "max_gen_toks": item.max_new_tokens,
                    "do_sample": False,
                },
            }
        }
        yield {
            "doc_id": item.id,
            "doc": doc,
            "target": item.gold,
            "arguments": arguments,
            "resps": [[outcome.output]],
            "filtered_resps": [lm_eval_filter(steps, outcome.output)],
            "filter": filter_name,
            "metrics": list(values),
            "doc_hash": _sha(json.dumps(doc, indent=2)),
            "prompt_hash": _sha(item.prompt),
            "target_hash": _sha(item.gold),
            **values,
        }


def _scores(task: str, figures: Mapping[str, Any], n: int) -> Iterator[Score]:
    for key, value in figures.items():
        name, _, filter_name = key.partition(",")
        if not filter_name or name.endswith("_stderr") or not _is_figure(value):
            continue
        stderr = figures.get(f"{name}_stderr,{filter_name}")
        if not _is_figure(stderr):
            stderr = math.sqrt(value * (1 - value) / n) if n and 0 <= value <= 1 else 0.5
        yield Score(
            objective=f"{task}/{_key(name, filter_name)}",
            value=float(value),
            stderr=float(stderr),
            n=n,
        )


def _is_figure(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _newest(path: Path) -> Path:
    found = (
        [path]
        if path.is_file()
        else sorted(path.rglob("results_*.json"), key=lambda entry: entry.name)
    )
    if not found:
        raise NotFoundError(
            Problem(
                thing=str(path),
                cause="holds no results_*.json",
                remedy="Give the output folder of an lm-eval run",
            )
        )
    return found[-1]


def _key(metric: str, filter_name: str) -> str:
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def _mean(value: Any) -> float:
    return sum(map(float, value)) / len(value) if isinstance(value, list) else float(value)


def _text(sample: Mapping[str, Any]) -> str:
    answer = sample["resps"][0]
    return answer[0] if isinstance(answer, list) and answer and isinstance(answer[0], str) else ""


def _json(data: Any, **options: Any) -> str:
    """Text as it is; escaped where half a character stands in it (a lone surrogate), which no file
    in UTF-8 takes.
    """
    text = json.dumps(data, ensure_ascii=False, **options)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(data, **options)
    return text


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _broken(path: Path, error: Exception) -> UnsafeInputError:
    return UnsafeInputError(
        Problem(
            thing=str(path),
            cause=f"is not what lm-eval 0.4.13 writes ({type(error).__name__}: {error})",
            remedy="Check the file",
        )
    )
