"""The share of CPU cores for each worker, when nodes differ."""

from __future__ import annotations

from collections.abc import Sequence

MIN_SHARE = 0.25  # of a core: more workers than that wait for nodes to join


def cpu_share(cores: Sequence[float], num_workers: int) -> float:
    """The largest number of cores per worker such that `num_workers` fit, each on one node.

    `cores` are those of each node. 1.0 while no node has any: nodes may join later.
    """
    shares = {node / count for node in cores if node > 0 for count in range(1, num_workers + 1)}
    fitting = [
        share
        for share in shares
        if share >= MIN_SHARE and sum(int(node / share + 1e-9) for node in cores) >= num_workers
    ]
    return max(map(_rounded, fitting), default=MIN_SHARE) if shares else 1.0


def _rounded(share: float) -> float:
    """Down to what Ray can count: whole cores, or ten-thousandths of one."""
    return float(int(share)) if share >= 1 else int(share * 10_000) / 10_000
