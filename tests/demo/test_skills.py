"""The demo's items: right answers, splits that do not touch, and a tokenizer that loses nothing."""

import subprocess
import sys

import pytest

from recycler.demo.skills import (
    ENGLISH_ONES,
    ENGLISH_TENS,
    SKILLS,
    SPANISH_ONES,
    SPANISH_TENS,
    english_number,
    make_items,
    spanish_number,
)
from recycler.demo.tokenizer import make_tokenizer

SPLITS = {"train": 2000, "search": 250, "holdout": 1000}


@pytest.fixture(scope="module")
def items():
    return {
        (skill, split): make_items(skill, split, count, seed=0)
        for skill in SKILLS
        for split, count in SPLITS.items()
    }


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def solve(prompt):
    """The answer worked out from the prompt alone, another way than the generator's."""
    question = prompt.removesuffix(" =")
    if "(" in question:
        name, letters = question.rstrip(")").split("(")
        if name == "sort":
            return "".join(letter * letters.count(letter) for letter in "abcdefghij")
        order = range(len(letters) - 1, -1, -1) if name == "rev" else [*range(1, len(letters)), 0]
        return "".join(letters[place] for place in order)
    values = {word: number for number, word in enumerate(ENGLISH_ONES)} | {
        word: number for number, word in enumerate(SPANISH_ONES)
    }
    values |= {word: 10 * number for number, word in enumerate(ENGLISH_TENS, start=2)} | {
        word: 10 * number for number, word in enumerate(SPANISH_TENS, start=3)
    }
    return str(
        sum(int(word) if word.isdigit() else values.get(word, 0) for word in question.split())
    )


@pytest.mark.parametrize("skill", SKILLS)
def test_every_answer_is_right(items, skill):
    for split in SPLITS:
        for problem in items[skill, split]:
            assert problem.answer == solve(problem.prompt), problem


def test_no_cluster_straddles_splits(items):
    """Across the skills too: a sum that is held out in English is not trained on in Spanish."""
    clusters = {
        split: {problem.cluster for skill in SKILLS for problem in items[skill, split]}
        for split in SPLITS
    }
    assert not clusters["train"] & clusters["search"]
    assert not clusters["train"] & clusters["holdout"]
    assert not clusters["search"] & clusters["holdout"]


@pytest.mark.parametrize("skill", SKILLS)
def test_items_of_a_split_are_distinct_and_of_one_prompt_each(items, skill):
    for split, count in SPLITS.items():
        prompts = {problem.prompt for problem in items[skill, split]}
        assert len(prompts) == count == len({problem.cluster for problem in items[skill, split]})


def test_both_languages_ask_the_same_sums(items):
    for english, spanish in zip(
        items["english", "holdout"], items["spanish", "holdout"], strict=True
    ):
        assert (english.cluster, english.answer) == (spanish.cluster, spanish.answer)


@pytest.mark.parametrize("skill", SKILLS)
def test_a_seed_gives_the_same_items_again_and_another_seed_gives_others(items, skill):
    assert make_items(skill, "search", SPLITS["search"], seed=0) == items[skill, "search"]
    assert make_items(skill, "search", SPLITS["search"], seed=1) != items[skill, "search"]


def test_number_words_name_one_number_each():
    for words in (english_number, spanish_number):
        assert len({words(number) for number in range(100)}) == 100


def test_tokenizer_round_trips_every_item(items, tokenizer):
    texts = [
        text
        for problems in items.values()
        for problem in problems
        for text in (problem.prompt, problem.answer)
    ]
    for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.pad_token_id not in ids  # which also stands for the unknown
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_tokenizer_is_an_ordinary_folder(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(str(tmp_path), local_files_only=True)
    prompt = "forty two plus 13 ="
    assert loaded(prompt)["input_ids"] == tokenizer(prompt)["input_ids"]
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == ("<s>", "</s>", "<pad>")
    assert loaded.decode(loaded(prompt)["input_ids"], skip_special_tokens=True) == prompt


def test_items_need_no_heavy_import():
    program = (
        "import sys, recycler.demo.skills; assert not {'torch', 'transformers', 'tokenizers'} & "
        "set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
