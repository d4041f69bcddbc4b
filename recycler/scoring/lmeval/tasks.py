"""Tasks of lm-eval by name, on local rows: its wording, few-shot draws, filters, metrics.

    names.py         the file that defines a task
    unsafe.py        tasks that would run a model's programs, which are refused
    definitions.py   a task's YAML, its metrics and filters
    opened.py        a task opened on local rows
    answers.py       answers scored by lm-eval itself
    tasks.py         questions with lm-eval's wording and few-shot draws

Nothing outside of this folder imports lm_eval.

Prompts are those that `lm_eval` 0.4.13 asks with its default seeds: examples are drawn document
after document in the order of the data file (few-shot seed 1234), so a frozen item has one prompt,
whichever trial or subset of items it is asked in. Where examples come from the very file that is
asked, no asked row is one: with another `rows:` or `limit:` others are drawn, and that is another
suite.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recycler.errors import Problem, UsageError
from recycler.scoring.lmeval.answers import PROBE, process_text
from recycler.scoring.lmeval.definitions import lm_eval_metrics, load_definition, plain_match
from recycler.scoring.lmeval.opened import open_task

FEWSHOT_SEED = 1234  # lm_eval/evaluator.py, simple_evaluate(fewshot_random_seed=1234)
DEFAULT_NEW_TOKENS = 256  # lm_eval/models/huggingface.py, max_gen_toks


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """An item before its token ids: the prompt, the right answer, the scorer.

    `choices` are continuations with their delimiter.
    """

    prompt: str
    gold: str
    scorer: str
    max_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    detail: tuple[tuple[str, str], ...] = ()


class LmEvalTask:
    """One task over `docs` and a pool of few-shot examples, `shots`.

    `docs` are all rows of the data file up to the last one asked. Raises UsageError when the task
    wants examples and there are none.
    """

    def __init__(
        self,
        name: str,
        docs: Sequence[Mapping[str, Any]],
        shots: Sequence[Mapping[str, Any]],
        *,
        num_fewshot: int | None = None,
        where: str = "",
    ):
        self.name, self._where = name, where
        self._config = load_definition(name, resolve=True, where=where)
        self._task = open_task(self._config, docs, shots or docs, num_fewshot)
        self._num_fewshot = self._task.config.num_fewshot or 0
        has_samples = (self._config.get("fewshot_config") or {}).get("samples")
        if self._num_fewshot and not shots and not has_samples:
            raise UsageError(
                Problem(
                    thing=f"lm-eval task {name!r}",
                    cause=f"wants {self._num_fewshot} examples and there is no data for them",
                    remedy="Give fewshot: {data: ...} or num_fewshot: 0",
                    where=where,
                )
            )

    def questions(
        self,
        indices: Sequence[int],
        *,
        chat: Callable[..., str] | None = None,
        system: str = "",
        max_new_tokens: int | None = None,
    ) -> Iterator[Question]:
        """The questions at these rows, in order.

        Examples are drawn for the rows between them too, so that prompts do not depend on the
        choice. `chat` applies the model's chat template. Raises UsageError for a kind of task that
        is not supported.
        """
        task, wanted = self._task, set(indices)
        task.set_fewshot_seed(FEWSHOT_SEED)
        template = _chat_template(chat) if chat else None
        for index, doc in enumerate(task.eval_docs):
            if index not in wanted:
                self._draw_examples(doc)
                continue
            context = task.fewshot_context(
                doc,
                num_fewshot=self._num_fewshot,
                system_instruction=system or None,
                apply_chat_template=chat is not None,
                chat_template=template,
                gen_prefix=task.doc_to_prefix(doc),
            )
            yield self._question(doc, context, max_new_tokens, chat is not None)

    def _draw_examples(self, doc: Mapping[str, Any]) -> None:
        """Draw examples for a row that is not asked, and forget them."""
        if not self._num_fewshot:
            return
        if self._task.fewshot_cfg.split == self._task.config.test_split:
            self._task.sampler.sample(n=self._num_fewshot, eval_doc=doc)
        else:
            self._task.sampler.sample(n=self._num_fewshot, eval_doc=None)

    def _question(
        self, doc: Mapping[str, Any], context: str, max_new_tokens: int | None, chat: bool
    ) -> Question:
        kind, task = self._task.OUTPUT_TYPE, self._task
        if kind == "generate_until":
            return self._generating(doc, context, max_new_tokens)
        if kind != "multiple_choice" or task.multiple_input:
            raise UsageError(
                Problem(
                    thing=f"lm-eval task {self.name!r}",
                    cause=f"is of the kind {kind}, which is not supported",
                    remedy="Generating and multiple-choice tasks are",
                    where=self._where,
                )
            )
        choices = task.doc_to_choice(doc)
        requests = task.construct_requests(
            doc=doc, ctx=context, metadata=(self.name, 0, 1), apply_chat_template=chat
        )
        right = task.doc_to_target(doc)
        if not isinstance(right, int):
            right = choices.index(right) if right in choices else -1
        return Question(
            prompt=context,
            gold=str(right),
            scorer="choice",
            choices=tuple(request.args[1] for request in requests),
            detail=(
                ("choices", json.dumps(choices, ensure_ascii=False)),
                ("metrics", json.dumps(lm_eval_metrics(self.name))),
            ),
        )

    def _generating(
        self, doc: Mapping[str, Any], context: str, max_new_tokens: int | None
    ) -> Question:
        settings = self._task.config.generation_kwargs or {}
        if settings.get("do_sample"):
            raise UsageError(
                Problem(
                    thing=f"lm-eval task {self.name!r}",
                    cause="samples its answers; scores of a search must not depend on luck",
                    remedy="Choose a greedy task",
                    where=self._where,
                )
            )
        until = settings.get("until") or []
        if isinstance(until, str):
            until = [until]
        scorer, gold, detail = self._scoring(doc)
        return Question(
            prompt=context,
            gold=gold,
            scorer=scorer,
            max_new_tokens=max_new_tokens or int(settings.get("max_gen_toks", DEFAULT_NEW_TOKENS)),
            stop=tuple(until),
            detail=detail,
        )

    def _scoring(self, doc: Mapping[str, Any]) -> tuple[str, str, tuple[tuple[str, str], ...]]:
        """(scorer, right answer, detail) of an answer to a row.

        Our own scorer where exact_match is all there is, else lm-eval's.
        """
        gold = self._task.doc_to_target(doc)
        metrics = ("metrics", json.dumps(lm_eval_metrics(self.name)))
        plain = plain_match(self._config)
        if plain is not None and isinstance(gold, (str, int)):
            match = ("match", json.dumps(plain, ensure_ascii=False))
            return "lm_eval_match", str(gold), (match, metrics)
        if not isinstance(gold, str):
            gold = json.dumps(gold, ensure_ascii=False)
        detail = [
            ("task", self.name),
            ("doc", json.dumps(doc, ensure_ascii=False)),
            metrics,
        ]
        values = process_text(self.name, doc, PROBE, lists=True)
        weights = {name: len(value) for name, value in values.items() if isinstance(value, list)}
        if weights:
            detail.append(("weights", json.dumps(weights)))
        return "lm_eval", gold, tuple(detail)


def _chat_template(chat: Callable[..., str]) -> Callable[..., str]:
    """As lm_eval/models/huggingface.py `apply_chat_template` calls the tokenizer's."""
    return lambda messages, add_generation_prompt=True: chat(
        messages,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=not add_generation_prompt,
    )
