"""Views of genes: knowledge from outside the screen, from which the similarity of two targets follows.

view = view_of_sets("GO", {"interferon response": frozenset({"IFNGR1", "STAT1"})})
view.similarity(["IFNGR1"], ["STAT1", "MYC"])  # cosines (1, 2); a gene that the view does not know has 0
"""

# N genes of a view, F features, A and B genes that are compared

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import sparse

Float64 = npt.NDArray[np.float64]
FEWEST_MEMBERS, MOST_MEMBERS = 2, 2_500  # of a gene set
NUM_LOADINGS = 20
_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class View:
    """Features of N genes, each row of unit length or zero."""

    name: str
    genes: tuple[str, ...]  # (N,) in upper case
    features: sparse.csr_matrix  # (N, F)
    feature_names: tuple[str, ...] = ()  # (F,) of gene sets; empty for features without a name

    @cached_property
    def rows(self) -> dict[str, int]:
        """The row of each gene."""
        return {gene: row for row, gene in enumerate(self.genes)}

    def knows(self, gene: str) -> bool:
        """Return whether the view has features of a gene."""
        return gene.upper() in self.rows

    def similarity(self, first: Sequence[str], second: Sequence[str]) -> Float64:
        """Return the cosines (A, B) of two lists of genes."""
        return np.asarray((self._of(first) @ self._of(second).T).todense(), np.float64)

    def shared(self, first: str, second: str, *, num: int) -> list[str]:
        """Return names of the features that make two genes similar, the most important first."""
        if not self.feature_names:
            return []
        product = np.asarray(self._of([first]).multiply(self._of([second])).todense()).ravel()
        order = np.argsort(-product, kind="stable")[:num]
        return [self.feature_names[place] for place in order if product[place] > 0]

    def restricted(self, genes: Sequence[str]) -> View:
        """Return the view with the features alone that any of ``genes`` has: similarities to these stay the same.

        Features without a name are replaced by their coordinates in the space that these genes span, so that the
        embeddings of a large model take no more room than the known targets need.
        """
        if not self.feature_names and self.features.shape[1] > len(genes):
            axes = np.linalg.svd(self._of(genes).toarray(), full_matrices=False)[2]
            spanned = sparse.csr_matrix(self.features @ axes.T)
            return replace(self, features=spanned)
        there = np.flatnonzero(np.asarray(abs(self._of(genes)).sum(axis=0)).ravel() > 0)
        features = self.features[:, there].tocsr()
        kept = np.flatnonzero(np.diff(features.indptr) > 0)
        names = tuple(self.feature_names[place] for place in there) if self.feature_names else ()
        return replace(self, genes=tuple(self.genes[row] for row in kept), features=features[kept], feature_names=names)

    def _of(self, genes: Sequence[str]) -> sparse.csr_matrix:
        """Features of some genes; zeros for those that the view does not know."""
        places = [(row, self.rows[gene.upper()]) for row, gene in enumerate(genes) if gene.upper() in self.rows]
        rows, columns = ([pair[side] for pair in places] for side in (0, 1))
        picks = sparse.csr_matrix((np.ones(len(places)), (rows, columns)), (len(genes), len(self.genes)))
        return (picks @ self.features).tocsr()


def view_of_sets(name: str, members: Mapping[str, frozenset[str]]) -> View:
    """Return the view of a collection of gene sets: genes are similar if they share sets, small ones above all.

    A set counts with 1 / sqrt(its size).
    """
    sets = {key: genes for key, genes in members.items() if FEWEST_MEMBERS <= len(genes) <= MOST_MEMBERS}
    genes = sorted({gene.upper() for each in sets.values() for gene in each})
    place = {gene: row for row, gene in enumerate(genes)}
    rows, columns, values = [], [], []
    for column, each in enumerate(sets.values()):
        known = sorted({place[gene.upper()] for gene in each})
        rows += known
        columns += [column] * len(known)
        values += [len(known) ** -0.5] * len(known)
    matrix = sparse.csr_matrix((values, (rows, columns)), (len(genes), len(sets)))
    return View(name, tuple(genes), _unit(matrix), tuple(sets))


def view_of_vectors(name: str, genes: Sequence[str], vectors: npt.NDArray[np.floating]) -> View:
    """Return the view of vectors (N, D) of genes, without their mean: embeddings, or effects in another screen."""
    values = np.asarray(vectors, np.float64)
    centred = values - values.mean(axis=0) if len(values) > 1 else values
    distinct = {gene.upper(): row for row, gene in reversed(list(enumerate(genes)))}
    rows = sorted(distinct.values())
    return View(name, tuple(genes[row].upper() for row in rows), _unit(sparse.csr_matrix(centred[rows])))


def view_of_coexpression(name: str, genes: Sequence[str], expression: sparse.csr_matrix) -> View:
    """Return the view of loadings of genes (N,) on the leading components of control cells (C, N), standardised.

    Genes that do not vary are left out.
    """
    values = np.asarray(expression.todense(), np.float64)
    spread = values.std(axis=0)
    kept = np.flatnonzero(spread > _TINY).tolist()
    if len(kept) < 2 or len(values) < 3:
        return View(name, (), sparse.csr_matrix((0, 0)))
    standard = (values[:, kept] - values[:, kept].mean(axis=0)) / spread[kept]
    products = standard.T @ standard / len(standard)
    sizes, axes = np.linalg.eigh(products)
    top = np.argsort(-sizes)[: min(NUM_LOADINGS, len(kept) - 1)]
    loadings = axes[:, top] * np.sqrt(np.maximum(sizes[top], 0))
    return View(name, tuple(genes[place].upper() for place in kept), _unit(sparse.csr_matrix(loadings)))


def _unit(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1), np.float64).ravel())
    return (sparse.diags_array(1 / np.maximum(lengths, _TINY)) @ matrix).tocsr()
