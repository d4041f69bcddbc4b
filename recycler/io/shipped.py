"""Find the YAML files that people copy and edit: beside the job first, then those that ship with
recycler.
"""

from __future__ import annotations

import sys
from pathlib import Path

from recycler.errors import NotFoundError, Problem, did_you_mean

ROOTS = (
    Path(__file__).resolve().parents[2],
    Path(sys.prefix) / "share" / "recycler",
)  # a checkout, then an installed wheel


def shipped_file(folder: str, name: str, *, beside: Path | None = None, where: str = "") -> Path:
    """The file that `name` means: a path (relative to `beside`), or a bare name from `folder`, with
    or without .yaml.

    Raises NotFoundError that lists the shipped names.
    """
    choices = (
        [Path(name)]
        if Path(name).is_absolute()
        else [(beside or Path()) / name, (beside or Path()) / f"{name}.yaml"]
    )
    for root in ROOTS:
        choices += [
            root / name,
            root / f"{name}.yaml",
            root / folder / name,
            root / folder / f"{name}.yaml",
        ]
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
