"""Our items and figures against lm-eval itself, on the same local files: same prompts byte for
byte, same values an item.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install lm-eval==0.4.13)")

from places import ROOT
from recycler.errors import NotFoundError, UnsafeInputError
from recycler.scoring.lmeval.answers import process_text
from recycler.scoring.lmeval.definitions import lm_eval_metrics
from recycler.scoring.lmeval.tasks import LmEvalTask
from recycler.scoring.lmeval.unsafe import runs_code
from recycler.scoring.outcomes import start_texts
from recycler.scoring.scorers import SCORERS
from recycler.scoring.tasks import build_suite
from recycler.types import Completion, Item, Loglikelihood

pytestmark = pytest.mark.long

NUM_DOCS = 24
CASES = {  # lm-eval's task: (our suite, our task, the data's first row there)
    "gsm8k": ("gsm8k", "gsm8k", 0),
    "mgsm_native_cot_es": ("mgsm", "es", 0),
    "mgsm_direct_es": ("mgsm_direct", "es", 0),
    "humaneval": ("humaneval", "humaneval", 0),
    "mbpp": ("mbpp", "mbpp", 10),
    "ifeval": ("ifeval", "ifeval", 0),
    "leaderboard_bbh_boolean_expressions": ("bbh", "boolean_expressions", 0),
    "leaderboard_bbh_disambiguation_qa": ("bbh", "disambiguation_qa", 0),
}


class Letters:
    """A tokenizer of one id a character, with a chat template; enough to build items."""

    bos_token = None

    def encode(self, text, *, add_special_tokens):
        return [ord(letter) for letter in text]

    def apply_chat_template(
        self, conversation, *, tokenize, add_generation_prompt, continue_final_message=False
    ):
        return "".join(f"<{turn['role']}>{turn['content']}\n" for turn in conversation) + (
            "<assistant>" if add_generation_prompt else ""
        )


def _local_tasks():
    spec = importlib.util.spec_from_file_location(
        "local_tasks", ROOT / "benchmarks/lmeval_parity/local_tasks.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _data() -> Path:
    for place in (
        os.environ.get("RECYCLER_DATA", ""),
        ROOT / "shared/datasets",
        ROOT / "../shared/datasets",
    ):
        if place and (Path(place) / "gsm8k/test.jsonl").is_file():
            return Path(place)
    pytest.skip("benchmark data is not here (RECYCLER_DATA)")


def _our_items(tmp_path: Path, name: str) -> list[Item]:
    """The shipped suite cut to one task and its first rows, as search items."""
    suite, task, first = CASES[name]
    spec = yaml.safe_load((ROOT / f"eval_suites/{suite}.yaml").read_text())
    own = spec["tasks"][task]
    own["search"] = {
        "data": own["holdout"].get("data", own.get("data", "")),
        "rows": [first, first + NUM_DOCS],
    }
    own["holdout"] = own["search"] | {"rows": [first + NUM_DOCS, first + NUM_DOCS + 5]}
    path = tmp_path / f"{suite}.yaml"
    path.write_text(yaml.safe_dump({"version": 1, "tasks": {task: own}}))
    return list(build_suite(path, Letters(), data_folders=[_data()]).select("search"))


def _answer(prompt: str) -> str:
    """Some text that depends on the prompt alone: numbers in many dresses, code, or nothing."""
    rng = random.Random(prompt)
    number = rng.choice(["18", "1,234", "$70.00", "-3.5", "540", "3.", "20 %"])
    return rng.choice(
        [
            f" It is 7 and so {number}.\n#### {number}",
            f" La respuesta es {number}.",
            f" {number}",
            "",
            "    return 1\n",
            " no number",
            "* Highlight *\n\nP.S. yes, **bold** MY ANSWER IS YES.",
        ]
    )


def _likelihood(prompt: str, continuation: str) -> float:
    return -random.Random(prompt + continuation).random() * 5


def _capturing_model():
    from lm_eval.api.model import LM

    class Capturing(LM):
        tokenizer_name = "letters"

        def chat_template(self, chat_template=False):
            return "letters"

        def apply_chat_template(self, chat_history, add_generation_prompt=True):
            return Letters().apply_chat_template(
                chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
            )

        def loglikelihood(self, requests, disable_tqdm=False):
            return [(_likelihood(*request.args), False) for request in requests]

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            raise NotImplementedError

        def generate_until(self, requests, disable_tqdm=False):
            return [_answer(request.args[0]) for request in requests]

    return Capturing()


@pytest.fixture(scope="module", autouse=True)
def offline():
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_ALLOW_CODE_EVAL", "1")


@pytest.mark.parametrize("name", CASES)
def test_prompts_and_values_are_those_of_lm_eval(name, tmp_path):
    if name in ("humaneval", "mbpp"):
        if subprocess.run(["which", "bwrap"], capture_output=True).returncode:
            pytest.skip("bubblewrap is not installed")
        if "evaluate" not in sys.modules:
            _local_tasks().code_eval_in_the_sandbox()
    if name == "ifeval":
        _needs_ifeval()
    items = _our_items(tmp_path, name)
    samples = _lm_eval_samples(name, tmp_path)
    assert len(items) == len(samples) == NUM_DOCS
    for item, sample in zip(items, samples, strict=True):
        contexts = [request[0] for request in sample["arguments"]]
        assert set(contexts) == {item.prompt}
        if item.kind == "generate":
            assert list(item.stop) == sample["arguments"][0][1]["until"]
        else:
            assert [_text(ids) for ids in item.continuations] == [
                request[1] for request in sample["arguments"]
            ]
    assert _our_values(items) == [_their_values(name, sample) for sample in samples]


def test_an_answer_has_one_verdict_where_lm_eval_draws_lots():
    """Row 19 asks to count '#', for which lm-eval counts a random letter; row 106 asks for a
    language, which langdetect guesses at random.
    """
    _needs_ifeval()
    rows = [
        json.loads(line)
        for line in (_data() / "ifeval/input_data.jsonl").read_text(encoding="utf-8").split("\n")
        if line
    ]
    for row, text in (
        (rows[19], "#movie " * 20),
        (
            rows[106],
            "Nhiệm vụ của mẹ là nuôi dạy con cái. This sentence is a humorous example of a tongue.",
        ),
    ):
        verdicts = []
        for seed in range(30):
            random.seed(seed)
            verdicts.append(process_text("ifeval", row, text))
            assert random.random() == random.Random(seed).random()
        assert all(verdict == verdicts[0] for verdict in verdicts)


def test_checks_without_their_data_are_refused_by_name():
    """Sentences are counted with nltk's punkt_tab; a machine that lacks it is told so, and no
    traceback of nltk's.
    """
    pytest.importorskip("langdetect", reason="pip install 'lm-eval[ifeval]'")
    code = (
        "import nltk, nltk.data\nnltk.download = lambda *a, **k: False\nfrom recycler.errors "
        "import UsageError\nfrom recycler.scoring.lmeval.answers import PROBE, process_text\n"
        "nltk.data.path[:] = []\n"
        "row = {'key': 1, 'prompt': 'p', 'instruction_id_list': "
        "['length_constraints:number_sentences'], 'kwargs': [{'num_sentences': 2, 'relation': "
        "'at least'}]}\n"
        "try:\n    process_text('ifeval', row, PROBE)\nexcept UsageError as error:\n    "
        "print(error)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "NLTK_DATA": "/nowhere"},
    )
    assert "is checked with nltk's punkt_tab, which is not on this machine" in told.stdout, (
        told.stderr[-2000:]
    )


def _needs_ifeval() -> None:
    pytest.importorskip("langdetect", reason="pip install 'lm-eval[ifeval]'")
    pytest.importorskip("immutabledict", reason="pip install 'lm-eval[ifeval]'")
    try:
        pytest.importorskip("nltk").data.find("tokenizers/punkt_tab")
    except LookupError:
        pytest.skip("nltk's punkt_tab is not here (NLTK_DATA)")


def _lm_eval_samples(name: str, folder: Path) -> list[dict]:
    """One sample a document, with the values of every filter under 'metric,filter'."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    _local_tasks().write_local_tasks(folder, _data(), [name])
    result = simple_evaluate(
        model=_capturing_model(),
        tasks=[name],
        limit=NUM_DOCS,
        bootstrap_iters=0,
        log_samples=True,
        confirm_run_unsafe_code=True,
        apply_chat_template=name == "ifeval",
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )
    merged: dict[int, dict] = {}
    for sample in result["samples"][name]:
        sample = json.loads(json.dumps(sample, default=str))
        own = merged.setdefault(
            sample["doc_id"], {"arguments": _arguments(sample["arguments"]), "values": {}}
        )
        for metric in sample["metrics"]:
            key = (
                metric
                if sample["filter"] == "none" or metric.startswith("pass")
                else f"{metric},{sample['filter']}"
            )
            own["values"][key] = sample[metric]
    return [merged[key] for key in sorted(merged)]


def _arguments(arguments) -> list[list]:
    return [
        list(entry.values()) if isinstance(entry, dict) else list(entry)
        for entry in (arguments.values() if isinstance(arguments, dict) else arguments)
    ]


def _their_values(name: str, sample: dict) -> dict[str, float]:
    plain = {
        key: sum(value) / len(value) if isinstance(value, list) else float(value)
        for key, value in sample["values"].items()
    }
    return {"pass@1": next(iter(plain.values()))} if name in ("humaneval", "mbpp") else plain


def _text(ids: tuple[int, ...]) -> str:
    return "".join(map(chr, ids))


def _our_values(items: list[Item]) -> list[dict[str, float]]:
    if items[0].kind == "generate":
        return start_texts(
            items,
            [Completion(text=_answer(item.prompt), num_tokens=1, finish="stop") for item in items],
        )()
    values = []
    for item in items:
        answers = [
            Loglikelihood(
                logprob=_likelihood(item.prompt, _text(ids)),
                token_logprobs=(0.0,) * len(ids),
                is_greedy=False,
            )
            for ids in item.continuations
        ]
        values.append(
            {
                key: value
                for key, value in SCORERS[item.scorer].score_likelihoods(item, answers).items()
                if key == "acc_norm"
            }
        )
    return values


# ---------------------------------------------------------------- programs stay in the sandbox


@pytest.mark.parametrize(
    "name", ["humaneval", "humaneval_instruct", "mbpp", "mbpp_instruct", "cruxeval_output_cot"]
)
def test_a_task_whose_metric_runs_programs_is_refused_before_anything_of_it_is_imported(
    name, monkeypatch
):
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    imported = set(sys.modules)
    for act in (
        lambda: lm_eval_metrics(name),
        lambda: LmEvalTask(name, [{}], []),
        lambda: process_text(name, {}, "print(1)"),
    ):
        with pytest.raises(UnsafeInputError, match="would run outside the sandbox"):
            act()
    assert "HF_ALLOW_CODE_EVAL" not in os.environ
    assert [
        module
        for module in set(sys.modules) - imported
        if module.startswith("lm_eval.tasks.") and module.endswith("utils")
    ] == []


def test_a_metric_runs_code_by_its_functions_too_wherever_they_hide(tmp_path):
    (tmp_path / "utils.py").write_text(
        "from . import deeper\ndef score(doc, results):\n    return deeper.judge(results)\n"
    )

    def reason(source, config=None):
        (tmp_path / "deeper.py").write_text(source)
        return runs_code(config or {"process_results": str(tmp_path / "utils.score")}, tmp_path)

    assert "exec()" in reason("def judge(r):\n    exec(r[0])\n") and "code_eval" in reason(
        "import evaluate\nc = evaluate.load('code_eval')\n"
    )
    assert "Popen()" in reason(
        "import subprocess\ndef judge(r):\n    subprocess.run(r)\n"
    ) and "system()" in reason("import os\njudge = lambda r: os.system(r[0])\n")
    assert (
        reason(
            "import re, ast\ndef judge(r):\n    return ast.literal_eval(re.compile('a').sub('', "
            "r[0]))\n"
        )
        == ""
    )
    assert runs_code({"metric_list": [{"metric": "code_eval"}]}, tmp_path) and runs_code(
        {"unsafe_code": True}, tmp_path
    )


def test_a_metric_that_is_a_function_goes_by_its_name():
    names = [
        metric
        for task in (
            "drop",
            "minerva_math_algebra",
            "leaderboard_ifeval",
            "squad_completion",
            "noreval_gec",
            "code2text_python",
            "longbench_2wikimqa",
        )
        for metric in _metrics_or_none(task)
    ]
    assert names and not any("/" in name for name in names)


def _metrics_or_none(task: str) -> tuple[str, ...]:
    try:
        return lm_eval_metrics(task)
    except NotFoundError:
        return ()
