"""The contract that every engine must pass, as a class of tests to inherit from."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar
from unittest.mock import patch

from recycler.engines.port import Engine
from recycler.engines.watch import GATE_ANSWERS, GATE_TOKENS, HopelessError, Watch
from recycler.errors import UsageError
from recycler.export.export import export_recipe
from recycler.pool.catalog import open_checkpoint
from recycler.pool.storage.hashing import model_digest
from recycler.pool.storage.tensors import iterate_tensors
from recycler.testing.pico import Architecture, make_pico_pool, pico_tokenizer
from recycler.types import (
    Checkpoint,
    Completion,
    GenerateRequest,
    Group,
    Loglikelihood,
    LoglikelihoodRequest,
    Pool,
    Recipe,
)


@dataclass(frozen=True, slots=True)
class Answers:
    """An engine's answers to the contract's questions.

    They are equal only when every token and every bit of a logprob is.
    """

    completions: tuple[Completion, ...]
    likelihoods: tuple[Loglikelihood, ...]


class EngineContract:
    """Tests that every engine must pass.

    Subclass it in a test file, as `class TestMine(EngineContract)`, and give `build`. At most one
    engine is alive at a time. Its prompts are longer than a block of any KV cache and share a
    prefix, so that an engine which keeps state of old weights is found out.
    """

    architecture: ClassVar[Architecture] = "llama"
    tied: ClassVar[bool] = True
    max_model_len: ClassVar[int] = 320

    pool: ClassVar[Pool]
    engine: ClassVar[Engine]
    fresh: ClassVar[dict[str, Answers]]  # of engines that were started on a folder, never merged
    random_recipe: ClassVar[Recipe]
    export_digest: ClassVar[str]
    _folder: ClassVar[tempfile.TemporaryDirectory[str]]

    @classmethod
    def build(cls, pool: Pool) -> Engine:
        """A new engine over `pool`, in bfloat16, for requests of up to `max_model_len` tokens."""
        raise NotImplementedError

    @classmethod
    def setup_class(cls) -> None:
        cls._folder = tempfile.TemporaryDirectory()
        folder = Path(cls._folder.name)
        cls.pool = pool = make_pico_pool(
            folder / "pool", architecture=cls.architecture, tied=cls.tied
        )
        cls.random_recipe = Recipe(
            method="ties",
            members=pool.names,
            weights=((0.7, 0.5, -0.2), (0.9, 0.1, 0.4)),
            base="base",
            groups=(Group(name="attention", match="self_attn"), Group(name="rest")),
            options=(("density", 0.5),),
        )
        cls.export_digest = export_recipe(cls.random_recipe, pool, folder / "export").weights_digest
        assert pool.base is not None
        cls.fresh = {
            "base": cls._fresh(pool.base),
            "m0": cls._fresh(pool.members[0]),
            "m1": cls._fresh(pool.members[1]),
            "export": cls._fresh(open_checkpoint(folder / "export")),
        }
        cls.engine = cls.build(pool)

    @classmethod
    def teardown_class(cls) -> None:
        cls.engine.close()
        cls._folder.cleanup()

    @classmethod
    def _fresh(cls, checkpoint: Checkpoint) -> Answers:
        engine = cls.build(Pool(members=(checkpoint,)))
        try:
            return ask(engine)
        finally:
            engine.close()

    def _linear(self, *weights: float) -> Recipe:
        return Recipe(method="linear", members=self.pool.names, weights=(weights,), base="base")

    def test_members_differ(self) -> None:
        assert len(set(self.fresh.values())) == len(self.fresh), (
            "the pool is too uniform for these tests to mean anything"
        )

    def test_one_hot_weights_are_that_member(self) -> None:
        for index in (0, 1):
            member = self.pool.members[index]
            digest = self.engine.apply(self._linear(*(float(other == index) for other in range(3))))
            assert digest == model_digest(iterate_tensors(member))
            assert ask(self.engine) == self.fresh[member.name]

    def test_zero_weights_are_the_base(self) -> None:
        assert self.pool.base
        assert self.engine.apply(self._linear(0.0, 0.0, 0.0)) == model_digest(
            iterate_tensors(self.pool.base)
        )
        assert ask(self.engine) == self.fresh["base"]

    def test_a_merge_is_its_export(self) -> None:
        assert self.engine.apply(self.random_recipe) == self.export_digest
        assert ask(self.engine) == self.fresh["export"]

    def test_swapping_there_and_back_leaves_no_trace(self) -> None:
        first, second = self._linear(0.5, 0.5, 0.0), self._linear(0.0, 0.2, 0.8)
        digests, answers = [], []
        for recipe in (first, second, first, second):
            digests.append(self.engine.apply(recipe))
            answers.append(ask(self.engine))
        assert digests[0] == digests[2] != digests[1] == digests[3]
        assert answers[0] == answers[2] != answers[1] == answers[3]

    def test_text_ends_before_a_stop_string(self) -> None:
        self.engine.apply(self._linear(1.0, 0.0, 0.0))
        (free,) = self.engine.generate(
            [GenerateRequest(prompt_ids=_prompts()[0], max_new_tokens=40)]
        )
        assert len(free.text) > 12
        stop = free.text[6:8]
        (cut,) = self.engine.generate(
            [
                GenerateRequest(
                    prompt_ids=_prompts()[0], max_new_tokens=40, stop=("never written", stop)
                )
            ]
        )
        assert (cut.text, cut.finish) == (free.text[: free.text.index(stop)], "stop")
        assert 0 < cut.num_tokens < free.num_tokens

    def test_each_request_has_its_own_length(self) -> None:
        self.engine.apply(self._linear(1.0, 0.0, 0.0))
        lengths = (1, 17, 5)
        completions = self.engine.generate(
            [GenerateRequest(prompt_ids=_prompts()[0], max_new_tokens=length) for length in lengths]
        )
        assert tuple(completion.num_tokens for completion in completions) == lengths
        assert {completion.finish for completion in completions} == {"length"}

    def test_likelihood_knows_the_greedy_token(self) -> None:
        self.engine.apply(self._linear(0.0, 1.0, 0.0))
        prompt = _prompts()[1]
        (one,) = self.engine.generate([GenerateRequest(prompt_ids=prompt, max_new_tokens=1)])
        likely = tuple(pico_tokenizer().encode(one.text))
        unlikely = ((likely[0] - 20) % 80 + 10,)
        good, bad = self.engine.loglikelihood(
            [
                LoglikelihoodRequest(context_ids=prompt, continuation_ids=ids)
                for ids in (likely, unlikely)
            ]
        )
        assert good.is_greedy and not bad.is_greedy
        assert 0 >= good.logprob > bad.logprob

    def test_likelihood_sums_its_tokens_and_takes_the_longest_request(self) -> None:
        prompt = (_prompts()[0] * 3)[: self.max_model_len]
        requests = [
            LoglikelihoodRequest(context_ids=prompt[:start], continuation_ids=prompt[start:])
            for start in (1, self.max_model_len - 3)
        ]
        whole, end = self.engine.loglikelihood(requests)
        assert len(whole.token_logprobs) == self.max_model_len - 1 and len(end.token_logprobs) == 3
        assert math.isclose(whole.logprob, math.fsum(whole.token_logprobs))

    def test_no_requests_no_answers(self) -> None:
        self.engine.apply(self._linear(0.0, 0.0, 0.0))
        assert self.engine.generate([]) == [] and self.engine.loglikelihood([]) == []

    def test_answers_are_handed_on_and_degenerate_output_is_given_up(self) -> None:
        """Sixteen long degenerate answers are given up, and leave the engine clean.

        They are not given up when one of them ends early. Every answer is taken for degenerate.
        """
        self.engine.apply(self._linear(1.0, 0.0, 0.0))
        requests = [
            GenerateRequest(prompt_ids=(1, *range(5, 20 + index)), max_new_tokens=2 * GATE_TOKENS)
            for index in range(24)
        ]
        free = self.engine.generate(requests)
        seen: dict[int, Completion] = {}
        listener = Watch(done=lambda index, completion: seen.update({index: completion}))
        assert self.engine.generate(requests, listener) == free
        assert [seen[index] for index in range(len(requests))] == free
        with patch("recycler.engines.watch.repeats_itself", return_value=True):
            _refuses(HopelessError, lambda: self.engine.generate(requests, Watch(gate=True)))
            assert ask(self.engine) == self.fresh["m0"]
            ends = replace(requests[0], stop=(free[0].text[2:4],))
            some_end = [ends, *requests[1:GATE_ANSWERS]]
            assert len(self.engine.generate(some_end, Watch(gate=True))) == GATE_ANSWERS
        assert self.engine.generate(requests, Watch(gate=True)) == free

    def test_requests_without_an_answer_are_refused(self) -> None:
        """An empty continuation has probability one: it would win every choice."""
        self.engine.apply(self._linear(1.0, 0.0, 0.0))
        for request in (
            GenerateRequest(prompt_ids=(), max_new_tokens=3),
            GenerateRequest(prompt_ids=(5, 6), max_new_tokens=0),
        ):
            _refuses(UsageError, partial(self.engine.generate, [request]))
        for question in (
            LoglikelihoodRequest(context_ids=(), continuation_ids=(5, 6)),
            LoglikelihoodRequest(context_ids=(5, 6), continuation_ids=()),
        ):
            _refuses(UsageError, partial(self.engine.loglikelihood, [question]))
        assert ask(self.engine) == self.fresh["m0"]

    def test_too_long_a_request_is_refused(self) -> None:
        full = (5,) * self.max_model_len
        request = GenerateRequest(prompt_ids=full, max_new_tokens=1)
        question = LoglikelihoodRequest(context_ids=full, continuation_ids=(5,))
        _refuses(UsageError, lambda: self.engine.generate([request]))
        _refuses(UsageError, lambda: self.engine.loglikelihood([question]))

    def test_another_dtype_is_refused_and_changes_nothing(self) -> None:
        self.engine.apply(self._linear(1.0, 0.0, 0.0))
        recipe = Recipe(
            method="linear",
            members=self.pool.names,
            weights=((0.0, 1.0, 0.0),),
            base="base",
            dtype="float32",
        )
        _refuses(UsageError, lambda: self.engine.apply(recipe))
        assert ask(self.engine) == self.fresh["m0"]

    def test_a_failed_merge_leaves_the_engine_dirty_until_the_next(self) -> None:
        half = Recipe(
            method="linear",
            members=self.pool.names,
            weights=((1.0, 1.0, 1.0),),
            base="base",
            groups=(Group(name="some", match="embed_tokens"),),
        )
        _refuses(UsageError, lambda: self.engine.apply(half))
        request = GenerateRequest(prompt_ids=(5, 6), max_new_tokens=1)
        question = LoglikelihoodRequest(context_ids=(5,), continuation_ids=(6,))
        _refuses(RuntimeError, lambda: self.engine.generate([request]))
        _refuses(RuntimeError, lambda: self.engine.loglikelihood([question]))
        self.engine.apply(self._linear(0.0, 1.0, 0.0))
        assert ask(self.engine) == self.fresh["m1"]

    def test_a_merge_that_overflows_scores_low_and_breaks_nothing(self) -> None:
        self.engine.apply(
            Recipe(method="linear", members=self.pool.names, weights=((3e38, 3e38, -3e38),))
        )
        answers = ask(self.engine)
        assert len(answers.completions) == len(_prompts())
        for likelihood in answers.likelihoods:
            assert math.isfinite(likelihood.logprob)
            assert likelihood.logprob <= -1e4 and not likelihood.is_greedy
        self.engine.apply(self._linear(1.0, 0.0, 0.0))
        assert ask(self.engine) == self.fresh["m0"]


def ask(engine: Engine) -> Answers:
    """Ask the contract's questions.

    They are always the same and in the same batches, so answers can be compared bit for bit.
    """
    prompts = _prompts()
    requests, questions = [], []
    for index, prompt in enumerate(prompts):
        continuation = prompts[0][: 5 + index]
        requests.append(GenerateRequest(prompt_ids=prompt, max_new_tokens=12 + 4 * index))
        questions.append(LoglikelihoodRequest(context_ids=prompt, continuation_ids=continuation))
    completions = engine.generate(requests)
    likelihoods = engine.loglikelihood(questions)
    return Answers(tuple(completions), tuple(likelihoods))


def _prompts() -> list[tuple[int, ...]]:
    """Three prompts of 150 to 260 tokens; the first is a prefix of the second."""
    text = "the quick brown fox jumps over the lazy dog; "
    texts = (text * 4, text * 4 + "and then " * 8, "0123456789 " * 14)
    tokenizer = pico_tokenizer()
    return [(1, *tokenizer.encode(part)) for part in texts]


def _refuses(kind: type[Exception], action: Callable[[], object]) -> None:
    """Assert that `action` raises this kind of error."""
    try:
        action()
    except kind:
        return
    raise AssertionError(f"no {kind.__name__} was raised")
