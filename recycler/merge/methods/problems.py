"""Mistakes in the merge method that a job, a recipe or an adapter recipe asks for.

The checks are the same for every kind of file; only the words that name the file's own parts
differ ("the pool has no base", "the recipe has no base"), and the lines that a problem points to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from recycler.errors import Problem, did_you_mean
from recycler.io.strict_yaml import KeyPath
from recycler.merge.methods.method import MergeMethod
from recycler.merge.methods.options import Options, option_complaints
from recycler.merge.methods.registry import MERGE_METHODS


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodWords:
    """Words that one kind of file has for its base and its members."""

    no_base: str = ""  # "the pool has no base", after "works on deltas and"
    add_base: str = ""  # the remedy for it
    members: str  # "members, the pool has", between the wanted number and the one that is there
    change_members: str  # the remedy for a wrong number


def _nowhere(key_path: KeyPath) -> str:
    """No place: the recipe is not from a file."""
    return ""


def method_problems(
    method: str | None,
    words: MethodWords,
    *,
    has_base: bool | None = None,
    num_members: int | None = None,
    options: Options = (),
    groups: Sequence[str] = (),
    methods: Mapping[str, MergeMethod] = MERGE_METHODS,
    where: Callable[[KeyPath], str] = _nowhere,
) -> list[Problem]:
    """Every mistake in a method's name, base, number of members and options.

    `has_base` and `num_members` are left unchecked when they are None (not known yet), and nothing
    else is checked of an unknown method. `where` returns file:line for `("method",)`, `("base",)`
    and `("options", NAME)`, where NAME may be NAME@GROUP. The line says which group is meant; a
    recipe without a file gets the whole NAME@GROUP.
    """
    if method is None or method not in methods:
        return [
            Problem(
                thing=f"method {method!r}",
                cause="unknown",
                remedy=did_you_mean(str(method), methods),
                where=where(("method",)),
            )
        ]
    known = methods[method]
    problems: list[Problem] = []
    if known.needs_base and has_base is False:
        problems.append(
            Problem(
                thing=f"method {method!r}",
                cause=f"works on deltas and {words.no_base}",
                remedy=words.add_base,
                where=where(("base",)),
            )
        )
    if num_members is not None and known.num_members not in (None, num_members):
        problems.append(
            Problem(
                thing=f"method {method!r}",
                cause=f"merges {known.num_members} {words.members} {num_members}",
                remedy=words.change_members,
                where=where(("method",)),
            )
        )
    for name, cause, remedy in option_complaints(options, known.options, groups, num_members or 0):
        place = where(("options", name))
        shown = name.partition("@")[0] if place else name
        thing = f"option {shown!r} of {method!r}"
        problems.append(Problem(thing=thing, cause=cause, remedy=remedy, where=place))
    return problems
