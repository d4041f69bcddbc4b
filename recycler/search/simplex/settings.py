"""Settings of a SimplexGP proposal."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Numbers that shape a proposal. Each was measured in benchmarks/search/RESULTS.md."""

    num_draws: int = 16
    """Joint posterior draws over which a gain is averaged."""
    num_blind: int = 64
    """Random points drawn for one proposal that no model is asked about."""
    num_candidates: int = 400
    """Points whose gain is computed in the first round."""
    num_refined: int = 160
    """Points in each later round, near the best so far."""
    num_best: int = 12
    """Points that a later round starts from."""
    num_sparsified: int = 80
    """Points with fewer members, where that may be worth something in itself."""
    reaches: tuple[float, ...] = (0.6, 0.4, 0.2)
    """Reach of each later round, ever nearer."""
    ahead: tuple[float, ...] = (1.0, 0.6, 0.3, 1.0, 0.6, 0.3)
    """Reaches of the rounds in which the predicted front is looked for."""
    num_ahead: int = 300
    """Points tried in each of these rounds."""
    max_ahead: int = 60
    """Points kept of the predicted front."""
    max_known: int = 80
    """Trials drawn jointly with the candidates."""
    max_pending: int = 64
    """Pending points drawn jointly with the candidates."""
    patience: int = 4
    """Vertices that may be worse than the soup at everything before the others are left out."""
    margins: tuple[float, ...] = (0.1, 1.0)
    """Distances of the reference point below the front's nadir, as shares of the front's range.

    They take turns by trial number. At 0.1, points that extend the front beyond its own nadir
    count nothing, so an early front around the knee confirms itself; a wide margin for every
    trial spends trials on ends that hardly trade off.
    """


SETTINGS = Settings()
