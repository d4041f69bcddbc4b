"""Costs of merges as functions of their weights, measured once a run and kept in its ledger."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence

import numpy as np

from recycler.ledger import Ledger
from recycler.objectives.costs import Costs, DeltaProducts, costs
from recycler.pool.geometry.delta_products import delta_products
from recycler.types import Objective, Pool

# the ledger's fact: names of tensors, number of members, and compressed float64 upper triangles
PRODUCTS = "delta products"


def measured_costs(ledger: Ledger, objectives: Sequence[Objective], pool: Pool) -> Costs:
    """The costs of a run.

    Where distances are asked for the whole pool is read once; later sittings find the figures in
    the ledger.
    """
    if ledger.fact(PRODUCTS) is None and any(
        objective.metric == "distance" for objective in costs(objectives)
    ):
        ledger.set_fact(PRODUCTS, write_products(delta_products(pool)))
    return read_costs(ledger, objectives)


def read_costs(ledger: Ledger, objectives: Sequence[Objective]) -> Costs:
    """The costs of a run as its ledger knows them."""
    stored = ledger.fact(PRODUCTS)
    return Costs(costs(objectives), read_products(stored) if stored else None)


def write_products(products: DeltaProducts) -> str:
    """Inner products as text, bit for bit."""
    members = products.table.shape[1]
    upper = products.table[:, *np.triu_indices(members)].astype("<f8")
    return json.dumps(
        {
            "tensors": products.tensors,
            "members": members,
            "upper": base64.b64encode(zlib.compress(upper.tobytes())).decode(),
        }
    )


def read_products(text: str) -> DeltaProducts:
    stored = json.loads(text)
    members, tensors = stored["members"], tuple(stored["tensors"])
    rows, columns = np.triu_indices(members)
    table = np.zeros((len(tensors), members, members))
    table[:, rows, columns] = table[:, columns, rows] = np.frombuffer(
        zlib.decompress(base64.b64decode(stored["upper"])), dtype="<f8"
    ).reshape(len(tensors), -1)
    return DeltaProducts(tensors=tensors, table=table)
