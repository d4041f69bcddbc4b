"""What the event stream costs: counted, not timed."""

import asyncio
import sys
import threading
from types import SimpleNamespace

import pytest

pytest.importorskip("fastapi", reason="needs recycler[service]")

from recycler.service import events
from recycler.service.events import MAX_CURSOR, MAX_RANGES, Cursor, Seen, spelled, stream, unseen
from recycler.types import Recipe, Trial
from service_runs import NAMES


def snapshot_of(number):
    recipe = Recipe(method="linear", members=NAMES, weights=((0.25,) * 4,), base="base")
    return SimpleNamespace(
        trials=tuple(
            Trial(number=index, kind="merge", state="FAILED", recipe=recipe)
            for index in range(number)
        )
    )


def lines_run(act):
    """How many lines of events.py run in `act`, comprehensions and loops included."""
    count = 0

    def trace(frame, event, _argument):
        nonlocal count
        if frame.f_code.co_filename != events.__file__:
            return None
        count += event == "line"
        return trace

    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(None)
    return count


def test_the_ids_of_twice_as_many_events_cost_twice_as_much():
    once, twice = (
        lines_run(
            lambda n=n: [
                str(cursor) for cursor in [Cursor()] for _ in unseen(snapshot_of(n), cursor)
            ]
        )
        for n in (300, 600)
    )
    assert once >= 300 and twice <= 2.1 * once


def test_an_id_that_was_made_is_as_short_as_what_is_seen():
    cursor, snapshot = Cursor(), snapshot_of(5000)
    assert max(len(str(cursor)) for _ in unseen(snapshot, cursor)) == len("0-4999;")


@pytest.mark.parametrize(
    "order", [range(50), range(49, -1, -1), [7, 5, 6, 4, 8, 30, 10, 9, 29, 31], [0, 2, 4, 1, 3]]
)
def test_ranges_hold_what_was_added_in_any_order(order):
    seen, numbers = Seen(), set()
    for number in order:
        seen.add(number)
        numbers.add(number)
        assert set(seen) == numbers and all(
            (other in seen) == (other in numbers) for other in range(52)
        )
        assert set(Seen.read(str(seen), 60)) == numbers


def test_an_id_holds_no_more_than_its_bound_and_a_longer_one_counts_as_nothing_seen():
    gaps = Cursor(range(10**7, 10**7 + 4 * MAX_RANGES, 2), range(10**7, 10**7 + 4 * MAX_RANGES, 2))
    assert (
        len(str(gaps)) <= MAX_CURSOR
        and len(set(Cursor.read(str(gaps), 10**8).closed)) == MAX_RANGES
    )
    most = ",".join(map(str, range(0, 2 * MAX_RANGES, 2)))
    assert len(set(Cursor.read(most, 10**4).closed)) == MAX_RANGES
    assert not set(Cursor.read(f"{most},9999", 10**4).closed)
    assert not set(Cursor.read(f"1;{'0' * MAX_CURSOR}", 10**4).closed)


def test_cursors_are_read_and_events_spelled_off_the_loop_s_thread(monkeypatch):
    where, loops = {"read": set(), "entry": set(), "cursor": set()}, []
    snapshot, status = snapshot_of(450), {"running": False, "state": "interrupted"}
    own_read, own_entry = Cursor.read, events.trial_entry

    def noted(name, act):
        def within(*arguments):
            where[name].add(threading.get_ident())
            return act(*arguments)

        return within

    monkeypatch.setattr(Cursor, "read", noted("cursor", own_read))
    monkeypatch.setattr(events, "trial_entry", noted("entry", own_entry))

    async def collect():
        loops.append(threading.get_ident())
        return [block async for block in stream(noted("read", lambda: (snapshot, status)), "0-9;")]

    text = "".join(asyncio.run(collect()))
    assert text.count("event: trial") == 440 and text.rstrip().endswith('"interrupted"')
    assert all(where.values()) and not set(loops) & set.union(*where.values())
    assert (
        len(list(spelled(snapshot, Cursor()))) == 3
    )  # blocks, so that the first events leave at once
