"""Exports: which trial, in which dtype, to where.

Each is a process of its own, and a small file beside its log says what was ordered.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recycler.digest import digest
from recycler.errors import NotFoundError, Problem, RecyclerError, UsageError
from recycler.export.export import MANIFEST
from recycler.export.place import refuse_in_pool
from recycler.io.atomic import write_atomic
from recycler.location import parse_location
from recycler.pool.storage.bucket import split_url
from recycler.results.front import choose
from recycler.service import processes
from recycler.service.orders import DESTINATION, EXPORT_ID, BusyError, Order, refuse_too_many
from recycler.service.processes import Processes
from recycler.service.store import EXPORTS, Run, Store
from recycler.types import Trial

UNKNOWN: dict[str, Any] = {"num_bytes": None, "weights_digest": None, "verified": False}


class Exports:
    """Exports of runs into their own folders, or below `place`, a folder or bucket prefix."""

    def __init__(self, store: Store, started: Processes, place: str | None = None):
        self._store, self._processes = store, started
        self.place = _checked_place(place, store.root) if place else None

    def order(
        self, run: Run, which: str, dtype: str | None, destination: str | None
    ) -> tuple[Order, Trial]:
        """Resolve what is asked for.

        `which` is a number, knee or best:OBJECTIVE. Raises UsageError, for a place in the run's own
        pool too, and NotFoundError.
        """
        trial = choose(self._store.snapshot(run).front, which)
        order = Order(
            trial=trial.number,
            dtype=None if dtype == trial.recipe.dtype else dtype,
            destination=destination,
        )
        refuse_in_pool(run.named, self.target(run, order))
        return order, trial

    def target(self, run: Run, order: Order) -> str:
        """Folder or URL of an export, for `--to`.

        Raises UsageError for a destination that leads out of the export root.
        """
        if order.destination is None:
            return str(run.folder / EXPORTS / order.id)
        if self.place is None:
            raise UsageError(
                Problem(
                    thing="destination",
                    cause="this service writes exports with their runs only",
                    remedy="Leave it out, or start recycler serve with --exports DIR or URL",
                )
            )
        if not re.fullmatch(DESTINATION, order.destination, re.ASCII) or "\n" in order.destination:
            raise UsageError(
                Problem(
                    thing="destination",
                    cause="is not one to four plain words joined by /",
                    remedy="Write one such as math-and-code/knee",
                )
            )
        if parse_location(self.place).is_url:
            return f"{self.place}/{order.destination}"
        root, path = Path(self.place), Path(self.place) / order.destination
        if path.is_symlink() or not path.parent.resolve().is_relative_to(root):
            raise UsageError(
                Problem(
                    thing="destination",
                    cause="leads out of the export folder by a link",
                    remedy="Give another one",
                )
            )
        holder = next(
            (
                parent
                for parent in path.parents
                if parent.is_relative_to(root) and (parent / MANIFEST).exists()
            ),
            None,
        )
        if holder is not None:
            raise UsageError(
                Problem(
                    thing=f"destination {order.destination!r}",
                    cause=f"lies inside an exported model, {holder.relative_to(root)}",
                    remedy="Give one beside it",
                )
            )
        return str(path)

    def start(self, run: Run, order: Order, trial: Trial) -> dict[str, Any]:
        """Start it; the same again changes nothing.

        Raises BusyError when the destination holds another model, or too much runs.
        """
        if self._done(run, order) is None and not self._processes.alive(f"{run.id}/{order.id}"):
            target = self.target(run, order)
            is_folder = not parse_location(target).is_url
            if order.destination and is_folder and Path(target).exists():
                raise BusyError(
                    Problem(
                        thing=f"destination {order.destination!r}",
                        cause="holds something else already",
                        remedy="Give another one",
                    )
                )
            self._refuse_nested(order)
            refuse_too_many(self._processes)
            write_atomic(self._record(run, order.id), json.dumps(asdict(order)))
            self._processes.start(
                f"{run.id}/{order.id}",
                processes.as_python([*self.words(run, order), "--json"]),
                self._log(run, order.id),
                self._store.root,
            )
        return self.document(run, order.id)

    def _refuse_nested(self, order: Order) -> None:
        """Raise BusyError when another export lies around or inside this destination.

        Exports of this root that are under way, or finished in the bucket.
        """
        for record in (
            sorted(self._store.root.glob(f"*/{EXPORTS}/trial-*.json")) if order.destination else ()
        ):
            try:
                run, other = (
                    self._store.run(record.parent.parent.name),
                    Order(**json.loads(record.read_text())),
                )
                is_nested = (
                    any(
                        f"{inner.destination}/".startswith(f"{outer.destination}/")
                        for inner, outer in ((order, other), (other, order))
                    )
                    and order.destination != other.destination
                )
                is_there = is_nested and (
                    self._processes.alive(f"{run.id}/{other.id}")
                    or parse_location(str(self.place)).is_url
                    and self._done(run, other) is not None
                )
            except (
                OSError,
                ValueError,
                TypeError,
                AttributeError,
                RecyclerError,
            ):  # a damaged record, or one below another root
                continue
            if is_there:
                raise BusyError(
                    Problem(
                        thing=f"destination {order.destination!r}",
                        cause=f"and that of another export, {other.destination}, lie in each other",
                        remedy="Give one beside it",
                    )
                )

    def words(self, run: Run, order: Order) -> list[str]:
        """The command line that does the same."""
        return [
            "export",
            run.named,
            "--trial",
            str(order.trial),
            *(["--dtype", order.dtype] if order.dtype else []),
            "--to",
            self.target(run, order),
        ]

    def preview(self, run: Run, order: Order, trial: Trial) -> dict[str, Any]:
        """Destination of an export and its command line.

        Something that is there already is found when it starts.
        """
        target = self.target(run, order)
        return {
            "id": order.id,
            "to": target,
            "title": target.rstrip("/").rsplit("/", 1)[-1],
            "dtype": order.recipe(trial).dtype,
            "as_scored": order.dtype is None,
            "command": shlex.join(["recycler", *self.words(run, order)]),
        }

    def documents(self, run: Run) -> list[dict[str, Any]]:
        found = []
        for path in sorted((run.folder / EXPORTS).glob("trial-*.log")):
            if re.fullmatch(EXPORT_ID, path.stem):
                try:
                    found.append(self.document(run, path.stem))
                except (
                    NotFoundError
                ) as error:  # a damaged record, or one of a trial that is not in this run
                    found.append(
                        {
                            "schema_version": 1,
                            "id": path.stem,
                            "to": "",
                            "title": "",
                            "dtype": "",
                            "as_scored": False,
                            "command": "",
                            **UNKNOWN,
                            "trial": int(path.stem.split("-")[1]),
                            "state": "failed",
                            "reason": error.problems[0].cause,
                        }
                    )
        return found

    def document(self, run: Run, export_id: str) -> dict[str, Any]:
        """State of one export. Raises NotFoundError."""
        order = self._ordered(run, export_id)
        scored = self._store.snapshot(run).trial(order.trial)
        try:
            told = self.preview(run, order, scored)
        except UsageError as error:  # the service was started with another export root since
            told = {
                "id": export_id,
                "to": order.destination,
                "title": "",
                "dtype": order.recipe(scored).dtype,
                "as_scored": order.dtype is None,
                "command": "",
            }
            return {
                "schema_version": 1,
                **told,
                "trial": order.trial,
                **UNKNOWN,
                "state": "failed",
                "reason": str(error),
            }
        found = {"schema_version": 1, **told, "trial": order.trial, "reason": "", **UNKNOWN}
        if (done := self._done(run, order)) is not None:
            return {
                **found,
                "state": "done",
                **done,
                "verified": order.dtype is None
                and bool(scored.weights_digest)
                and scored.weights_digest == done["weights_digest"],
            }
        if self._processes.alive(f"{run.id}/{export_id}"):
            return {**found, "state": "running"}
        return {
            **found,
            "state": "failed",
            "reason": processes.said_last(self._log(run, export_id))
            or "the export was interrupted; ask again",
        }

    def _done(self, run: Run, order: Order) -> dict[str, Any] | None:
        """Size and digest of a finished export.

        From its manifest on disk, or from what the process printed of a bucket.
        """
        target = self.target(run, order)
        if parse_location(target).is_url:
            said = _last_json(processes.log_tail(self._log(run, order.id)))
            return (
                {name: said[name] for name in ("num_bytes", "weights_digest")}
                if said and said.get("folder") == target
                else None
            )
        try:
            manifest = json.loads((Path(target) / MANIFEST).read_text())
            asked_for, found = (
                manifest["recipe_digest"],
                {
                    "num_bytes": sum(file["num_bytes"] for file in manifest["files"].values()),
                    "weights_digest": manifest["weights_digest"],
                },
            )
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
        ):  # there is none, or it is damaged: no finished export
            return None
        return (
            found
            if asked_for == digest(order.recipe(self._store.snapshot(run).trial(order.trial)))
            else None
        )

    def _ordered(self, run: Run, export_id: str) -> Order:
        log, record = self._log(run, export_id), self._record(run, export_id)
        if not re.fullmatch(EXPORT_ID, export_id) or not log.is_file():
            raise NotFoundError(
                Problem(
                    thing=f"export {export_id[:80]!r}",
                    cause="unknown",
                    remedy="GET exports lists them",
                )
            )
        try:
            order = (
                Order(**json.loads(record.read_text()))
                if record.is_file()
                else Order(trial=int(export_id.split("-")[1]))
            )
            if order.id == export_id:
                return order
        except (OSError, ValueError, TypeError, AttributeError):
            pass
        raise NotFoundError(
            Problem(
                thing=f"export {export_id!r}",
                cause="its record is damaged, so that nobody knows what was ordered",
                remedy=f"Remove {record.name} and order it again",
            )
        )

    def _log(self, run: Run, export_id: str) -> Path:
        return run.folder / EXPORTS / f"{export_id}.log"

    def _record(self, run: Run, export_id: str) -> Path:
        return run.folder / EXPORTS / f"{export_id}.json"


def _checked_place(place: str, root: Path) -> str:
    """The export root without a slash at its end. Raises UsageError."""
    if parse_location(place).is_url and not place.startswith("file://"):
        split_url(place.rstrip("/"))
        return place.rstrip("/")
    folder = Path(place.removeprefix("file://")).resolve()
    if not folder.is_dir():
        raise UsageError(
            Problem(
                thing=f"--exports {place}",
                cause="is not a folder",
                remedy="Make it first, or give a bucket's URL",
            )
        )
    if root.is_relative_to(folder):
        raise UsageError(
            Problem(
                thing=f"--exports {place}",
                cause="holds the folder of runs",
                remedy="Give a folder of its own, such as one below it",
            )
        )
    return str(folder)


def _last_json(text: str) -> dict[str, Any] | None:
    """The JSON object that begins with a line `{` and ends the text; None when there is none."""
    try:
        found = json.loads(text[text.rfind("\n{\n") + 1 :])
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
