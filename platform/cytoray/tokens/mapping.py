"""Map the gene names of a data set, and its cells, to ids of a vocabulary."""

# C cells, N non-zero entries over all cells, G genes of the data set

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from cytoray.tokens.cells import Float32, Int32, Int64, SparseCells, UInt64
from cytoray.tokens.gene_table import (
    Gene,
    IdType,
    guess_id_type,
    judge_species,
    load_human_genes,
    split_genomes,
    unversioned,
)

How = Literal["symbol", "ensembl", "previous", "alias", "unknown"]

MIN_HUMAN_SHARE = 0.9  # of the recognised counts of a cell in a mixture of species
_UNKNOWN: tuple[int, How] = (-1, "unknown")
# How far a name is from its gene: a column is used only if no other column of the gene has a closer name.
_OWN, _BY_ID, _FARTHEST = 0, 1, 3
_RANKS: dict[How, int] = {"symbol": _OWN, "ensembl": _OWN, "previous": 2, "alias": _FARTHEST}
_JUDGED_TOKENS = 2_000  # of a vocabulary, to see whether it is human
_MADE_UNIQUE = re.compile(r"[-._]\d+$")  # what scanpy, pandas and R append to the second column of a name
# Antisense, intronic, overlapping and divergent transcripts are named after the gene that they lie in or beside.
_BESIDE = re.compile(r"(.+)-(?:AS|[DIO]T)\d*")


@dataclass(frozen=True, eq=False)
class GeneMapping:
    """The vocabulary id of each of a data set's G genes, and how it was recognised."""

    ids: Int32  # (G,) vocabulary id, -1 if the column is left out
    how: dict[How, int]  # number of genes by the kind of name that matched
    unknown: tuple[str, ...]  # names that no gene of the vocabulary has
    duplicates: dict[str, list[str]]  # token -> names of its columns, if it has several; their values are summed
    summed: dict[str, list[int]]  # token -> those columns
    older: dict[str, list[int]]  # token -> columns with an older name of it, left out since it has a closer column
    origin: npt.NDArray[np.int8]  # (G,) in a mixture of species: 1 human, -1 another's (left out), 0 unknown; else 0
    id_type: IdType
    species: str  # "unknown" if it cannot be determined, "human and mouse" for a mixture

    @property
    def is_mixture(self) -> bool:
        """Whether human genes occur together with those of another species."""
        return bool(self.origin.any())

    def of_other_species(
        self,
        values: npt.NDArray[Any],
        columns: npt.NDArray[np.integer],
        indptr: npt.NDArray[np.integer],
        *,
        min_human_share: float = MIN_HUMAN_SHARE,
    ) -> npt.NDArray[np.bool_]:
        """Which cells (C,) of a sparse row matrix (C, G) are not human: too few of their recognised values are in human
        genes. None are if the genes are no mixture.
        """
        num_cells = len(indptr) - 1
        if not self.is_mixture:
            return np.zeros(num_cells, dtype=bool)
        rows, origin = np.repeat(np.arange(num_cells), np.diff(indptr)), self.origin[columns]
        human, other = (np.bincount(rows, values * (origin == side), minlength=num_cells) for side in (1, -1))
        return np.asarray(human < min_human_share * (human + other))

    def apply(
        self,
        values: npt.NDArray[Any],
        columns: npt.NDArray[np.integer],
        indptr: npt.NDArray[np.integer],
        cell_ids: UInt64,
    ) -> SparseCells:
        """Cells of a sparse row matrix (C, G) over the vocabulary; unknown genes and zeros are dropped.

        Values of genes that share a token are summed. ``values`` must be finite and not negative.
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
    """Look-up of gene names in one vocabulary; names that are not tokens are resolved with the packaged human table."""

    def __init__(self, index: Mapping[str, int]) -> None:
        """``index`` maps gene tokens to ids; building the look-up tables takes half a second."""
        genes = load_human_genes()
        symbols = {name for gene in genes for name in gene.symbols}
        ids = [_token_of(gene, index, symbols) for gene in genes]
        self._index = index
        self._tokens = {token: name for name, token in index.items()}
        self._is_human = judge_species(list(itertools.islice(index, _JUDGED_TOKENS))).name in ("human", "unknown")
        self._ensembl = {gene.ensembl_id: token for gene, token in zip(genes, ids, strict=True) if gene.ensembl_id}
        # A name that one kind knows, even if it is ambiguous there, is not looked up in the next kind.
        own = [tuple(name for name in gene.alias_symbols if _means(gene, name, symbols)) for gene in genes]
        older = [tuple(name for name in gene.previous_symbols if _means(gene, name, symbols)) for gene in genes]
        self._others = {
            **_unambiguous("alias", zip(ids, own, strict=True)),
            **_unambiguous("previous", zip(ids, older, strict=True)),
            **_unambiguous("previous", zip(ids, (gene.symbols for gene in genes), strict=True)),
            **_unambiguous("symbol", zip(ids, ((gene.approved_symbol,) for gene in genes), strict=True)),
        }

    def map(
        self,
        names: Sequence[str],
        ensembl_ids: Sequence[str] | None,
        *,
        genomes: Sequence[str] | None = None,
        sum_older: bool = False,
    ) -> GeneMapping:
        """Map G genes: by name, else by Ensembl id, else by the older meanings of the name.

        Names and ids may carry their genome (``GRCh38_CD3D``); ``genomes`` names it otherwise. In a mixture of
        species only human genes are mapped. ``sum_older`` adds columns with an older name of a gene to its own column.
        """
        bare, prefixes = split_genomes(names)
        by_id = [""] * len(names) if ensembl_ids is None else split_genomes(ensembl_ids)[0]
        assemblies = [genome or prefix for genome, prefix in zip(genomes or prefixes, prefixes, strict=True)]
        species = judge_species(bare, ensembl_ids=by_id, genomes=assemblies)
        origin = np.zeros(len(names), np.int8)
        if species.is_mixture and self._is_human:
            origin[:] = [(one == "human") - (one not in ("human", "unknown")) for one in species.of_genes]
        # Human aliases such as Pgp1 read like mouse symbols: they count only if nothing speaks against human.
        plain = species.name in ("human", "unknown")
        found = [
            _UNKNOWN if side < 0 else self._resolve(name, gene_id, self._others if plain or side > 0 else {})
            for name, gene_id, side in zip(bare, by_id, origin, strict=True)
        ]
        ranks = [self._rank(name, *one) for name, one in zip(bare, found, strict=True)]
        tokens = np.array([token for token, _ in found], np.int32)
        farther = np.zeros(len(names), bool) if sum_older else _farther(tokens, np.array(ranks, np.int8))
        ids = np.where(farther, np.int32(-1), tokens)
        summed = {token: group for token, group in self._by_token(ids).items() if len(group) > 1}
        counts = Counter(how if token >= 0 else "unknown" for (_, how), token in zip(found, ids, strict=True))
        return GeneMapping(
            ids=ids,
            how={kind: counts[kind] for kind in get_args(How)},
            unknown=tuple(itertools.compress(names, (tokens < 0) & (origin >= 0))),
            duplicates={token: [names[column] for column in group] for token, group in summed.items()},
            summed=summed,
            older=self._by_token(np.where(farther, tokens, -1)),
            origin=origin,
            id_type=guess_id_type(bare),
            species=species.name,
        )

    def _by_token(self, ids: Int32) -> dict[str, list[int]]:
        """The columns of each gene, by its token, in their order; those without an id are left out."""
        columns: dict[str, list[int]] = {}
        for column in np.flatnonzero(ids >= 0).tolist():
            columns.setdefault(self._tokens[int(ids[column])], []).append(column)
        return columns

    def _rank(self, name: str, token: int, how: How) -> int:
        """How far a name is from its gene; an id of a column beside the names counts less if the name is another."""
        if how != "ensembl" or not name or unversioned(name):
            return _RANKS.get(how, _OWN)
        return _OWN if self._index.get(_MADE_UNIQUE.sub("", name)) == token else _BY_ID

    def _resolve(self, name: str, ensembl_id: str, others: Mapping[str, tuple[int, How]]) -> tuple[int, How]:
        """Id of a gene (-1 if unknown) and the kind of name that matched."""
        if name in self._index:
            return self._index[name], "ensembl" if unversioned(name) else "symbol"
        for gene_id in (unversioned(name), unversioned(ensembl_id)):
            token = self._index.get(gene_id, self._ensembl.get(gene_id))
            if token is not None:
                return (token, "ensembl") if token >= 0 else _UNKNOWN
        return others.get(name, _UNKNOWN)


def _farther(ids: Int32, ranks: npt.NDArray[np.int8]) -> npt.NDArray[np.bool_]:
    """Which columns (G,) have a gene that another column has by a closer name."""
    closest = np.full(int(ids.max(initial=-1)) + 2, _FARTHEST, np.int8)  # the last place is that of -1
    np.minimum.at(closest, ids, ranks)
    return (ids >= 0) & (ranks > closest[ids])


def _means(gene: Gene, name: str, symbols: Set[str]) -> bool:
    """Whether an older name on record for ``gene`` means this gene, and not one beside it or a read-through.

    HGNC lists HNRNPU-AS1 and SNURF-SNRPN as names of HNRNPU and SNRPN, but files count them as genes of their own.
    """
    names = {*gene.symbols, *gene.previous_symbols, *gene.alias_symbols}
    beside = _BESIDE.fullmatch(name)
    if beside and beside[1] in names:
        return False
    first, dash, second = name.partition("-")
    is_readthrough = bool(dash) and first in symbols and second in symbols
    return not (is_readthrough and (first in names or second in names))


def _token_of(gene: Gene, index: Mapping[str, int], symbols: Set[str]) -> int:
    """The id under which a vocabulary files ``gene``, -1 if none; a name in ``symbols`` is some gene's present one."""
    tagged = (f"{symbol}_{gene.ensembl_id}" for symbol in gene.symbols)  # the census' form if genes share a symbol
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
