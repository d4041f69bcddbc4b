"""Facts that a ledger keeps of its job besides trials: one typed property for each stored key.

A fact is one row of text. JSON is made and read here and nowhere else, so this file is the format
of the `facts` table, as `schema` is that of the others: ledgers of any age must be read, so a key
or a text that changes is a migration of `recycler.ledger.schema`. A property is called as its key.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

from recycler.errors import NotFoundError, Problem
from recycler.location import parse_location
from recycler.types import Checkpoint, Group, Objective, Pool, Score, Smoothed

if TYPE_CHECKING:
    from recycler.specs.space import SearchSpace

ELAPSED_SECONDS = "elapsed_seconds"
NamedPlace = tuple[str, str]  # (name, location) of a checkpoint


class FactStore(Protocol):
    """A table of texts by key, as a ledger is."""

    def fact(self, key: str) -> str | None: ...
    def set_fact(self, key: str, value: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFacts:
    """The job as far as a reader of its results needs it, without the job's files."""

    name: str
    dtype: str
    trials: int | None  # the budget
    objectives: tuple[Objective, ...]
    members: tuple[NamedPlace, ...]
    base: NamedPlace | None

    @property
    def pool(self) -> Pool:
        """The pool by name and location, without tensors."""
        return Pool(
            members=tuple(_unread(member) for member in self.members),
            base=_unread(self.base) if self.base else None,
        )

    def to_json(self) -> str:
        """Return the stored text."""
        data = {
            "name": self.name,
            "dtype": self.dtype,
            "trials": self.trials,
            "objectives": [_objective_data(objective) for objective in self.objectives],
            "members": self.members,
            "base": self.base,
        }
        return json.dumps(data)

    @classmethod
    def from_json(cls, text: str) -> JobFacts:
        """Read the stored text. Raises ValueError, TypeError or KeyError for a damaged one."""
        data = json.loads(text)
        return cls(
            name=data.get("name", ""),
            dtype=data["dtype"],
            trials=data.get("trials"),
            objectives=tuple(Objective(**objective) for objective in data["objectives"]),
            members=tuple((name, location) for name, location in data["members"]),
            base=(data["base"][0], data["base"][1]) if data["base"] else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamps:
    """Digests of everything that another run must share for its trials to count in this one."""

    checkpoints: Mapping[str, str]  # by name of the checkpoint: place, size and time of its files
    items: Mapping[str, str]  # by name of the suite
    engine: Mapping[str, str]  # name, dtype and ranks of the engine, in words


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """A forecast: the share of hypervolume that the next trials are expected to add."""

    after_trials: int
    next_trials: int
    expected_gain: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredProducts:
    """Inner products of the members' deltas, tensor by tensor, as the bytes that are kept."""

    tensors: tuple[str, ...]
    members: int
    upper: bytes  # zlib: (tensors, members * (members + 1) / 2) upper triangles, float64, "<f8"


class NoticeFacts(TypedDict, total=False):
    """Notices that hold now; a key is absent until the run has looked for the first time."""

    tradeoffs: list[str]  # sentences on benchmarks that do not trade off
    dead: list[str]  # names of uninformative objectives


class Facts:
    """Typed access to the facts of one ledger. A property that was never set is None or empty.

    Reading a damaged text raises whatever Python raises for it; the ledger's readers name the run.
    """

    def __init__(self, store: FactStore):
        self._store = store

    # ---------------------------------------------------------------- the job

    @property
    def job(self) -> JobFacts | None:
        """The job that the ledger belongs to; None before its first start."""
        text = self._store.fact("job")
        return JobFacts.from_json(text) if text else None

    @job.setter
    def job(self, job: JobFacts) -> None:
        self._store.set_fact("job", job.to_json())

    def require_job(self) -> JobFacts:
        """The job that the ledger belongs to. Raises NotFoundError before its first start."""
        job = self.job
        if job is None:
            raise NotFoundError(
                Problem(
                    thing="run", cause="was never started", remedy="recycler run job.yaml --dir RUN"
                )
            )
        return job

    @property
    def digests(self) -> dict[str, str] | None:
        """Digests by name of everything that must not change between two sessions of a run."""
        return self._read("digests")

    @digests.setter
    def digests(self, digests: Mapping[str, str]) -> None:
        self._write("digests", dict(digests))

    @property
    def stamps(self) -> Stamps | None:
        """Digests for later runs; None in ledgers older than warm starts."""
        stored = self._read("stamps")
        return None if stored is None else Stamps(**stored)

    @stamps.setter
    def stamps(self, stamps: Stamps) -> None:
        self._write("stamps", asdict(stamps))

    @property
    def earlier(self) -> tuple[str, ...]:
        """Earlier runs whose trials were taken, as the job names them."""
        return tuple(self._read("earlier") or ())

    @earlier.setter
    def earlier(self, runs: Sequence[str]) -> None:
        self._write("earlier", list(runs))

    # ---------------------------------------------------------------- the model of the search

    @property
    def space(self) -> SearchSpace | None:
        """The search space; None in ledgers of versions that did not keep it."""
        stored = self._read("space")
        return None if stored is None else _space(stored)

    @space.setter
    def space(self, space: SearchSpace) -> None:
        self._write("space", asdict(space))

    @property
    def method(self) -> str:
        """The merge method that is searched; "linear" where it was not kept."""
        return self._store.fact("method") or "linear"

    @method.setter
    def method(self, method: str) -> None:
        self._store.set_fact("method", method)

    @property
    def has_gram(self) -> bool:
        """True once the Gram matrix was measured, or was found not to be measurable."""
        return self._store.fact("gram") is not None

    @property
    def gram(self) -> list[list[float]] | None:
        """Gram matrix (K, K) of the members' deltas; None where there is none."""
        return self._read("gram")

    @gram.setter
    def gram(self, gram: Sequence[Sequence[float]] | None) -> None:
        self._write("gram", gram)

    @property
    def delta_products(self) -> StoredProducts | None:
        """Inner products of the members' deltas by tensor; None unless a cost asked for them."""
        stored = self._read("delta products")
        if stored is None:
            return None
        return StoredProducts(
            tensors=tuple(stored["tensors"]),
            members=stored["members"],
            upper=zlib.decompress(base64.b64decode(stored["upper"])),
        )

    @delta_products.setter
    def delta_products(self, products: StoredProducts) -> None:
        packed = base64.b64encode(zlib.compress(products.upper)).decode()
        self._write(
            "delta products",
            {"tensors": products.tensors, "members": products.members, "upper": packed},
        )

    def refinement(self, trial: int) -> dict[str, Any] | None:
        """Settings, steps and losses that made a refined trial; None for any other trial."""
        return self._read(f"refined {trial}")

    def set_refinement(self, trial: int, how: Mapping[str, Any]) -> None:
        """Keep settings, steps and losses that make trial number `trial`."""
        self._write(f"refined {trial}", dict(how))

    # ---------------------------------------------------------------- progress and results

    @property
    def preview(self) -> dict[str, Any] | None:
        """The preview from the members alone, as one JSON document; None before they are scored."""
        return self._read("preview")

    @preview.setter
    def preview(self, preview: Mapping[str, Any]) -> None:
        self._write("preview", dict(preview))

    @property
    def outlook(self) -> Outlook | None:
        """The last forecast of gain; None before the first."""
        stored = self._read("outlook")
        return None if stored is None else Outlook(**stored)

    @outlook.setter
    def outlook(self, outlook: Outlook) -> None:
        self._write("outlook", asdict(outlook))

    @property
    def notices(self) -> NoticeFacts:
        """Notices that hold now."""
        stored: NoticeFacts | None = self._read("notices")
        return stored or NoticeFacts()

    @notices.setter
    def notices(self, notices: NoticeFacts) -> None:
        self._write("notices", notices)

    @property
    def smoothed(self) -> Smoothed:
        """Posterior scores; none before the search has ended."""
        stored = self._read("smoothed")
        if stored is None:
            return Smoothed()
        scores = {int(number): _scores(rows) for number, rows in stored["scores"].items()}
        return Smoothed(scores=scores, uninformative=tuple(stored["dead"]))

    @smoothed.setter
    def smoothed(self, smoothed: Smoothed) -> None:
        scores = {
            number: [[score.objective, score.value, score.stderr, score.n] for score in scores]
            for number, scores in smoothed.scores.items()
        }
        self._write("smoothed", {"scores": scores, "dead": smoothed.uninformative})

    @property
    def elapsed_seconds(self) -> float:
        """Wall time of all sessions so far, kept to a tenth of a second."""
        return float(self._store.fact(ELAPSED_SECONDS) or 0.0)

    @elapsed_seconds.setter
    def elapsed_seconds(self, seconds: float) -> None:
        self._store.set_fact(ELAPSED_SECONDS, f"{seconds:.1f}")

    @property
    def finished(self) -> int | None:
        """The budget of trials that the run was last finished with; None before."""
        text = self._store.fact("finished")
        return None if text is None else int(text)

    @finished.setter
    def finished(self, trials: int) -> None:
        self._store.set_fact("finished", str(trials))

    # ---------------------------------------------------------------- JSON

    def _read(self, key: str) -> Any:
        """The decoded value of a key; None where it is absent (or null)."""
        text = self._store.fact(key)
        return None if text is None else json.loads(text)

    def _write(self, key: str, value: Any) -> None:
        self._store.set_fact(key, json.dumps(value))


def _unread(place: NamedPlace) -> Checkpoint:
    name, location = place
    return Checkpoint(name=name, location=parse_location(location), tensors={}, config={})


def _objective_data(objective: Objective) -> dict[str, Any]:
    data: dict[str, Any] = {
        "suite": objective.suite,
        "task": objective.task,
        "metric": objective.metric,
        "direction": objective.direction,
        "floor": objective.floor,
    }
    if objective.bound_only:
        data["bound_only"] = True
    return data


def _scores(rows: Iterable[Sequence[Any]]) -> tuple[Score, ...]:
    return tuple(
        Score(objective=name, value=value, stderr=stderr, n=n) for name, value, stderr, n in rows
    )


def _space(stored: Mapping[str, Any]) -> SearchSpace:
    # numpy and pydantic come with it, which `recycler status` does without
    from recycler.specs.space import SearchSpace

    return SearchSpace(
        groups=tuple(Group(**group) for group in stored["groups"]),
        members=tuple(stored["members"]),
        low=tuple(stored["low"]),
        high=tuple(stored["high"]),
        total=tuple(stored["total"]),
        max_nonzero=stored["max_nonzero"],
        options=tuple((name, (low, high)) for name, (low, high) in stored["options"]),
    )
