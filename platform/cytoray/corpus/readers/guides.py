"""Turn a table of guide counts into a column of perturbations: the targets that dominate each cell's guides."""

# C cells, F guides, P targets

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray.corpus.config import GuideConfig
from cytoray.tokens.perturbations import CONTROL_WORDS

UNASSIGNED = "unassigned"
CONTROL = "control"


def guide_targets(guides: Sequence[str], config: GuideConfig) -> list[str]:
    """Return the target of each guide (F,): what ``target_pattern`` finds in its name; CONTROL of control guides."""
    pattern = re.compile(config.target_pattern)
    found = []
    for guide in guides:
        match = pattern.fullmatch(guide)
        target = guide if match is None else match.group(1)
        is_control = target in config.controls or guide in config.controls or target.lower() in CONTROL_WORDS
        found.append(CONTROL if is_control else target)
    return found


def assign_targets(counts: sparse.csr_matrix, targets: Sequence[str], config: GuideConfig) -> list[str]:
    """Return the perturbation of each cell (C,), such as ``STAT1`` or ``IRF1+STAT1``.

    A cell is assigned the fewest targets, at most ``max_targets``, that have together more than ``min_share`` of its
    guide counts and each at least ``min_counts``; otherwise it is UNASSIGNED. A control guide beside a target is not
    named.
    """
    names = sorted(set(targets))
    places = {name: place for place, name in enumerate(names)}
    columns = [places[target] for target in targets]
    one_hot = sparse.csr_matrix((np.ones(len(targets)), (np.arange(len(targets)), columns)), (len(targets), len(names)))
    sums_CP = np.asarray((counts @ one_hot).todense(), np.float64)
    return [_assign(row, names, config) for row in sums_CP]


def _assign(sums_P: npt.NDArray[np.float64], names: Sequence[str], config: GuideConfig) -> str:
    order = np.argsort(-sums_P, kind="stable")[: config.max_targets]
    order = order[sums_P[order] >= config.min_counts]
    enough = np.flatnonzero(np.cumsum(sums_P[order]) > config.min_share * sums_P.sum())
    if not len(enough):
        return UNASSIGNED
    chosen = sorted(names[place] for place in order[: enough[0] + 1])
    return "+".join(name for name in chosen if name != CONTROL) or CONTROL
