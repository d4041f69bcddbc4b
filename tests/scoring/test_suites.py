"""Suites: refused when a score from them would prove nothing, frozen when built, and noticed when
they change.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json

import pytest

from letters import Letters
from places import ROOT
from recycler.errors import NotFoundError, RecyclerError, UnsafeInputError, UsageError
from recycler.scoring.frozen import (
    expected_tokens,
    read_frozen,
    refuse_change,
    suite_difference,
    suite_show,
    write_frozen,
)
from recycler.scoring.rows import fill, read_rows
from recycler.scoring.tasks import build_suite, encode_pair, objective_metrics
from recycler.specs.published_sets import check_search_guard, searches_test_set
from recycler.specs.splits import alike_warnings, check_across_suites, few_problems_warnings
from recycler.specs.suite import EvalSuite, TaskSpec, context_length, read_suite
from recycler.types import Objective

SUITE = """
version: 1
tasks:
  sums:
    data: sums.jsonl
    prompt: "{question}="
    answer: "{answer}"
    max_new_tokens: 4
    stop: ["\\n"]
    search: {rows: [0, 6]}
    holdout: {rows: [6, 10]}
"""


@pytest.fixture
def build(tmp_path):
    """Build a suite from its text, beside ten sums."""
    (tmp_path / "sums.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "question": f"{number}+1",
                    "answer": number + 1,
                    "kind": "even" if number % 2 == 0 else "odd",
                }
            )
            + "\n"
            for number in range(10)
        )
    )

    def build_text(text: str = SUITE, name: str = "sums") -> EvalSuite:
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        return build_suite(path, Letters())

    return build_text


def test_a_suite_is_built_into_frozen_items(build):
    suite = build()
    assert [len(suite.select(role)) for role in ("search", "holdout")] == [6, 4]
    first = suite.items[0]
    assert (
        first.id,
        first.prompt,
        first.gold,
        first.cluster,
        first.max_new_tokens,
        first.stop,
    ) == ("sums/sums/0", "0+1=", "1", "sums/sums/0", 4, ("\n",))
    assert first.prompt_ids == tuple(map(ord, "^0+1="))
    assert build().digest == suite.digest


def test_an_item_is_the_same_in_every_subset(build):
    whole = {item.id: item for item in build().items}
    assert all(
        whole[item.id] == item
        for item in build(SUITE.replace("rows: [0, 6]", "rows: [0, 6], limit: 3")).items
    )
    assert (
        len(
            build(SUITE.replace("rows: [0, 6]", "where: {kind: odd}, rows: [0, 6]")).select(
                "search"
            )
        )
        == 3
    )


def test_the_digest_sees_wording_data_and_roles(build, tmp_path):
    digests = {
        build(text).digest
        for text in (
            SUITE,
            SUITE.replace("}=", "} ="),
            SUITE.replace("[0, 6]", "[0, 5]"),
            SUITE.replace("tokens: 4", "tokens: 5"),
        )
    }
    path = tmp_path / "sums.jsonl"
    path.write_text(path.read_text().replace('"answer": 3', '"answer": 4'))
    assert len(digests | {build().digest}) == 5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("rows: [6, 10]", "rows: [5, 10]"), "1 problems are in search and in holdout"),
        (("rows: [6, 10]", "rows: [20, 30]"), "its holdout split is empty"),
        (("    holdout: {rows: [6, 10]}\n", ""), "'tasks.sums.holdout': missing"),
        (("sums.jsonl", "sumz.jsonl"), "not found in"),
        (("{answer}", "{anser}"), "Did you mean 'answer'?"),
        (("    stop:", "    scorer: exakt_match\n    stop:"), "Did you mean 'exact_match'?"),
        (("    stop:", "    stopp:"), "Did you mean 'stop'?"),
        (("    stop:", "    answer_pattern: '#(.*)'\n    stop:"), "answer_pattern finds nothing"),
        (
            ("    stop:", "    cluster: '{kind}'\n    stop:"),
            "2 problems are in search and in holdout",
        ),
        (("    stop:", "    lm_eval: gsm8k\n    stop:"), "leave them out"),
        (("    stop:", "    system: be kind\n    stop:"), "needs chat: true"),
        (("{question}=", "{question|upper}="), "Use |strip or |number"),
    ],
)
def test_broken_suites_are_refused_with_their_line(build, change, told):
    with pytest.raises(RecyclerError) as error:
        build(SUITE.replace(*change))
    assert told in str(error.value) and "sums.yaml:" in str(error.value)


def test_prompts_that_stand_in_both_splits_are_refused_or_dropped_from_search(build, tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_text(path.read_text().replace("7+1", "2+1"))
    with pytest.raises(UsageError, match="disjoint"):
        build()
    suite = build(SUITE.replace("    stop:", "    repeated: drop\n    stop:"))
    assert [len(suite.select(role)) for role in ("search", "holdout")] == [5, 4]


def test_chat_few_shot_and_bits_per_byte(build):
    chat = build(SUITE.replace("    stop:", "    chat: true\n    system: Count.\n    stop:")).items[
        0
    ]
    assert chat.prompt == "^<system>Count.<user>0+1=<assistant>" and chat.prompt_ids == tuple(
        map(ord, chat.prompt)
    )
    shots = build(
        SUITE.replace(
            "    stop:", "    fewshot: {rows: [8, 10], answer: '{answer}', between: ';'}\n    stop:"
        )
    ).items[0]
    assert shots.prompt == "8+1=9;9+1=10;0+1="
    bits = build(SUITE.replace("    stop:", "    scorer: bits_per_byte\n    stop:")).items[0]
    assert (bits.kind, bits.continuations, bits.num_bytes) == ("loglikelihood", ((ord("1"),),), 1)


def test_spaces_at_the_end_of_a_context_belong_to_what_follows():
    assert encode_pair(Letters(), "a \n", "b") == (
        list(map(ord, "^a")),
        list(map(ord, " \nb")),
        " \nb",
    )


class Melting(Letters):
    """Gives 'ab' one token, as merges of a real vocabulary do."""

    def encode(self, text, *, add_special_tokens):
        return super().encode(text.replace("=1", "@"), add_special_tokens=add_special_tokens)


def test_a_continuation_that_melts_into_the_prompt_keeps_tokens_of_its_own(build, tmp_path):
    """An empty continuation has probability one: it would win every choice."""
    assert encode_pair(Melting(), "0+1=", "1") == (list(map(ord, "^0+1=")), [ord("1")], "1")
    build(SUITE.replace("    stop:", "    scorer: bits_per_byte\n    stop:"))
    suite = build_suite(tmp_path / "sums.yaml", Melting())
    assert suite.items[0].continuations == ((ord("1"),),)


def test_an_answer_without_tokens_is_refused(build, tmp_path):
    class Deaf(Letters):
        def encode(self, text, *, add_special_tokens):
            return super().encode(text.replace("1", ""), add_special_tokens=add_special_tokens)

    build(SUITE.replace("    stop:", "    scorer: bits_per_byte\n    stop:"))
    with pytest.raises(
        UsageError,
        match="task 'sums', sums.jsonl, row 0: has a prompt or an answer that the tokenizer gives "
        "no token for",
    ):
        build_suite(tmp_path / "sums.yaml", Deaf())


def test_chat_without_a_chat_template_is_refused(build, tmp_path):
    class Plain(Letters):
        chat_template = None

        def apply_chat_template(self, *arguments, **options):
            raise ValueError(
                "Cannot use chat template functions because tokenizer.chat_template is not set"
            )

    build(SUITE.replace("    stop:", "    chat: true\n    stop:"))
    with pytest.raises(
        UsageError,
        match="sums.yaml:4: task 'sums', chat: true: the model has no chat template. Leave chat:",
    ):
        build_suite(tmp_path / "sums.yaml", Plain())


def test_the_context_is_what_items_need_and_never_more_than_the_model_has(build):
    items = (
        build(SUITE.replace("    stop:", "    scorer: bits_per_byte\n    stop:"), name="bits").items
        + build().items
    )  # 5 + 1 + 1, and 5 + 4 tokens
    assert (
        context_length(items, positions=None) == 16
        and context_length(items, positions=9) == 9
        and context_length(items, positions=512, wanted=40) == 40
    )
    for limits, told in (
        ({"positions": 8}, "context of 8 tokens"),
        (
            {"positions": 512, "wanted": 8},
            "engine.max_model_len: 8: 10 of 20 items need more, such as sums/sums/0 .9.",
        ),
    ):
        with pytest.raises(UsageError, match=told):
            context_length(items, **limits)


def test_templates():
    row = {"text": " a ", "list": [1, 2], "n": "2,125", "_row": 3}
    assert fill("{{{text|strip}}} {list[1]} {n|number} {_row}", row, "") == "{a} 2 2125 3"


def test_rows_of_every_kind_of_file(tmp_path):
    import gzip

    import pandas

    rows = [{"q": "a\u2028b", "a": "1"}, {"q": "c", "a": "2"}]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "x.jsonl").write_text(lines)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "x.json").write_text(json.dumps({"examples": rows}))
    pandas.DataFrame(rows).to_parquet(tmp_path / "x.parquet")
    for name in ("x.jsonl", "x.jsonl.gz", "x.json", "x.parquet"):
        assert read_rows(tmp_path / name) == rows, name
    (tmp_path / "x.tsv").write_text('say "hi"\t1\n')
    assert read_rows(tmp_path / "x.tsv", ["q", "a"]) == [{"q": 'say "hi"', "a": "1"}]
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(UnsafeInputError, match="cannot be read"):
        read_rows(tmp_path / "bad.jsonl")
    (tmp_path / "x.yaml").touch()
    with pytest.raises(UsageError, match="unknown kind"):
        read_rows(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.tsv", b"q\ta\nx\t1\ny\n", r"line 3 has 1 fields, and there are 2 columns"),
        ("x.tsv", b"q\ta\nx\rz\t1\n", "line 2 has a carriage return"),
        ("x.tsv", b"q\tq\nx\t1\n", "two columns have one name"),
        ("x.tsv", b"q\ta\n", "holds no rows"),
        ("x.jsonl", b'{"q": 1}\n{"q"\n', "line 2: "),
        ("x.jsonl", b'{"q": 1}\n[2]\n', r"row 1 is no object with fields, but '\[2\]'"),
        ("x.jsonl", b'{"q": "\\ud800"}\n', "row 0 has half a character"),
        ("x.jsonl", b'{"q": "\xff"}\n', "cannot be read as jsonl"),
        ("x.jsonl", b"\n", "holds no rows"),
        ("x.jsonl.gz", b"\x1f\x8b\x08\x00", "cannot be read as jsonl"),
        ("x.json", b"5", "neither a list of rows nor"),
        ("x.json", b'{"examples": {"q": 1}}', "neither a list of rows nor"),
        ("x.json", b'["a"]', "row 0 is no object"),
        ("x.json", b"[" * 100_000, "cannot be read as json"),
        ("x.parquet", b"nope", "cannot be read as parquet"),
    ],
)
def test_broken_data_is_refused_with_file_and_row(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecyclerError, match=f"{name}: .*{told}"):
        read_rows(tmp_path / name)


def test_columns_are_those_of_a_file_without_header(tmp_path):
    path = tmp_path / "x.tsv"
    path.write_bytes(b"x\t1\r\ny\t2\r\n")
    assert read_rows(path, ["q", "a"]) == [{"q": "x", "a": "1"}, {"q": "y", "a": "2"}]
    for columns in (["q"], ["q", "a", "b"]):
        with pytest.raises(
            UnsafeInputError,
            match=f"x.tsv: .*line 1 has 2 fields, and there are {len(columns)} columns",
        ):
            read_rows(path, columns)
    path.write_bytes(b"q\ta\nx\t1\n")
    with pytest.raises(UnsafeInputError, match="line 1 is a header"):
        read_rows(path, ["q", "a"])
    path.write_bytes(b"\xef\xbb\xbfq\ta\n" + b"x" * 200_000 + b"\t1\n")
    assert read_rows(path) == [{"q": "x" * 200_000, "a": "1"}]


def test_parquet_keeps_whole_numbers_lists_and_gaps(tmp_path):
    import pandas

    pandas.DataFrame(
        {"q": ["a", None], "n": [1, None], "l": [["x"], ["y", "z"]], "f": [1.0, 2.0]}
    ).to_parquet(tmp_path / "x.parquet")
    assert read_rows(tmp_path / "x.parquet") == [
        {"q": "a", "n": 1, "l": ["x"], "f": 1.0},
        {"q": None, "n": None, "l": ["y", "z"], "f": 2.0},
    ]


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{none}", "field 'none': has no value .null."),
        ("{nan}", r"has no value .NaN."),
        ("{list[1]}", "has no value"),
        ("{list[3]}", "has 2 entries and none of number 3"),
        ("{list[x]}", "is no entry of a list"),
        ("{n[0]}", "is no list to take entry 0 of"),
        ("{text[0]}", "is no list"),
    ],
)
def test_templates_never_ask_for_nothing(template, told):
    row = {
        "none": None,
        "nan": float("nan"),
        "list": ["a", None],
        "n": 3,
        "text": "abc",
        "_file": "d.jsonl",
        "_row": 7,
    }
    with pytest.raises(UsageError, match=told) as error:
        fill(template, row, "s.yaml:3")
    assert "s.yaml:3" in str(error.value) and (
        "d.jsonl, row 7" in str(error.value) or "x" in template
    )


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("(", "no regular expression"),
        (".+", "needs a group"),
        ("(x)?", "sums.jsonl, row 0: answer_pattern finds nothing"),
    ],
)
def test_an_answer_pattern_has_a_group_that_finds_something(build, pattern, told):
    with pytest.raises(UsageError, match=told):
        build(SUITE.replace("    stop:", f"    answer_pattern: '{pattern}'\n    stop:"))


def test_a_task_without_a_single_item_is_refused(build):
    with pytest.raises(UsageError, match="search split is empty(.|\n)*holdout split is empty"):
        build(
            SUITE.replace("rows: [0, 6]", "rows: [20, 30]").replace(
                "rows: [6, 10]", "rows: [30, 40]"
            )
        )


def test_searching_on_a_test_set_must_be_allowed(build):
    flagged = build(SUITE.replace("rows: [0, 6]", "rows: [0, 6], benchmark_test: true"))
    assert flagged.test_tasks == ("sums",) and build().test_tasks == ()
    check_search_guard([flagged], allow=True)
    check_search_guard(
        [flagged],
        allow=False,
        objectives=[Objective(suite="other", metric="x", direction="maximize")],
    )
    with pytest.raises(UsageError, match="published test set"):
        check_search_guard([flagged], allow=False)
    with pytest.raises(UsageError, match="sums:sums"):
        check_search_guard(
            [flagged],
            allow=False,
            objectives=[
                Objective(suite="sums", task="sums", metric="exact_match", direction="maximize")
            ],
        )


@pytest.mark.parametrize(
    ("data", "published"),
    [
        *(
            (name, True)
            for name in (
                "gsm8k/test.jsonl",
                "gsm8k/test.parquet",
                "gsm8k/test.json.gz",
                "gsm8k/main/test-00000-of-00001.parquet",
                "gsm8k/socratic/test.jsonl",
                "grade-school-math/test.jsonl",
                "GSM8K/Test.JSONL",
                "gsm8k_test.jsonl",
                "humaneval/HumanEval.jsonl",
                "humaneval/HumanEval.jsonl.gz",
                "humaneval/test.parquet",
                "openai_humaneval/test.jsonl",
                "mbpp/test.jsonl",
                "mbpp/full/test.parquet",
                "mgsm/es/test.jsonl",
                "MGSM/mgsm_es.tsv",
                "mgsm_es.tsv",
                "ifeval/train.jsonl",
                "ifeval/input_data.jsonl.gz",
                "bbh/navigate.json",
                "hub:openai/gsm8k:main:test",
                "hub:openai/gsm8k:main:test[:50%]",
                "hub:openai/gsm8k:main:test+train",
                "hub:openai/openai_humaneval:openai_humaneval:test",
                "hub:juletxara/mgsm:es:test",
                "hub:google-research-datasets/mbpp:full:test",
                "hub:google/IFEval::train",
            )
        ),
        *(
            (name, False)
            for name in (
                "gsm8k/train.jsonl",
                "gsm8k/main/train-00000-of-00001.parquet",
                "hub:openai/gsm8k:main:train",
                "hub:google-research-datasets/mbpp:full:validation",
                "mgsm/es/train.jsonl",
                "test.jsonl",
                "mine/test.jsonl",
                "gsm8k-own/test.jsonl",
                "my_humaneval_like/problems.jsonl",
                "test/gsm8k/train.jsonl",
                "hub:me/sums:main:test",
            )
        ),
    ],
)
def test_published_test_sets_are_known_by_name_and_split_whatever_the_file_is(data, published):
    def searches(rows, **more):
        return searches_test_set(
            TaskSpec.model_validate(
                {
                    "data": data,
                    "prompt": "{q}",
                    "answer": "{a}",
                    "search": {"rows": rows},
                    "holdout": {"rows": [500, 600]},
                }
                | more
            )
        )

    assert searches([20, 100]) == published
    lm_eval = {"lm_eval": "sums", "prompt": "", "answer": ""}
    assert searches([20, 100], **lm_eval) == (published or data == "hub:me/sums:main:test")


def test_of_mbpp_in_one_file_the_test_rows_are_guarded():
    def searches(data, rows):
        return searches_test_set(
            TaskSpec.model_validate(
                {
                    "data": data,
                    "prompt": "{q}",
                    "answer": "{a}",
                    "search": {"rows": rows},
                    "holdout": {},
                }
            )
        )

    for data in ("mbpp/mbpp.jsonl", "mbpp/mbpp.jsonl.gz", "mbpp/mbpp.parquet"):
        assert [
            searches(data, rows) for rows in ([0, 10], [0, 11], [509, 600], [510, 974], None)
        ] == [False, True, True, False, True]


def test_a_problem_has_one_role_across_suites(build):
    first = build(SUITE.replace("    stop:", "    cluster: 'sum-{_row}'\n    stop:"))
    second = build(
        SUITE.replace("    stop:", "    cluster: 'sum-{_row}'\n    stop:")
        .replace("[6, 10]", "[0, 4]")
        .replace("[0, 6]", "[4, 10]"),
        name="others",
    )
    check_across_suites([first, first])
    with pytest.raises(UsageError, match="8 problems"):
        check_across_suites([first, second])


def test_one_problem_in_two_tasks_without_a_cluster_is_warned_of(build, tmp_path):
    """GSM8K's test rows in a suite of one's own, beside MGSM's: other wording, few-shot and ids,
    the same question.
    """
    questions = [
        f"Anna has {number} apples and eats {number // 2}. How many apples are left in the end?"
        for number in range(10, 20)
    ]
    (tmp_path / "sums.jsonl").write_text(
        "".join(json.dumps({"question": text, "answer": 1}) + "\n" for text in questions)
    )
    first = build(SUITE.replace('"{question}="', r'"Question: {question}\nAnswer:"'))
    swapped = SUITE.replace("[6, 10]", "[0, 4]").replace("[0, 6]", "[4, 10]")
    second = build(
        swapped.replace(
            '"{question}="',
            r'"Be brief and think of every step before you answer.\n\nQ: {question}\nStep by '
            r'step:"',
        ),
        name="others",
    )
    assert alike_warnings([first]) == alike_warnings([second]) == []
    check_across_suites([first, second])
    (told,) = alike_warnings([first, second])
    assert (
        told.startswith("8 problems seem to be searched on and held out, such as ")
        and "'sums/sums/" in told
        and "'others/sums/" in told
    )
    tied = [
        build(text.replace("    stop:", "    cluster: 'apples-{_row}'\n    stop:"), name=name)
        for text, name in ((SUITE, "sums"), (SUITE, "others"))
    ]
    assert alike_warnings(tied) == []


def test_few_independent_problems_are_warned_of(build, tmp_path):
    """Six rows are six problems; tied in two kinds they are two.

    Intervals hold the truth as Student's t says, and twenty are enough.
    """
    clustered = SUITE.replace("    stop:", "    cluster: '{kind}'\n    stop:").replace(
        "rows: [6, 10]", "rows: [6, 10], cluster: 'late-{kind}'"
    )
    (alone,), (tied,) = (few_problems_warnings([build(text)]) for text in (SUITE, clustered))
    assert (
        alone == "sums:sums (6 search and 4 holdout problems): over fewer than 20 independent "
        "problems intervals of 1.96 stated errors hold the truth 86 to 89 % of the time at "
        "best, not 95 %. Take more rows"
    )
    assert (
        tied.startswith(
            "sums:sums (6 search items of 2 and 4 holdout items of 2 problems): over fewer"
        )
        and "truth 70 % of" in tied
    )
    (both,) = few_problems_warnings(
        [build(SUITE), build(clustered, name="kinds"), build(SUITE, name="again")]
    )
    assert both.startswith(
        "again:sums, sums:sums (6 search and 4 holdout problems); kinds:sums (6 search items of "
        "2 and 4 holdout items of 2 problems): over"
    ), "one line for all"
    rows = [json.dumps({"question": f"{number}+1", "answer": number + 1}) for number in range(45)]
    (tmp_path / "sums.jsonl").write_text("\n".join(rows))
    assert (
        few_problems_warnings(
            [build(SUITE.replace("[0, 6]", "[0, 20]").replace("[6, 10]", "[20, 45]"))]
        )
        == []
    )


def test_a_problem_that_differs_in_spaces_alone_is_warned_of(build, tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_text(path.read_text().replace('"7+1"', '"2 + 1"'))
    assert alike_warnings([build()]) == [
        "1 problems seem to be searched on and held out, such as 'sums/sums/2' and "
        "'sums/sums/7', which ask the same. Give both the same cluster:, or choose other rows: "
        "for one"
    ]


def test_frozen_suites_come_back_and_damage_is_seen(build, tmp_path):
    suite, path = (
        build(SUITE.replace("    stop:", "    scorer: bits_per_byte\n    stop:")),
        tmp_path / "suite.jsonl",
    )
    write_frozen(suite, path)
    assert read_frozen(path) == suite
    lines = path.read_text().splitlines(keepends=True)
    for broken in (
        "".join(lines[:-1]),
        "".join(lines).replace('"gold":"3"', '"gold":"4"'),
        "{}\n",
        "",
        "".join(lines)[:-9],
        '{"kind":"recycler-suite","schema_version":1}\n',
    ):
        path.write_text(broken)
        with pytest.raises(UnsafeInputError, match="recycler suite build"):
            read_frozen(path)
    with pytest.raises(NotFoundError):
        read_frozen(tmp_path / "none.jsonl")
    assert list(tmp_path.glob(".*.tmp")) == []


def test_a_changed_suite_is_told_item_by_item(build):
    old = build()
    assert suite_difference(old, build()) == []
    (line,) = suite_difference(old, EvalSuite(name="sums", items=tuple(reversed(old.items))))
    assert "another order" in line
    changed = dataclasses.replace(old.items[0], gold="2")
    told = suite_difference(old, EvalSuite(name="sums", items=(changed, *old.items[2:])))
    assert told == [
        "1 items are gone, such as 'sums/sums/1'",
        "item 'sums/sums/0' has other gold ('1', now '2')",
    ]
    with pytest.raises(UsageError, match="not the one the job began with: 10 items are gone"):
        refuse_change(old, EvalSuite(name="sums", items=()))


def test_show_says_what_can_be_told_apart(build):
    shown = suite_show(build())
    json.dumps(shown)
    assert (
        shown["tasks"]["sums"]["search"]["items"] == 6
        and 0.2 < shown["tasks"]["sums"]["search"]["smallest_visible_difference"] < 0.45
    )
    assert expected_tokens(build().items[0]) == len("^0+1=") + 4


@pytest.mark.parametrize(
    "path", sorted((ROOT / "eval_suites").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_suites_are_well_formed(path):
    spec, _ = read_suite(path)
    assert spec.description
    if (
        any(task.lm_eval for task in spec.tasks.values())
        and importlib.util.find_spec("lm_eval") is None
    ):
        pytest.skip("lm-eval is not installed")
    assert all(objective_metrics(spec).values())


def test_the_shipped_sums_are_those_of_their_generator():
    folder = ROOT / "eval_suites/data"
    spec = importlib.util.spec_from_file_location("make_arithmetic", folder / "make_arithmetic.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert [
        json.loads(line) for line in (folder / "arithmetic.jsonl").read_text().splitlines()
    ] == module.rows()
    questions = [row["question"] for row in module.rows()]
    assert len(set(questions)) == len(questions) == 600
    assert all(
        eval(row["question"].split("is ")[1].split("?")[0]) == int(row["answer"])
        for row in module.rows()
    )
