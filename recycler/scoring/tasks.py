"""Build a suite into frozen items: wording and token ids fixed once, hashed, the same in every
trial.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from jinja2 import TemplateError

from recycler.errors import Problem, UnsafeInputError, UsageError, did_you_mean
from recycler.io.strict_yaml import YamlDocument
from recycler.scoring.lmeval.definitions import lm_eval_metrics
from recycler.scoring.lmeval.tasks import LmEvalTask, Question
from recycler.scoring.rows import FILE, Row, data_folders_of, fill, load_rows, select_rows
from recycler.scoring.scorers import SCORERS
from recycler.specs.suite import (
    EvalSuite,
    SuiteSpec,
    TaskSpec,
    check_splits,
    read_suite,
    searches_test_set,
)
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
    """What is needed of a tokenizer: text to ids, and the chat template."""

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
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
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
    """Metrics that each task of a suite gives, by task name."""
    return {
        name: lm_eval_metrics(task.lm_eval)
        if task.lm_eval
        else SCORERS[task.scorer].metrics
        if task.scorer in SCORERS
        else ()
        for name, task in spec.tasks.items()
    }


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids with the tokenizer's own special tokens, unless the text begins with its
    beginning-of-text token (lm-eval's rule).
    """
    bos = getattr(tokenizer, "bos_token", None)
    return tokenizer.encode(text, add_special_tokens=not (bos and text.startswith(bos)))


def encode_pair(
    tokenizer: Tokenizer, context: str, continuation: str
) -> tuple[list[int], list[int], str]:
    """Ids of a context and of what follows it, cut from the ids of both together, and the text that
    is scored.

    Spaces at the end of the context count as the continuation's, since tokens hold a space before a
    word, not behind it: lm_eval/api/model.py `_encode_pair`. Where context and continuation melt
    into as many tokens as the context has alone, nothing would be left to score (lm-eval fails
    there): then the two are encoded apart.
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
        self._suite, self._name, self._task, self._tokenizer, self._folders = (
            suite,
            name,
            task,
            tokenizer,
            folders,
        )
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
        items = []
        for role, split in (("search", self._task.search), ("holdout", self._task.holdout)):
            rows = self._read(split.data or self._task.data)
            chosen = select_rows(rows, split)
            questions = (
                self._lm_eval_questions(rows, chosen, split.data or self._task.data)
                if self._task.lm_eval
                else self._own_questions(chosen)
            )
            items += [
                self._item(role, index, row, question)
                for (index, row), question in zip(chosen, questions, strict=True)
            ]
        if self._task.repeated == "refuse":
            return items
        held_out = {item.prompt for item in items if item.role == "holdout"}
        return [item for item in items if item.role == "holdout" or item.prompt not in held_out]

    def _read(self, name: str) -> list[Row]:
        rows = load_rows(name, self._folders, self._where, self._task.columns)
        return [{**row, "_row": index, FILE: name} for index, row in enumerate(rows)]

    # ---------------------------------------------------------------- questions

    def _own_questions(self, chosen: Sequence[tuple[int, Row]]) -> Iterator[Question]:
        task, where = self._task, self._where
        shots = self._shots()
        for index, row in chosen:
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
                turns = [{"role": "system", "content": task.system}] if task.system else []
                prompt = self._chat(
                    [*turns, {"role": "user", "content": prompt}],
                    tokenize=False,
                    add_generation_prompt=True,
                )
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
        rows = self._read(spec.data or self._task.data)
        return "".join(
            fill(self._task.prompt, row, self._where)
            + fill(spec.answer, row, self._where)
            + spec.between
            for row in rows[slice(*spec.rows or (0, None))]
        )

    def _lm_eval_questions(
        self, rows: Sequence[Row], chosen: Sequence[tuple[int, Row]], source: str
    ) -> Iterator[Question]:
        task, shots = self._task, []
        if task.fewshot:
            origin = task.fewshot.data or task.data
            taken = {index for index, _ in chosen} if origin == source else set()
            pool = self._read(origin)[slice(*task.fewshot.rows or (0, None))]
            shots = [self._lm_eval_fields(row) for row in pool if row["_row"] not in taken]
        docs = [self._lm_eval_fields(row) for row in rows[: chosen[-1][0] + 1]] if chosen else []
        source_task = LmEvalTask(
            task.lm_eval, docs, shots, num_fewshot=task.num_fewshot, where=self._where
        )
        return source_task.questions(
            [index for index, _ in chosen],
            chat=self._chat if task.chat else None,
            system=task.system,
            max_new_tokens=task.max_new_tokens,
        )

    def _lm_eval_fields(self, row: Row) -> dict:
        plain = {key: value for key, value in row.items() if key not in ("_row", FILE)}
        return plain | {
            key: None if template is None else fill(template, row, self._where)
            for key, template in self._task.fields.items()
        }

    def _chat(self, turns: list[dict[str, str]], **options: bool) -> str:
        """Turns in the model's chat template.

        Raises UsageError when it has none, or one that does not take such turns.
        """
        try:
            return self._tokenizer.apply_chat_template(turns, **options)
        except (ValueError, TemplateError) as error:
            cause = (
                "the model has no chat template"
                if not getattr(self._tokenizer, "chat_template", None)
                else f"the model's chat template refuses it ({error})"
            )
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
        cluster = (task.search if role == "search" else task.holdout).cluster or task.cluster
        identity = (
            f"{self._suite}/{self._name}/{own}"
            if role == "search" or not task.holdout.data
            else f"{self._suite}/{self._name}/holdout-{own}"
        )
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
        if SCORERS[question.scorer].kind == "generate":
            return tuple(encode(self._tokenizer, question.prompt)), (), len(question.gold.encode())
        if (
            self._task.chat and not question.choices
        ):  # trained this way: prompt and answer tokenised apart
            return (
                tuple(encode(self._tokenizer, question.prompt)),
                (tuple(self._tokenizer.encode(question.gold, add_special_tokens=False)),),
                len(question.gold.encode()),
            )
        pairs = [
            encode_pair(self._tokenizer, question.prompt, text)
            for text in question.choices or (question.gold,)
        ]
        return (
            tuple(pairs[0][0]),
            tuple(tuple(pair[1]) for pair in pairs),
            len(pairs[0][2].encode()) if not question.choices else 0,
        )

    def _refusal(self, row: Row, cause: str, remedy: str) -> UsageError:
        return UsageError(
            Problem(
                thing=f"task {self._name!r}, {row[FILE]}, row {row['_row']}",
                cause=cause,
                remedy=remedy,
                where=self._where,
            )
        )
