"""Costs of merges as functions of their weights, measured once a run and kept in its ledger."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recycler.ledger import Ledger
from recycler.ledger.facts import StoredProducts
from recycler.objectives.costs import Costs, DeltaProducts, costs
from recycler.pool.geometry.delta_products import delta_products
from recycler.types import Objective, Pool


def measured_costs(ledger: Ledger, objectives: Sequence[Objective], pool: Pool) -> Costs:
    """The costs of a run.

    Where distances are asked for the whole pool is read once; later sittings find the figures in
    the ledger.
    """
    has_distance = any(objective.metric == "distance" for objective in costs(objectives))
    if has_distance and ledger.facts.delta_products is None:
        ledger.facts.delta_products = stored_products(delta_products(pool))
    return read_costs(ledger, objectives)


def read_costs(ledger: Ledger, objectives: Sequence[Objective]) -> Costs:
    """The costs of a run as its ledger knows them."""
    stored = ledger.facts.delta_products
    return Costs(costs(objectives), products_from(stored) if stored else None)


def stored_products(products: DeltaProducts) -> StoredProducts:
    """Inner products as the ledger keeps them, bit for bit."""
    members = products.table.shape[1]
    upper = products.table[:, *np.triu_indices(members)].astype("<f8")
    return StoredProducts(tensors=products.tensors, members=members, upper=upper.tobytes())


def products_from(stored: StoredProducts) -> DeltaProducts:
    """Inner products (tensors, members, members) from their stored upper triangles."""
    members, tensors = stored.members, stored.tensors
    rows, columns = np.triu_indices(members)
    upper = np.frombuffer(stored.upper, dtype="<f8").reshape(len(tensors), -1)
    table = np.zeros((len(tensors), members, members))
    table[:, rows, columns] = table[:, columns, rows] = upper
    return DeltaProducts(tensors=tensors, table=table)
