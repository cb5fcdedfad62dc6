"""Compare the networks of two groups of cells: which edges are in one and not in the other."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import norm

from cytoray.errors import ConfigError
from cytoray.evaluation.networks.correlation import fisher_difference
from cytoray.evaluation.networks.programs import adjust
from cytoray.tasks.networks.network import GeneNetwork


def compare_groups(network: GeneNetwork, first: str, second: str) -> pd.DataFrame:
    """Return the edges that were kept of both groups, the most significant difference of correlations first.

    Columns: tf, target, weight and correlation of each group, difference (of correlations, first minus second), z by
    Fisher's transformation, q_value (Benjamini-Hochberg). Raises ConfigError for an unknown group, or twice the same.
    """
    if first == second:
        raise ConfigError(f"{first!r} is compared with itself.", remedy="Name two groups.")
    columns = ["tf", "target", "weight", "correlation"]
    parts = [network.group_edges(group)[columns] for group in (first, second)]
    table = parts[0].merge(parts[1], on=columns[:2], suffixes=("_first", "_second"))
    one, two = (table[f"correlation_{name}"].to_numpy(np.float32) for name in ("first", "second"))
    sizes = network.about["groups"]
    table["difference"] = one - two
    table["z"] = fisher_difference(one, two, num_first=sizes[first], num_second=sizes[second])
    table["q_value"] = adjust(2 * norm.sf(np.abs(table["z"].to_numpy(np.float64))))
    order = np.lexsort((table["target"], table["tf"], -np.abs(table["z"])))
    return table.iloc[order].reset_index(drop=True)
