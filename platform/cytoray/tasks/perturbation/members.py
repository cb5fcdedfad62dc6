"""Sources of predictions beside the screen itself: views of genes, and effects that a generator predicts."""

# Q targets, G genes, C control cells, L genes that the generator predicts

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cytoray.evaluation.perturbation.views import View

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class GeneratorUse:
    """A generator by its digest, and the control cells that it predicts from."""

    uri: str
    weights: str  # SHA-256 of weights, vocabulary and conditions
    controls: npt.NDArray[np.float32]  # (C, L) log1p of counts per 10,000
    columns: npt.NDArray[np.int64]  # (L,) of the genes of the screen that it predicts


@dataclass(frozen=True, eq=False)
class Generated:
    """Effects (G,) that a generator predicts, by target, without those that it was trained on; NaN: not predicted."""

    use: GeneratorUse
    effects: Mapping[str, Float64]


@dataclass(frozen=True, eq=False)
class Members:
    """The views by name, and a generator's effects, if there is a generator."""

    views: Mapping[str, View]
    generated: Generated | None = None


def effects_of(effects: Mapping[str, Float64], targets: Sequence[str], *, num_genes: int) -> Float64:
    """Return effects (Q, G) by target; NaN for those that are missing."""
    missing = np.full(num_genes, np.nan)
    return np.stack([effects.get(target, missing) for target in targets])
