"""Find the YAML files that users copy and edit: beside the job, else among those that ship."""

from __future__ import annotations

import sys
from pathlib import Path

from recycler.errors import NotFoundError, Problem, did_you_mean

# a checkout, then an installed wheel
ROOTS = (Path(__file__).resolve().parents[2], Path(sys.prefix) / "share" / "recycler")


def shipped_file(folder: str, name: str, *, beside: Path | None = None, where: str = "") -> Path:
    """The file of a name: a path (relative to `beside`), or a bare name from `folder`.

    The ending .yaml may be left out. Raises NotFoundError that lists the shipped names.
    """
    near = beside or Path()
    choices = [near / name]
    if not Path(name).is_absolute():
        choices.append(near / f"{name}.yaml")
    for root in ROOTS:
        for place in (root, root / folder):
            choices += [place / name, place / f"{name}.yaml"]
    for path in choices:
        if path.is_file():
            return path
    known = sorted({path.stem for root in ROOTS for path in (root / folder).glob("*.yaml")})
    raise NotFoundError(
        Problem(
            thing=f"{folder} entry {name!r}",
            cause="no such file",
            remedy=did_you_mean(Path(name).stem, known),
            where=where,
        )
    )
