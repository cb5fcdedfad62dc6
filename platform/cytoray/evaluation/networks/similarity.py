"""Similarity of genes by the gene sets that they share, rare sets counting more."""

# T transcription factors, G targets, S gene sets

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import sparse

from cytoray.evaluation.networks.cells import SMALLEST, Float32


def set_similarity(tfs: Sequence[str], targets: Sequence[str], sets: Mapping[str, frozenset[str]]) -> Float32:
    """Return the cosine (T, G) of the sets of factor and target, each set weighted by log(all genes / its size)."""
    genes = sorted({*tfs, *targets})
    place = {gene: number for number, gene in enumerate(genes)}
    pairs = [(place[gene], column) for column, members in enumerate(sets.values()) for gene in members if gene in place]
    rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
    member = sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), (len(genes), len(sets)))
    sizes = np.array([len(members) for members in sets.values()], np.float64)
    total = len(frozenset().union(*sets.values()))
    weighted = member @ sparse.diags_array(np.log(max(total, 1) / np.maximum(sizes, 1)))
    lengths = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    units = sparse.csr_matrix(sparse.diags_array(1 / np.maximum(lengths, SMALLEST)) @ weighted)
    first, second = ([place[gene] for gene in names] for names in (tfs, targets))
    return np.asarray((units[first] @ units[second].T).todense(), np.float32)
