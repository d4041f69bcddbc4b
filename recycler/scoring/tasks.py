"""Build a suite into frozen items: wording and token ids fixed once, the same in every trial."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from jinja2 import TemplateError

from recycler.errors import Problem, UnsafeInputError, UsageError, did_you_mean
from recycler.io.strict_yaml import YamlDocument
from recycler.scoring.lmeval.definitions import lm_eval_metrics
from recycler.scoring.lmeval.tasks import LmEvalTask, Question
from recycler.scoring.rows import FILE, Row, data_folders_of, fill, load_rows, select_rows
from recycler.scoring.scorers import SCORERS
from recycler.specs.published_sets import searches_test_set
from recycler.specs.splits import check_splits
from recycler.specs.suite import EvalSuite, SplitSpec, SuiteSpec, TaskSpec, read_suite
from recycler.types import Item, Role

DEFAULT_NEW_TOKENS = 64
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)


class Tokenizer(Protocol):
    """A tokenizer as far as suites need it: text to ids, and the chat template."""

    bos_token: str | None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...
    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        *,
        tokenize: bool,
        add_generation_prompt: bool,
        continue_final_message: bool = False,
    ) -> str: ...


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder, from local files only.

    Raises UsageError when there is none, UnsafeInputError when it is broken.
    """
    from transformers import AutoTokenizer  # heavy

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        return tokenizer
    except Exception as error:  # the Rust library raises bare Exceptions for a broken file
        if not any((folder / name).exists() for name in TOKENIZER_FILES):
            raise UsageError(
                Problem(
                    thing=str(folder),
                    cause="has no tokenizer",
                    remedy="Save the tokenizer beside the weights (tokenizer.save_pretrained)",
                )
            ) from None
        said = " ".join(str(error).split())[:200]
        raise UnsafeInputError(
            Problem(
                thing=str(folder),
                cause=f"has a tokenizer that cannot be loaded ({type(error).__name__}: {said})",
                remedy="Save or copy the tokenizer again",
            )
        ) from None


def build_suite(
    path: Path, tokenizer: Tokenizer, *, data_folders: Sequence[Path] = ()
) -> EvalSuite:
    """The suite file at `path` as frozen items.

    Raises UsageError or NotFoundError with file:line.
    """
    spec, document = read_suite(path)
    folders = data_folders_of(data_folders, path.parent)
    items: list[Item] = []
    for name, task in spec.tasks.items():
        items += _TaskBuilder(path.stem, name, task, document, tokenizer, folders).items()
    check_splits(path.stem, tuple(items), spec.tasks, document)
    return EvalSuite(
        name=path.stem,
        items=tuple(items),
        test_tasks=tuple(name for name, task in spec.tasks.items() if searches_test_set(task)),
    )


def objective_metrics(spec: SuiteSpec) -> dict[str, tuple[str, ...]]:
    """Metrics of each task of a suite, by task name; none for an unknown scorer."""
    metrics: dict[str, tuple[str, ...]] = {}
    for name, task in spec.tasks.items():
        metrics[name] = ()
        if task.lm_eval:
            metrics[name] = lm_eval_metrics(task.lm_eval)
        elif task.scorer in SCORERS:
            metrics[name] = SCORERS[task.scorer].metrics
    return metrics


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids with the tokenizer's own special tokens.

    Without them when the text begins with the beginning-of-text token already (lm-eval's rule).
    """
    bos = getattr(tokenizer, "bos_token", None)
    return tokenizer.encode(text, add_special_tokens=not (bos and text.startswith(bos)))


def encode_pair(
    tokenizer: Tokenizer, context: str, continuation: str
) -> tuple[list[int], list[int], str]:
    """Ids of a context and of its continuation, cut from the ids of both together.

    Returns (context ids, continuation ids, the text that is scored). Spaces at the end of the
    context count as the continuation's, since tokens hold a space before a word, not behind it:
    lm_eval/api/model.py `_encode_pair`. Where context and continuation melt into as many tokens as
    the context has alone, nothing would be left to score (lm-eval fails there): then the two are
    encoded apart.
    """
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    ids = encode(tokenizer, kept)
    rest = encode(tokenizer, kept + continuation)[len(ids) :]
    return ids, rest or tokenizer.encode(continuation, add_special_tokens=False), continuation


class _TaskBuilder:
    """One task of a suite into items: rows, then questions, then token ids."""

    def __init__(
        self,
        suite: str,
        name: str,
        task: TaskSpec,
        document: YamlDocument,
        tokenizer: Tokenizer,
        folders: Sequence[Path],
    ):
        self._suite, self._name, self._task = suite, name, task
        self._tokenizer, self._folders = tokenizer, folders
        self._where = document.where(("tasks", name))
        if task.lm_eval is None and task.scorer not in SCORERS:
            raise UsageError(
                Problem(
                    thing=f"scorer {task.scorer!r}",
                    cause="unknown",
                    remedy=did_you_mean(task.scorer, SCORERS),
                    where=document.where(("tasks", name, "scorer")),
                )
            )

    def items(self) -> list[Item]:
        """Items of both splits; prompts of the holdout are not searched unless the task says so."""
        items = [
            *self._items_of("search", self._task.search),
            *self._items_of("holdout", self._task.holdout),
        ]
        if self._task.repeated == "refuse":
            return items
        held_out = {item.prompt for item in items if item.role == "holdout"}
        return [item for item in items if item.role == "holdout" or item.prompt not in held_out]

    def _items_of(self, role: Role, split: SplitSpec) -> list[Item]:
        source = split.data or self._task.data
        rows = self._read(source)
        chosen = select_rows(rows, split)
        if self._task.lm_eval:
            questions = self._lm_eval_questions(self._task.lm_eval, rows, chosen, source)
        else:
            questions = self._own_questions(chosen)
        return [
            self._item(role, index, row, question)
            for (index, row), question in zip(chosen, questions, strict=True)
        ]

    def _read(self, name: str) -> list[Row]:
        rows = load_rows(name, self._folders, self._where, self._task.columns)
        return [{**row, "_row": index, FILE: name} for index, row in enumerate(rows)]

    # ---------------------------------------------------------------- questions

    def _own_questions(self, chosen: Sequence[tuple[int, Row]]) -> Iterator[Question]:
        task, where = self._task, self._where
        shots = self._shots()
        for _, row in chosen:
            gold = fill(task.answer, row, where)
            if task.answer_pattern:
                found = re.search(task.answer_pattern, gold)
                if not found or found.group(1) is None:
                    raise self._refusal(
                        row, f"answer_pattern finds nothing in {gold[-60:]!r}", "Mend the pattern"
                    )
                gold = found.group(1).strip()
            prompt = shots + fill(task.prompt, row, where)
            if task.chat:
                turns = [{"role": "user", "content": prompt}]
                if task.system:
                    turns.insert(0, {"role": "system", "content": task.system})
                prompt = self._chat(turns, tokenize=False, add_generation_prompt=True)
            if not prompt or not gold:
                raise self._refusal(
                    row, "has an empty prompt or answer", "Mend the data or the template"
                )
            yield Question(
                prompt=prompt,
                gold=gold,
                scorer=task.scorer,
                max_new_tokens=task.max_new_tokens or DEFAULT_NEW_TOKENS,
                detail=tuple(
                    (key, fill(template, row, where)) for key, template in task.detail.items()
                ),
            )

    def _shots(self) -> str:
        spec = self._task.fewshot
        if spec is None:
            return ""
        rows = self._read(spec.data or self._task.data)[slice(*spec.rows or (0, None))]
        shots = ""
        for row in rows:
            prompt = fill(self._task.prompt, row, self._where)
            shots += prompt + fill(spec.answer, row, self._where) + spec.between
        return shots

    def _lm_eval_questions(
        self, name: str, rows: Sequence[Row], chosen: Sequence[tuple[int, Row]], source: str
    ) -> Iterator[Question]:
        task = self._task
        asked = {index for index, _ in chosen}
        shots: list[dict[str, Any]] = []
        if task.fewshot:
            origin = task.fewshot.data or task.data
            pool = self._read(origin)[slice(*task.fewshot.rows or (0, None))]
            if origin == source:
                pool = [row for row in pool if row["_row"] not in asked]
            shots = [self._lm_eval_fields(row) for row in pool]
        docs: list[dict[str, Any]] = []
        if chosen:
            last, _ = chosen[-1]
            docs = [self._lm_eval_fields(row) for row in rows[: last + 1]]
        lm_eval_task = LmEvalTask(
            name, docs, shots, num_fewshot=task.num_fewshot, where=self._where
        )
        return lm_eval_task.questions(
            [index for index, _ in chosen],
            chat=self._chat if task.chat else None,
            system=task.system,
            max_new_tokens=task.max_new_tokens,
        )

    def _lm_eval_fields(self, row: Row) -> dict[str, Any]:
        """A row as lm-eval is to see it, with the fields that the suite adds."""
        found = {key: value for key, value in row.items() if key not in ("_row", FILE)}
        for key, template in self._task.fields.items():
            found[key] = None
            if template is not None:
                found[key] = fill(template, row, self._where)
        return found

    def _chat(self, turns: list[dict[str, str]], **options: bool) -> str:
        """Turns in the model's chat template.

        Raises UsageError when it has none, or one that does not take such turns.
        """
        try:
            return self._tokenizer.apply_chat_template(turns, **options)
        except (ValueError, TemplateError) as error:
            cause = f"the model's chat template refuses it ({error})"
            if not getattr(self._tokenizer, "chat_template", None):
                cause = "the model has no chat template"
            raise UsageError(
                Problem(
                    thing=f"task {self._name!r}, chat: true",
                    cause=cause,
                    remedy="Leave chat: and system: out, or use a pool of chat models",
                    where=self._where,
                )
            ) from None

    # ---------------------------------------------------------------- items

    def _item(self, role: Role, index: int, row: Row, question: Question) -> Item:
        task, scorer = self._task, SCORERS[question.scorer]
        own = row.get("id", index)
        identity = f"{self._suite}/{self._name}/{own}"
        cluster = task.search.cluster or task.cluster
        if role == "holdout":
            cluster = task.holdout.cluster or task.cluster
        if role == "holdout" and task.holdout.data:
            identity = f"{self._suite}/{self._name}/holdout-{own}"
        ids, continuations, num_bytes = self._token_ids(question)
        if not ids or not all(continuations):
            raise self._refusal(
                row,
                "has a prompt or an answer that the tokenizer gives no token for",
                "Word it so that both have tokens of their own",
            )
        return Item(
            id=identity,
            suite=self._suite,
            task=self._name,
            role=role,
            kind=scorer.kind,
            scorer=question.scorer,
            prompt=question.prompt,
            prompt_ids=ids,
            gold=question.gold,
            continuations=continuations,
            num_bytes=num_bytes,
            cluster=fill(cluster, row, self._where) if cluster else identity,
            max_new_tokens=question.max_new_tokens if scorer.kind == "generate" else 0,
            stop=(*question.stop, *task.stop),
            detail=question.detail,
        )

    def _token_ids(
        self, question: Question
    ) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...], int]:
        """(prompt ids, ids of each continuation, bytes of the gold continuation)."""
        prompt, gold = question.prompt, question.gold
        if SCORERS[question.scorer].kind == "generate":
            return tuple(encode(self._tokenizer, prompt)), (), len(gold.encode())
        if self._task.chat and not question.choices:
            # models are trained this way: prompt and answer tokenised apart
            ids = self._tokenizer.encode(gold, add_special_tokens=False)
            return tuple(encode(self._tokenizer, prompt)), (tuple(ids),), len(gold.encode())
        texts = question.choices or (gold,)
        pairs = [encode_pair(self._tokenizer, prompt, text) for text in texts]
        context, _, scored = pairs[0]
        num_bytes = 0
        if not question.choices:
            num_bytes = len(scored.encode())
        return tuple(context), tuple(tuple(ids) for _, ids, _ in pairs), num_bytes

    def _refusal(self, row: Row, cause: str, remedy: str) -> UsageError:
        return UsageError(
            Problem(
                thing=f"task {self._name!r}, {row[FILE]}, row {row['_row']}",
                cause=cause,
                remedy=remedy,
                where=self._where,
            )
        )
