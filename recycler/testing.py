"""What tests of engines and pools need: tiny real pools, and the contract that every engine must
pass.

Part of the package, so that whoever writes an engine of their own can run the same tests on it.
"""

from __future__ import annotations

import math
import string
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal
from unittest.mock import patch

import torch

from recycler.engines.port import Engine
from recycler.engines.watch import GATE_ANSWERS, GATE_TOKENS, HopelessError, Watch
from recycler.errors import UsageError
from recycler.export.export import export_recipe
from recycler.pool.catalog import open_checkpoint, open_pool
from recycler.pool.storage.hashing import model_digest
from recycler.pool.storage.tensors import iterate_tensors
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

Architecture = Literal["llama", "qwen2", "qwen3"]
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
DELTA_SCALE = 0.02  # of a member's random delta, beside weights of about 0.08


def make_pico_pool(
    directory: Path,
    *,
    architecture: Architecture = "llama",
    num_members: int = 3,
    tied: bool = True,
    seed: int = 0,
) -> Pool:
    """A base and `num_members` random relatives of it, saved as bfloat16 Hugging Face folders below
    `directory`.

    Two layers, hidden size 64, 100 characters: small enough to build in a second, real enough for
    every engine.
    """
    tokenizer = pico_tokenizer()
    generator = torch.Generator().manual_seed(seed)
    model = _pico_model(architecture, len(tokenizer), tied)
    base = {name: _random(name, value, generator) for name, value in model.state_dict().items()}
    folders = [
        directory / "base",
        *(directory / "members" / f"m{index}" for index in range(num_members)),
    ]
    for index, folder in enumerate(folders):
        weights = (
            base
            if index == 0
            else {
                name: value + DELTA_SCALE * torch.randn(value.shape, generator=generator)
                for name, value in base.items()
            }
        )
        model.load_state_dict(_tie(weights) if tied else weights)
        model.to(torch.bfloat16).save_pretrained(folder)
        model.to(torch.float32)
        tokenizer.save_pretrained(folder)
    return open_pool([str(directory / "members")], base=directory / "base")


def pico_tokenizer():
    """One token per printable character; its ids are the same in every pico pool."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = [*SPECIAL_TOKENS, *sorted(set(string.printable) - set("\r\x0b\x0c\t"))]
    tokenizer = Tokenizer(
        models.WordLevel(
            {token: index for index, token in enumerate(characters)}, unk_token="<unk>"
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    pad, bos, eos, unknown = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unknown,
        clean_up_tokenization_spaces=False,
    )


def _pico_model(architecture: Architecture, vocab_size: int, tied: bool):
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    config_class, model_class = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }[architecture]
    heads = (
        {"head_dim": 32} if architecture == "qwen3" else {}
    )  # its own default is 128, whatever the hidden size
    config = config_class(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **heads,
    )
    return model_class(config)


def _random(name: str, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Weights wide enough that a random model has opinions; norms near one.

    No model ends its text by itself.
    """
    noise = torch.randn(like.shape, generator=generator)
    if "embed_tokens" in name or "lm_head" in name:
        noise[SPECIAL_TOKENS.index("<eos>")] = 0.0
    return 1.0 + 0.1 * noise if "norm" in name else 0.15 * noise


def _tie(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}


# ---------------------------------------------------------------- the contract of an engine


@dataclass(frozen=True, slots=True)
class Answers:
    """What an engine said to the contract's questions; equal only when every token and every bit of
    a logprob is.
    """

    completions: tuple[Completion, ...]
    likelihoods: tuple[Loglikelihood, ...]


class EngineContract:
    """Tests that every engine must pass.

    Subclass it in a test file, as `class TestMine(EngineContract)`, and give `build`.

    At most one engine is alive at a time. Its prompts are longer than a block of any KV cache and
    share a prefix, so that an engine which keeps state of old weights is found out.
    """

    architecture: ClassVar[Architecture] = "llama"
    tied: ClassVar[bool] = True
    max_model_len: ClassVar[int] = 320

    pool: ClassVar[Pool]
    engine: ClassVar[Engine]
    fresh: ClassVar[
        dict[str, Answers]
    ]  # answers of engines that were started on a folder and never merged
    random_recipe: ClassVar[Recipe]
    export_digest: ClassVar[str]

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
        places = {
            "base": pool.base,
            "m0": pool.members[0],
            "m1": pool.members[1],
            "export": open_checkpoint(folder / "export"),
        }
        cls.fresh = {
            name: cls._fresh(checkpoint) for name, checkpoint in places.items() if checkpoint
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

    def test_members_differ(self):
        assert len(set(self.fresh.values())) == len(self.fresh), (
            "the pool is too uniform for these tests to mean anything"
        )

    def test_one_hot_weights_are_that_member(self):
        for index in (0, 1):
            member = self.pool.members[index]
            digest = self.engine.apply(self._linear(*(float(other == index) for other in range(3))))
            assert digest == model_digest(iterate_tensors(member))
            assert ask(self.engine) == self.fresh[member.name]

    def test_zero_weights_are_the_base(self):
        assert self.pool.base
        assert self.engine.apply(self._linear(0.0, 0.0, 0.0)) == model_digest(
            iterate_tensors(self.pool.base)
        )
        assert ask(self.engine) == self.fresh["base"]

    def test_a_merge_is_its_export(self):
        assert self.engine.apply(self.random_recipe) == self.export_digest
        assert ask(self.engine) == self.fresh["export"]

    def test_swapping_there_and_back_leaves_no_trace(self):
        first, second = self._linear(0.5, 0.5, 0.0), self._linear(0.0, 0.2, 0.8)
        digests, answers = [], []
        for recipe in (first, second, first, second):
            digests.append(self.engine.apply(recipe))
            answers.append(ask(self.engine))
        assert digests[0] == digests[2] != digests[1] == digests[3]
        assert answers[0] == answers[2] != answers[1] == answers[3]

    def test_text_ends_before_a_stop_string(self):
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

    def test_each_request_has_its_own_length(self):
        self.engine.apply(self._linear(1.0, 0.0, 0.0))
        lengths = (1, 17, 5)
        completions = self.engine.generate(
            [GenerateRequest(prompt_ids=_prompts()[0], max_new_tokens=length) for length in lengths]
        )
        assert tuple(completion.num_tokens for completion in completions) == lengths
        assert {completion.finish for completion in completions} == {"length"}

    def test_likelihood_knows_the_greedy_token(self):
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

    def test_likelihood_sums_its_tokens_and_takes_the_longest_request(self):
        prompt = (_prompts()[0] * 3)[: self.max_model_len]
        requests = [
            LoglikelihoodRequest(context_ids=prompt[:start], continuation_ids=prompt[start:])
            for start in (1, self.max_model_len - 3)
        ]
        whole, end = self.engine.loglikelihood(requests)
        assert len(whole.token_logprobs) == self.max_model_len - 1 and len(end.token_logprobs) == 3
        assert math.isclose(whole.logprob, math.fsum(whole.token_logprobs))

    def test_no_requests_no_answers(self):
        self.engine.apply(self._linear(0.0, 0.0, 0.0))
        assert self.engine.generate([]) == [] and self.engine.loglikelihood([]) == []

    def test_answers_are_handed_on_and_degenerate_output_is_given_up(self):
        """Every answer taken for babble: sixteen long ones are given up and leave the engine clean,
        unless one of them ends early.
        """
        self.engine.apply(self._linear(1.0, 0.0, 0.0))
        requests = [
            GenerateRequest(prompt_ids=(1, *range(5, 20 + index)), max_new_tokens=2 * GATE_TOKENS)
            for index in range(24)
        ]
        free, seen = self.engine.generate(requests), {}
        assert (
            self.engine.generate(
                requests, Watch(done=lambda index, completion: seen.update({index: completion}))
            )
            == free
        )
        assert [seen[index] for index in range(len(requests))] == free
        with patch("recycler.engines.watch.repeats_itself", return_value=True):
            _refuses(HopelessError, lambda: self.engine.generate(requests, Watch(gate=True)))
            assert ask(self.engine) == self.fresh["m0"]
            ends = replace(requests[0], stop=(free[0].text[2:4],))
            assert (
                len(self.engine.generate([ends, *requests[1:GATE_ANSWERS]], Watch(gate=True)))
                == GATE_ANSWERS
            )
        assert self.engine.generate(requests, Watch(gate=True)) == free

    def test_requests_without_an_answer_are_refused(self):
        """An empty continuation has probability one: it would win every choice."""
        self.engine.apply(self._linear(1.0, 0.0, 0.0))
        for prompt, length in (((), 3), ((5, 6), 0)):
            _refuses(
                UsageError,
                lambda: self.engine.generate(
                    [GenerateRequest(prompt_ids=prompt, max_new_tokens=length)]
                ),
            )
        for context, continuation in (((), (5, 6)), ((5, 6), ())):
            _refuses(
                UsageError,
                lambda: self.engine.loglikelihood(
                    [LoglikelihoodRequest(context_ids=context, continuation_ids=continuation)]
                ),
            )
        assert ask(self.engine) == self.fresh["m0"]

    def test_too_long_a_request_is_refused(self):
        _refuses(
            UsageError,
            lambda: self.engine.generate(
                [GenerateRequest(prompt_ids=(5,) * self.max_model_len, max_new_tokens=1)]
            ),
        )
        _refuses(
            UsageError,
            lambda: self.engine.loglikelihood(
                [LoglikelihoodRequest(context_ids=(5,) * self.max_model_len, continuation_ids=(5,))]
            ),
        )

    def test_another_dtype_is_refused_and_changes_nothing(self):
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

    def test_a_failed_merge_leaves_the_engine_dirty_until_the_next(self):
        half = Recipe(
            method="linear",
            members=self.pool.names,
            weights=((1.0, 1.0, 1.0),),
            base="base",
            groups=(Group(name="some", match="embed_tokens"),),
        )
        _refuses(UsageError, lambda: self.engine.apply(half))
        _refuses(
            RuntimeError,
            lambda: self.engine.generate([GenerateRequest(prompt_ids=(5, 6), max_new_tokens=1)]),
        )
        _refuses(
            RuntimeError,
            lambda: self.engine.loglikelihood(
                [LoglikelihoodRequest(context_ids=(5,), continuation_ids=(6,))]
            ),
        )
        self.engine.apply(self._linear(0.0, 1.0, 0.0))
        assert ask(self.engine) == self.fresh["m1"]

    def test_a_merge_that_overflows_scores_low_and_breaks_nothing(self):
        self.engine.apply(
            Recipe(method="linear", members=self.pool.names, weights=((3e38, 3e38, -3e38),))
        )
        answers = ask(self.engine)
        assert len(answers.completions) == len(_prompts())
        assert all(
            math.isfinite(likelihood.logprob)
            and likelihood.logprob <= -1e4
            and not likelihood.is_greedy
            for likelihood in answers.likelihoods
        )
        self.engine.apply(self._linear(1.0, 0.0, 0.0))
        assert ask(self.engine) == self.fresh["m0"]


def ask(engine: Engine) -> Answers:
    """The contract's questions, always the same and in the same batches, so that answers can be
    compared bit for bit.
    """
    prompts = _prompts()
    completions = engine.generate(
        [
            GenerateRequest(prompt_ids=prompt, max_new_tokens=12 + 4 * index)
            for index, prompt in enumerate(prompts)
        ]
    )
    likelihoods = engine.loglikelihood(
        [
            LoglikelihoodRequest(context_ids=prompt, continuation_ids=prompts[0][: 5 + index])
            for index, prompt in enumerate(prompts)
        ]
    )
    return Answers(tuple(completions), tuple(likelihoods))


def _prompts() -> list[tuple[int, ...]]:
    """Three prompts of 150 to 260 tokens; the first is a prefix of the second."""
    text = "the quick brown fox jumps over the lazy dog; "
    return [
        (1, *pico_tokenizer().encode(part))
        for part in (text * 4, text * 4 + "and then " * 8, "0123456789 " * 14)
    ]


def _refuses(kind: type[Exception], action) -> None:
    try:
        action()
    except kind:
        return
    raise AssertionError(f"no {kind.__name__} was raised")
