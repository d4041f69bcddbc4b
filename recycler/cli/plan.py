"""recycler plan."""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from pathlib import Path


def plan(arguments: argparse.Namespace) -> None:
    """recycler plan JOB: what it asks, what it costs, what it can tell apart; starts nothing."""
    from recycler.plan import plan_job, plan_text, read_earlier
    from recycler.prepare import prepare
    from recycler.runs import open_ledger

    prepared = prepare(Path(arguments.job), data_folders=[Path(folder) for folder in arguments.data], look_inside=False)
    earlier = None
    if arguments.dir:
        with closing(open_ledger(arguments.dir)) as ledger:
            earlier = read_earlier(ledger, prepared)
    found = plan_job(prepared, earlier)
    print(json.dumps(found, indent=2) if arguments.json else plan_text(found))
