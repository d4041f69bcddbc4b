"""What happened, durably: the one truth of a job.

SQLite by default, Postgres when several machines must see it.
"""

from recycler.ledger.ledger import Ledger

__all__ = ["Ledger"]
