"""Over-correction: has integration torn apart cells of one batch that lay together before?"""

# C cells, D dimensions, K neighbours

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cytoray.evaluation.inputs import code_names, finite_points
from cytoray.evaluation.integration.neighbours import Float64, find_neighbours

NUM_NEIGHBOURS = 30
LEAST_OVERLAP = 0.5
FEWEST_WARNED = 30  # cells of a batch from which its overlap gives a warning: below, it is an average of too few
_CELLS_PER_NEIGHBOUR = 3  # a batch of fewer has fewer neighbours, as with all its cells the overlap is 1 by itself


@dataclass(frozen=True)
class NeighbourOverlap:
    """Share of each cell's nearest cells of its own batch that are still among the nearest after integration."""

    mean: float | None  # over cells; None if no batch has four cells
    per_batch: dict[str, float | None]
    warning: str | None  # if the overlap of a batch of 30 cells or more is below one half

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain dictionaries, strings and numbers, ready for ``json.dumps``."""
        return asdict(self)


def neighbour_overlap(
    before: npt.NDArray[np.floating],
    after: npt.NDArray[np.floating],
    *,
    batches: Sequence[str],
    num_neighbours: int = NUM_NEIGHBOURS,
) -> NeighbourOverlap:
    """Compare neighbourhoods within each batch between the embeddings ``before`` (C, D) and ``after`` (C, D').

    Batches are no difference between cells of one batch, so a correction has no reason to rearrange these; below
    one half it is likely to have removed biology, and ``warning`` names the batches of 30 cells or more. A batch of
    fewer than 91 cells is compared by a third of its cells, one of fewer than 4 not at all.
    """
    codes, names = code_names(batches, "batch label")
    was, now = finite_points(before, "embedding before integration"), finite_points(after, "embedding")
    assert len(was) == len(now) == len(codes), f"{len(was)} cells before, {len(now)} after, {len(codes)} batch labels"
    overlaps = np.full(len(codes), np.nan)
    for batch in range(len(names)):
        cells = np.flatnonzero(codes == batch)
        num = min(num_neighbours, (len(cells) - 1) // _CELLS_PER_NEIGHBOUR)
        if num:
            overlaps[cells] = _shared(was[cells], now[cells], num)
    means = {name: _mean(overlaps[codes == batch]) for batch, name in enumerate(names)}
    large = {name: means[name] for batch, name in enumerate(names) if (codes == batch).sum() >= FEWEST_WARNED}
    return NeighbourOverlap(_mean(overlaps[~np.isnan(overlaps)]), means, _warning(large))


def _shared(was: Float64, now: Float64, num: int) -> Float64:
    """Return for each cell the share of its ``num`` nearest that are the same in both embeddings."""
    first, second = (find_neighbours(points, num_neighbours=num + 1).indices[:, 1:] for points in (was, now))
    both = np.sort(np.concatenate([first, second], axis=1), axis=1)
    return np.asarray((both[:, 1:] == both[:, :-1]).sum(axis=1) / num)


def _mean(overlaps: Float64) -> float | None:
    return None if len(overlaps) == 0 or np.isnan(overlaps).any() else float(overlaps.mean())


def _warning(means: dict[str, float | None]) -> str | None:
    low = {name: mean for name, mean in means.items() if mean is not None and mean < LEAST_OVERLAP}
    if not low:
        return None
    named = ", ".join(f"{name} {mean:.2f}" for name, mean in sorted(low.items(), key=lambda item: item[1])[:5])
    return (
        f"Over-correction: in {len(low)} of {len(means)} batches, cells kept less than half of their nearest cells "
        f"of the same batch ({named}). Correct less, or use the embedding before integration."
    )
