"""From the gene names of a data set to ids of a vocabulary, and its cells with them."""

# C cells, N non-zero entries over all cells, G genes of the data set

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from cytoray.tokens.cells import Float32, Int32, Int64, SparseCells, UInt64
from cytoray.tokens.gene_table import Gene, IdType, guess_id_type, guess_species, load_human_genes, unversioned

How = Literal["symbol", "ensembl", "previous", "alias", "unknown"]

_UNKNOWN: tuple[int, How] = (-1, "unknown")


@dataclass(frozen=True, eq=False)
class GeneMapping:
    """Where each of a data set's G genes went, and how it was recognised."""

    ids: Int32  # (G,) vocabulary id, -1 where unknown
    how: dict[How, int]  # number of genes by the kind of name that matched
    unknown: tuple[str, ...]  # names without an id
    duplicates: dict[str, list[str]]  # token -> the several names that go onto it; their values are summed
    id_type: IdType
    species: str  # best guess, "unknown" if there is none

    def apply(
        self,
        values: npt.NDArray[Any],
        columns: npt.NDArray[np.integer],
        indptr: npt.NDArray[np.integer],
        cell_ids: UInt64,
    ) -> SparseCells:
        """Cells of a sparse row matrix (C, G) over the vocabulary; unknown genes and zeros are dropped.

        Values of genes that share a token are summed. ``values`` must be finite and not negative: check them before.
        """
        assert not len(values) or (values.min() >= 0 and np.isfinite(values).all()), "unchecked values"
        kept = (values != 0) & (self.ids[columns] >= 0)
        rows = np.repeat(np.arange(len(cell_ids)), np.diff(indptr))[kept]
        # Row and gene in one 64-bit word: a single sort brings cells and, within them, gene ids into order.
        places = (rows << 32) | self.ids[columns[kept]]
        order = np.argsort(places, kind="stable")
        places, sums = _sum_runs(places[order], values[kept][order])
        lengths = np.bincount(places >> 32, minlength=len(cell_ids))
        starts = np.concatenate([[0], np.cumsum(lengths)])
        return SparseCells((places & 0xFFFFFFFF).astype(np.int32), sums, starts, cell_ids)


def _sum_runs(places: Int64, values: npt.NDArray[Any]) -> tuple[Int64, Float32]:
    """Sum ``values`` over equal neighbours of the ascending ``places``."""
    first = np.flatnonzero(np.diff(places, prepend=-1))
    if len(first) == len(places):
        return places, values.astype(np.float32)
    return places[first], np.add.reduceat(values, first, dtype=np.float64).astype(np.float32)


class NameResolver:
    """Looks up gene names in one vocabulary, by way of the packaged human table where a name is not a token itself."""

    def __init__(self, index: Mapping[str, int]) -> None:
        """``index`` tells the id of each gene token; building the look-up tables takes half a second."""
        genes = load_human_genes()
        symbols = {name for gene in genes for name in gene.symbols}
        ids = [_token_of(gene, index, symbols) for gene in genes]
        self._index = index
        self._ensembl = {gene.ensembl_id: token for gene, token in zip(genes, ids, strict=True) if gene.ensembl_id}
        # A name that one kind knows, even if it is ambiguous there, is not looked up in the next kind.
        self._others = {
            **_unambiguous("alias", zip(ids, (gene.alias_symbols for gene in genes), strict=True)),
            **_unambiguous("previous", zip(ids, (gene.previous_symbols for gene in genes), strict=True)),
            **_unambiguous("previous", zip(ids, (gene.symbols for gene in genes), strict=True)),
            **_unambiguous("symbol", zip(ids, ((gene.approved_symbol,) for gene in genes), strict=True)),
        }

    def map(self, names: Sequence[str], ensembl_ids: Sequence[str] | None) -> GeneMapping:
        """Map G genes; an Ensembl id decides where the name is no token, else the name's older meanings do."""
        by_id = [""] * len(names) if ensembl_ids is None else ensembl_ids
        species = guess_species([gene_id or name for name, gene_id in zip(names, by_id, strict=True)])
        # Human aliases such as Pgp1 read like mouse symbols, so they only count where nothing speaks against human.
        others = self._others if species in ("human", "unknown") else {}
        found = [self._resolve(name, gene_id, others) for name, gene_id in zip(names, by_id, strict=True)]
        sources: dict[int, list[str]] = {}
        for name, (token, _) in zip(names, found, strict=True):
            sources.setdefault(token, []).append(name)
        unknown = tuple(sources.pop(-1, ()))
        counts = Counter(how for _, how in found)
        tokens = {token: name for name, token in self._index.items()}
        return GeneMapping(
            ids=np.array([token for token, _ in found], np.int32),
            how={kind: counts[kind] for kind in get_args(How)},
            unknown=unknown,
            duplicates={tokens[token]: group for token, group in sources.items() if len(group) > 1},
            id_type=guess_id_type(names),
            species=species,
        )

    def _resolve(self, name: str, ensembl_id: str, others: Mapping[str, tuple[int, How]]) -> tuple[int, How]:
        """Id of a gene (-1 if unknown) and the kind of name that told it."""
        if name in self._index:
            return self._index[name], "ensembl" if unversioned(name) else "symbol"
        for gene_id in (unversioned(name), unversioned(ensembl_id)):
            token = self._index.get(gene_id, self._ensembl.get(gene_id))
            if token is not None:
                return (token, "ensembl") if token >= 0 else _UNKNOWN
        return others.get(name, _UNKNOWN)


def _token_of(gene: Gene, index: Mapping[str, int], symbols: Set[str]) -> int:
    """The id under which a vocabulary files ``gene``, -1 if none; a name in ``symbols`` is some gene's present one."""
    tagged = (f"{symbol}_{gene.ensembl_id}" for symbol in gene.symbols)  # the census' form where genes share a symbol
    previous = (name for name in gene.previous_symbols if name not in symbols)
    candidates = itertools.chain((gene.ensembl_id,), gene.symbols, tagged, previous)
    return next((index[name] for name in candidates if name in index), -1)


def _unambiguous(how: How, names: Iterable[tuple[int, Sequence[str]]]) -> dict[str, tuple[int, How]]:
    """Name -> (id, ``how``), unknown for a name that several genes have."""
    found: dict[str, int] = {}
    for token, group in names:
        for name in group:
            found[name] = token if found.get(name, token) == token else -1
    return {name: (token, how) if token >= 0 else _UNKNOWN for name, token in found.items()}
