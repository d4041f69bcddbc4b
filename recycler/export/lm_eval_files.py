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
    """An old run: its model, date and scores.

    `Score.objective` is TASK/METRIC or TASK/METRIC,FILTER in lm-eval's names.
    """

    model: str
    date: str
    scores: tuple[Score, ...]


def lm_eval_task_name(item: Item) -> str:
    """The name of an item's task for lm-eval, which knows tasks and not suites.

    SUITE when the task is called the same, else SUITE_TASK.
    """
    if item.suite == item.task:
        return item.suite
    return f"{item.suite}_{item.task}"


def write_lm_eval(
    folder: Path, items: Sequence[Item], outcomes: Iterable[Outcome], *, model: str, date: str = ""
) -> Path:
    """Write results_DATE.json and one samples file for each task; the path of the results file.

    items and outcomes: one each, of one split. `date` is ISO 8601, now by default; colons become
    dashes in file names.
    """
    by_item = {outcome.item: outcome for outcome in outcomes}
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
        answered = [by_item[item.id] for item in own]
        lines: list[dict[str, Any]] = []
        for item, outcome in zip(own, answered, strict=True):
            lines += _samples(item, outcome)
        (folder / f"samples_{task}_{date}.jsonl").write_text(
            "".join(_json(line) + "\n" for line in lines), encoding="utf-8"
        )
        _add_task(results, task, own, answered)
        hashes = [line["doc_hash"] + line["prompt_hash"] + line["target_hash"] for line in lines]
        results["task_hashes"][task] = _sha("".join(hashes))
    path = folder / f"results_{date}.json"
    path.write_text(_json(results, indent=2), encoding="utf-8")
    return path


def _add_task(
    results: dict[str, Any], task: str, items: Sequence[Item], outcomes: Sequence[Outcome]
) -> None:
    """Add to `results` what lm-eval says of each task."""
    output_type = "multiple_choice"
    if items[0].kind == "generate":
        output_type = "generate_until"
    metrics = [metric.partition(",")[0] for metric in item_metrics(items[0])]
    results["results"][task] = {"alias": task} | _figures(items, outcomes)
    results["group_subtasks"][task] = []
    results["configs"][task] = {"task": task, "output_type": output_type}
    results["higher_is_better"][task] = {
        metric: metric not in _LOWER_IS_BETTER for metric in metrics
    }
    results["n-samples"][task] = {"original": len(items), "effective": len(items)}


def read_lm_eval_scores(path: Path) -> LmEvalRun:
    """Scores of a results_*.json (or of the newest one in a folder).

    What is no finite number is no score and is left out. A standard error that the run did not
    estimate ("N/A") becomes that of a share, sqrt(v (1 - v) / n), or 0.5 outside [0, 1]. Raises
    NotFoundError or UnsafeInputError.
    """
    path = _newest(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        scores: list[Score] = []
        for task, figures in data["results"].items():
            num_items = int(data.get("n-samples", {}).get(task, {}).get("effective", 0))
            scores += _scores(task, figures, num_items)
        return LmEvalRun(
            model=str(data.get("model_name") or data.get("config", {}).get("model", "")),
            date=str(data.get("date", "")),
            scores=tuple(scores),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise _broken(path, error) from None


def read_lm_eval_outcomes(path: Path, items: Sequence[Item]) -> tuple[Outcome, ...]:
    """Outcomes of a samples_*.jsonl for those of our items that were asked word for word.

    They come in our order; other items are left out. Where several have one prompt, the item's id
    or its right answer tells which is which. With them an old run is compared item by item. Raises
    NotFoundError or UnsafeInputError.
    """
    if not path.is_file():
        raise NotFoundError(
            Problem(
                thing=str(path),
                cause="no such file",
                remedy="Give a samples_TASK_DATE.jsonl of lm-eval (--log_samples)",
            )
        )
    by_prompt = _read_samples(path)
    hashes = {item.id: _sha(item.prompt) for item in items}
    num_alike = Counter(hashes.values())
    found: list[Outcome] = []
    for item in items:
        prompt = hashes[item.id]
        sample = _sample_of(item, by_prompt.get(prompt, {}), only=num_alike[prompt] == 1)
        if sample is None:
            continue
        values = tuple(
            (name, value) for name, value in sample.values.items() if math.isfinite(value)
        )
        if values:
            found.append(Outcome(item=item.id, values=values, output=sample.output))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Sample:
    values: dict[str, float]
    output: str
    target: str | None


def _read_samples(path: Path) -> dict[str, dict[Any, _Sample]]:
    """Samples by the hash of their prompt, then by their id; values of all filters together."""
    by_prompt: dict[str, dict[Any, _Sample]] = {}
    try:
        for line in path.read_text(encoding="utf-8").split("\n"):
            if not line:
                continue
            read = json.loads(line)
            samples = by_prompt.setdefault(read["prompt_hash"], {})
            new = _Sample(values={}, output=_text(read), target=read.get("target_hash"))
            sample = samples.setdefault(read["doc_id"], new)
            for metric in read["metrics"]:
                sample.values[_key(metric, read["filter"])] = _mean(read[metric])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _broken(path, error) from None
    return by_prompt


def _sample_of(item: Item, samples: Mapping[Any, _Sample], *, only: bool) -> _Sample | None:
    """The sample of an item among those with its prompt; None when none or several could be.

    Found by id, else as the one sample when `only` this item has the prompt, else by the right
    answer.
    """
    if item.id in samples:
        return samples[item.id]
    if only and len(samples) == 1:
        return next(iter(samples.values()))
    right = [sample for sample in samples.values() if sample.target == _sha(item.gold)]
    if right and all(sample.values == right[0].values for sample in right):
        return right[0]
    return None


def _figures(items: Sequence[Item], outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Mean and standard error of each metric of one task, by lm-eval's keys."""
    figures: dict[str, float] = {}
    for metric in item_metrics(items[0]):
        objective = Objective(
            suite=items[0].suite, task=items[0].task, metric=metric, direction="maximize"
        )
        (score,) = aggregate(items, outcomes, [objective])
        name, filter_name = _metric_and_filter(metric)
        figures[f"{name},{filter_name}"] = score.value
        figures[f"{name}_stderr,{filter_name}"] = score.stderr
    return figures


def _samples(item: Item, outcome: Outcome) -> Iterator[dict[str, Any]]:
    """Lines of a samples file for one item, one for each filter of its metrics."""
    doc = {"id": item.id, "cluster": item.cluster}
    generation = {
        "until": list(item.stop),
        "max_gen_toks": item.max_new_tokens,
        "do_sample": False,
    }
    values_of: dict[str, dict[str, float]] = {}
    for metric, value in outcome.values:
        name, filter_name = _metric_and_filter(metric)
        values_of.setdefault(filter_name, {})[name] = value
    for filter_name, values in values_of.items():
        yield {
            "doc_id": item.id,
            "doc": doc,
            "target": item.gold,
            "arguments": {"gen_args_0": {"arg_0": item.prompt, "arg_1": generation}},
            "resps": [[outcome.output]],
            "filtered_resps": [lm_eval_filter(_steps(item, filter_name), outcome.output)],
            "filter": filter_name,
            "metrics": list(values),
            "doc_hash": _sha(json.dumps(doc, indent=2)),
            "prompt_hash": _sha(item.prompt),
            "target_hash": _sha(item.gold),
            **values,
        }


def _metric_and_filter(metric: str) -> tuple[str, str]:
    """('exact_match', 'strict-match') of 'exact_match,strict-match'; 'none' without a filter."""
    name, _, filter_name = metric.partition(",")
    return name, filter_name or "none"


def _steps(item: Item, filter_name: str) -> Sequence[dict[str, Any]]:
    """The steps of a filter of the item's task; none where our scorer does not know them."""
    match = detail(item, "match")
    if match:
        for metric, steps in json.loads(match)["filters"].items():
            if metric.endswith(f",{filter_name}"):
                return steps
    return []


def _scores(task: str, figures: Mapping[str, Any], n: int) -> Iterator[Score]:
    for key, value in figures.items():
        name, _, filter_name = key.partition(",")
        if not filter_name or name.endswith("_stderr") or not _is_figure(value):
            continue
        stderr: Any = figures.get(f"{name}_stderr,{filter_name}")
        if not _is_figure(stderr):
            stderr = 0.5
            if n and 0 <= value <= 1:
                stderr = math.sqrt(value * (1 - value) / n)
        yield Score(
            objective=f"{task}/{_key(name, filter_name)}",
            value=float(value),
            stderr=float(stderr),
            n=n,
        )


def _is_figure(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _newest(path: Path) -> Path:
    """The results file itself, or the last of a folder by name. Raises NotFoundError."""
    if path.is_file():
        return path
    found = sorted(path.rglob("results_*.json"), key=lambda entry: entry.name)
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
    if isinstance(value, list):
        return sum(map(float, value)) / len(value)
    return float(value)


def _text(sample: Mapping[str, Any]) -> str:
    answer = sample["resps"][0]
    if isinstance(answer, list) and answer and isinstance(answer[0], str):
        return answer[0]
    return ""


def _json(data: Any, **options: Any) -> str:
    """JSON with its text as it is, or escaped when it holds half a character.

    A lone surrogate is one, which no file in UTF-8 takes.
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
