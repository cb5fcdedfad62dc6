"""The definition of a cell's tokens in plain NumPy, one cell at a time: np.quantile and loops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cytoray.tokens.keys import combine


@dataclass
class Draw:
    """What the random words of a cell's genes decide."""

    kept: list[int]  # places of the sampled genes
    bins: np.ndarray  # of every gene
    words: list[int]


def open_bins(values: np.ndarray, n_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """For each value, how many edges are smaller and how many are not greater."""
    edges = np.quantile(values, np.linspace(0, 1, n_bins - 1))
    return np.digitize(values, edges, right=True), np.digitize(values, edges)


def draw(gene_ids: np.ndarray, values: np.ndarray, key: tuple[int, ...], *, n_bins: int, max_genes: int) -> Draw:
    """Bins and sample of a cell whose randomness is ``combine(*key, gene id)``."""
    words = combine(*key, gene_ids).tolist()
    below, upto = open_bins(values, n_bins)
    ties = np.array([word % 2**24 for word in words])
    bins = upto - ((ties * (upto - below)) >> 24)
    return Draw(choose([word >> 24 & 0xFFFFF for word in words], max_genes), bins, words)


def choose(numbers: list[int], num_wanted: int) -> list[int]:
    """Knuth's Algorithm S: the places of ``num_wanted`` among the numbers of 20 bits, or all."""
    chosen: list[int] = []
    for place, number in enumerate(numbers):
        if number * (len(numbers) - place) < (num_wanted - len(chosen)) << 20:
            chosen.append(place)
    return chosen
