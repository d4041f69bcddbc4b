"""The checks of a method, its base, members and options, in the words of whoever asks."""

import pytest

from recycler.merge.methods.problems import MethodWords, method_problems

WORDS = MethodWords(
    no_base="the shelf has no base",
    add_base="Put one there",
    members="books, the shelf has",
    change_members="Take some away",
)


def problems(method, **facts):
    return [str(problem) for problem in method_problems(method, WORDS, **facts)]


def test_an_unknown_method_is_refused_alone():
    assert problems("tie", has_base=False, num_members=1, options=(("x", 1),)) == [
        "method 'tie': unknown. Did you mean 'ties'?"
    ]


def test_base_members_and_options_are_refused_at_once():
    assert problems("ties", has_base=False, num_members=3, options=(("density@mlp", True),)) == [
        "method 'ties': works on deltas and the shelf has no base. Put one there",
        "option 'density@mlp' of 'ties': is for the group 'mlp', which the recipe does not have. "
        "It has no groups",
    ]
    assert problems("slerp", has_base=False, num_members=3) == [
        "method 'slerp': merges 2 books, the shelf has 3. Take some away"
    ]


@pytest.mark.parametrize("method", ["ties", "slerp"])
def test_facts_that_are_not_known_yet_are_not_checked(method):
    assert problems(method) == []


def test_every_problem_has_its_line_and_an_option_with_a_line_its_bare_name():
    found = problems(
        "ties",
        has_base=False,
        num_members=2,
        options=(("density@mlp", (1.0,)),),
        groups=["mlp"],
        where=lambda key_path: "/".join(key_path),
    )
    assert found == [
        "base: method 'ties': works on deltas and the shelf has no base. Put one there",
        "options/density@mlp: option 'density' of 'ties': is not one number for each of 2 members. "
        "Give one number, or one per member",
    ]
