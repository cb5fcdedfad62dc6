"""Boosted trees that predict a target from all transcription factors: the gain of a factor's splits is its weight.

Targets have unit variance, so gains compare between targets: those of a target that no factor predicts are small. The
idea of GENIE3 and GRNBoost2, with fewer and larger steps. Results depend on nothing but the values, the names of cells
and target and the seed: blocks may be computed anywhere, in any order.
"""

# P pools of cells, T transcription factors, B targets of a block

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from cytoray.evaluation.networks.cells import SMALLEST, Float32, Float64, Int64


@dataclass(frozen=True)
class TreeOptions:
    """How trees are boosted."""

    num_trees: int = 100
    learning_rate: float = 0.1
    factor_share: float = 0.2  # of the factors that each tree may use
    cell_share: float = 0.8  # of the pools that each tree sees
    num_leaves: int = 8
    smallest_leaf: int = 20  # pools
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Factors:
    """Values of T transcription factors, binned once for all targets."""

    values: Float32  # (P, T)
    names: tuple[str, ...]
    options: TreeOptions = field(default_factory=TreeOptions)
    cells: str = ""  # a name of the cells: trees of other cells draw other factors, so that chance does not agree

    @cached_property
    def _binned(self) -> Any:
        return self._bin(np.arange(len(self.names)))

    def importances(self, targets_PB: Float32, names: Sequence[str]) -> Float32:
        """Return each factor's gain in the trees of each target per pool, (T, B): 0 for the target itself."""
        found = np.zeros((len(self.names), len(names)), np.float32)
        rows = {name: row for row, name in enumerate(self.names)}
        for column, name in enumerate(names):
            values = _standardised(targets_PB[:, column])
            own = rows.get(name)
            if own is None:
                found[:, column] = self._boost(self._binned, values, name)
                continue
            others = np.delete(np.arange(len(self.names)), own)
            if len(others):
                found[others, column] = self._boost(self._bin(others), values, name)
        return found

    def _bin(self, columns: Int64) -> Any:
        import lightgbm

        values = self.values if len(columns) == len(self.names) else self.values[:, columns]
        return lightgbm.Dataset(values, params=self._params(0), free_raw_data=False).construct()

    def _boost(self, binned: Any, values: Float32, name: str) -> Float64:
        import lightgbm

        if not np.ptp(values) > 0:
            return np.zeros(binned.num_feature())
        binned.set_label(values)
        seed = zlib.crc32(f"{self.options.seed} {self.cells} {name}".encode()) % 2**31
        booster = lightgbm.train(self._params(seed), binned, self.options.num_trees)
        gains: Float64 = np.asarray(booster.feature_importance("gain"), np.float64)
        return gains / len(values)

    def _params(self, seed: int) -> dict[str, Any]:
        options = self.options
        return {
            "objective": "regression", "boost_from_average": True, "seed": seed, "deterministic": True,
            "force_col_wise": True, "num_threads": 1, "verbosity": -1, "feature_pre_filter": False,
            "learning_rate": options.learning_rate, "num_leaves": options.num_leaves, "max_bin": 63,
            "min_data_in_leaf": min(options.smallest_leaf, max(1, len(self.values) // 10)),
            "feature_fraction": options.factor_share, "bagging_fraction": options.cell_share, "bagging_freq": 1,
        }  # fmt: skip


def _standardised(values: Float32) -> Float32:
    """Return values with mean 0 and variance 1; 0 if they do not differ."""
    centred = values - values.mean(dtype=np.float64)
    spread = float(centred.std())
    return np.ascontiguousarray(centred / spread if spread > SMALLEST else np.zeros_like(centred), np.float32)
