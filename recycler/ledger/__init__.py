"""The ledger: a durable record of everything that happened in a job.

SQLite by default, Postgres when several machines must see it.
"""

from recycler.ledger.ledger import Ledger

__all__ = ["Ledger"]
