"""Documentation that cannot drift: every key, command and shipped file is told of."""

import re

import pytest

from places import ROOT
from recycler.cli import build_parser
from recycler.specs.job import BudgetSpec, EngineSpec, FidelitySpec, JobSpec, PoolSpec, read_job
from recycler.specs.space import SpaceSpec, read_space
from recycler.specs.suite import TaskSpec, read_suite


@pytest.mark.parametrize(
    "page, keys",
    [
        (
            "job.md",
            [
                *JobSpec.model_fields,
                *SpaceSpec.model_fields,
                *(f"pool.{key}" for key in PoolSpec.model_fields),
                *(f"engine.{key}" for key in EngineSpec.model_fields),
                *(f"budget.{key}" for key in BudgetSpec.model_fields),
                *(f"fidelity.{key}" for key in FidelitySpec.model_fields),
            ],
        ),
        ("suites.md", list(TaskSpec.model_fields)),
    ],
)
def test_every_key_is_documented(page, keys):
    text = (ROOT / "docs" / page).read_text()
    assert [key for key in keys if f"`{key}`" not in text] == []


def test_every_sampler_is_documented():
    names = JobSpec.model_fields["sampler"].annotation.__args__
    text = (ROOT / "docs/job.md").read_text() + (ROOT / "docs/design/search.md").read_text()
    assert [name for name in names if f"`{name}`" not in text] == []


def test_every_merge_method_is_documented():
    from recycler.merge.methods.registry import MERGE_METHODS

    text = (ROOT / "docs/methods.md").read_text()
    assert [name for name in MERGE_METHODS if f"`{name}`" not in text] == []


def test_every_command_has_a_summary():
    actions = build_parser()._subparsers._group_actions[0]
    assert len(actions._choices_actions) == len(actions.choices) and all(
        action.help for action in actions._choices_actions
    )


@pytest.mark.parametrize(
    "path", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_spaces_parse(path):
    assert read_space(path)[0].description


@pytest.mark.parametrize(
    "path", sorted((ROOT / "eval_suites").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_suites_parse(path):
    assert read_suite(path)[0].description


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks").rglob("job*.yaml")), ids=lambda path: path.stem
)
def test_shipped_jobs_parse(path):
    assert read_job(path)[0].version == 1


def test_links_between_pages_lead_somewhere():
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert broken == []


@pytest.mark.parametrize("page", ["README.md", "deploy/kubernetes/prerequisites.yaml"])
def test_jobs_on_our_pages_name_suites_and_metrics_that_there_are(page, tmp_path):
    """A stranger copies them as they stand."""
    from textwrap import dedent

    pytest.importorskip("lm_eval", reason="lm-eval names the metrics of its tasks")
    from recycler.scoring.tasks import objective_metrics

    text = (ROOT / page).read_text()
    found = (
        re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
        if page.endswith(".md")
        else [dedent(part) for part in re.findall(r"job\.yaml: \|\n(.*?)\n---", text, re.DOTALL)]
    )
    jobs = [part for part in found if "objectives:" in part]
    assert jobs
    for part in jobs:
        (tmp_path / "job.yaml").write_text(part)
        job = read_job(tmp_path / "job.yaml")[0]
        for objective in job.searched_objectives:
            metrics = objective_metrics(read_suite(ROOT / f"eval_suites/{objective.suite}.yaml")[0])
            assert any(objective.metric in own for own in metrics.values()), (objective, metrics)


def test_paths_on_the_pages_are_there():
    """The log and the parity page tell of the past, and may name what is gone."""
    pages = {*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")}
    pages -= {ROOT / "docs/log.md", ROOT / "docs/parity.md", ROOT / "CONTRIBUTING.md"}
    missing = [
        f"{page.relative_to(ROOT)}: {path}"
        for page in sorted(pages)
        for path in re.findall(r"`((?:[a-z_.]+/)+[a-z_]+\.py)`", page.read_text())
        if not any((folder / path).exists() for folder in (ROOT, ROOT / "recycler"))
    ]
    assert missing == []


def test_dotted_names_on_the_pages_are_there():
    missing = [
        f"{page.relative_to(ROOT)}: {name}"
        for page in sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")})
        for name in re.findall(r"`((?:recycler|benchmarks)(?:\.\w+)+)", page.read_text())
        if not is_there(name)
    ]
    assert missing == []


def is_there(dotted: str) -> bool:
    """True for a module, and for a name that the text of its module holds."""
    path, names = ROOT, dotted.split(".")
    while names and (path / names[0]).is_dir():
        path /= names.pop(0)
    if names and (path / f"{names[0]}.py").exists():
        path /= f"{names.pop(0)}.py"
    text = (path if path.is_file() else path / "__init__.py").read_text()
    return all(re.search(rf"\b{name}\b", text) for name in names)


def test_the_map_of_rooms_has_every_folder():
    page = (ROOT / "docs/architecture.md").read_text()
    rooms = page[page.index("    recycler/\n") :].partition("\n\n")[0]
    folders = {
        path.parent.name
        for path in (ROOT / "recycler").rglob("__init__.py")
        if path.parent != ROOT / "recycler"
    }
    assert [name for name in sorted(folders) if f"{name}/" not in rooms] == []
    modules = {path.stem for path in (ROOT / "recycler").glob("*.py")}
    assert [name for name in sorted(modules) if name[0] != "_" and name not in rooms] == []


def test_the_study_of_the_samplers_page_can_be_made():
    """Names that a page takes for granted come from its text."""
    optuna = pytest.importorskip("optuna")
    from recycler.search import SimplexGPSampler

    page = (ROOT / "docs/design/search.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {"optuna": optuna, "SimplexGPSampler": SimplexGPSampler, "nan": float("nan")}
    exec(block, names)
    assert len(names["study"].directions) == len(names["sampler"].floors) == 2
