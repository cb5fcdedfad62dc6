"""Map the gene names of a data set, and its cells, to ids of a vocabulary."""

# C cells, N non-zero entries over all cells, G genes of the data set

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
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
# Rank of a name: a column is used only if no other column of the gene has a name of a lower rank.
_OWN, _BY_ID, _FARTHEST = 0, 1, 3
_RANKS: dict[How, int] = {"symbol": _OWN, "ensembl": _OWN, "previous": 2, "alias": _FARTHEST}
_JUDGED_TOKENS = 2_000  # number of tokens inspected to determine whether a vocabulary is human
_MADE_UNIQUE = re.compile(r"[-._]\d+$")  # suffix that scanpy, pandas and R append to a duplicate column name
# Antisense, intronic, overlapping and divergent transcripts are named after the gene that they lie in or beside.
_BESIDE = re.compile(r"(.+)-(?:AS|[DIO]T)\d*")


@dataclass(frozen=True, eq=False)
class GeneMapping:
    """The vocabulary id of each of the G genes of a data set, and the kind of name that matched."""

    ids: Int32  # (G,) vocabulary id, -1 if the column is skipped
    how: dict[How, int]  # number of genes by the kind of name that matched
    unknown: tuple[str, ...]  # names without a gene in the vocabulary
    duplicates: dict[str, list[str]]  # token -> names of its columns if it has several, whose values are summed
    summed: dict[str, list[int]]  # token -> those columns
    older: dict[str, list[int]]  # token -> columns with an older name, skipped because the gene has a column of its own
    origin: npt.NDArray[np.int8]  # (G,) in a mixture of species: 1 human, -1 other (skipped), 0 unknown; else 0
    id_type: IdType
    species: str  # "unknown" if it cannot be determined, "human and mouse" for a mixture

    @cached_property
    def measured(self) -> Int32:
        """The vocabulary ids of the genes that the vocabulary has, ascending, each once."""
        return np.unique(self.ids[self.ids >= 0])

    @cached_property
    def num_matched(self) -> int:
        """Number of the G genes that the vocabulary has."""
        return int((self.ids >= 0).sum())

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
        """Map the cells of a sparse row matrix (C, G) to the vocabulary; unknown genes and zeros are dropped.

        Values of genes that share a token are summed. ``values`` must be finite and not negative.
        """
        assert not len(values) or (values.min() >= 0 and np.isfinite(values).all()), (
            "values must be finite and not negative"
        )
        kept = (values != 0) & (self.ids[columns] >= 0)
        rows = np.repeat(np.arange(len(cell_ids)), np.diff(indptr))[kept]
        # Row and gene in one 64-bit word: a single sort orders cells and, within them, gene ids.
        places = (rows << 32) | self.ids[columns[kept]]
        order = np.argsort(places, kind="stable")
        places, sums = _sum_runs(places[order], values[kept][order])
        lengths = np.bincount(places >> 32, minlength=len(cell_ids))
        starts = np.concatenate([[0], np.cumsum(lengths)])
        return SparseCells((places & 0xFFFFFFFF).astype(np.int32), sums, starts, cell_ids)


def _sum_runs(places: Int64, values: npt.NDArray[Any]) -> tuple[Int64, Float32]:
    """Sum ``values`` over equal neighbours of the sorted ``places``."""
    first = np.flatnonzero(np.diff(places, prepend=-1))
    if len(first) == len(places):
        return places, values.astype(np.float32)
    return places[first], np.add.reduceat(values, first, dtype=np.float64).astype(np.float32)


class NameResolver:
    """A look-up of gene names in one vocabulary; other names are resolved with the table of human genes."""

    def __init__(self, index: Mapping[str, int]) -> None:
        """Build the look-up tables, which takes half a second; ``index`` maps gene tokens to ids."""
        genes = load_human_genes()
        symbols = {name for gene in genes for name in gene.symbols}
        ids = [_token_of(gene, index, symbols) for gene in genes]
        self._index = index
        self._tokens = {token: name for name, token in index.items()}
        self._is_human = judge_species(list(itertools.islice(index, _JUDGED_TOKENS))).name in ("human", "unknown")
        self._ensembl = {gene.ensembl_id: token for gene, token in zip(genes, ids, strict=True) if gene.ensembl_id}
        # A name found among one kind of names, even if ambiguous there, is not looked up among the next.
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
        """Map G genes: by name, else by Ensembl id, else by previous symbols and aliases.

        Names and ids may have a genome prefix (``GRCh38_CD3D``); otherwise ``genomes`` names the genome. In a mixture
        of species only human genes are mapped. ``sum_older`` adds columns with an older name of a gene to its own.
        """
        bare, prefixes = split_genomes(names)
        by_id = [""] * len(names) if ensembl_ids is None else split_genomes(ensembl_ids)[0]
        assemblies = [genome or prefix for genome, prefix in zip(genomes or prefixes, prefixes, strict=True)]
        species = judge_species(bare, ensembl_ids=by_id, genomes=assemblies)
        origin = np.zeros(len(names), np.int8)
        if species.is_mixture and self._is_human:
            origin[:] = [(one == "human") - (one not in ("human", "unknown")) for one in species.of_genes]
        # Human aliases such as Pgp1 look like mouse symbols: they count only if no evidence is against human.
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
        """Return the columns of each gene by its token; columns without an id are skipped."""
        columns: dict[str, list[int]] = {}
        for column in np.flatnonzero(ids >= 0).tolist():
            columns.setdefault(self._tokens[int(ids[column])], []).append(column)
        return columns

    def _rank(self, name: str, token: int, how: How) -> int:
        """Return the rank of a name; a match by Ensembl id ranks behind if the name itself means another gene."""
        if how != "ensembl" or not name or unversioned(name):
            return _RANKS.get(how, _OWN)
        return _OWN if self._index.get(_MADE_UNIQUE.sub("", name)) == token else _BY_ID

    def _resolve(self, name: str, ensembl_id: str, others: Mapping[str, tuple[int, How]]) -> tuple[int, How]:
        """Find the id of a gene (-1 if unknown) and the kind of name that matched."""
        if name in self._index:
            return self._index[name], "ensembl" if unversioned(name) else "symbol"
        for gene_id in (unversioned(name), unversioned(ensembl_id)):
            token = self._index.get(gene_id, self._ensembl.get(gene_id))
            if token is not None:
                return (token, "ensembl") if token >= 0 else _UNKNOWN
        return others.get(name, _UNKNOWN)


def _farther(ids: Int32, ranks: npt.NDArray[np.int8]) -> npt.NDArray[np.bool_]:
    """Return which columns (G,) have a gene that another column has by a name of a lower rank."""
    closest = np.full(int(ids.max(initial=-1)) + 2, _FARTHEST, np.int8)  # the last place is that of -1
    np.minimum.at(closest, ids, ranks)
    return (ids >= 0) & (ranks > closest[ids])


def _means(gene: Gene, name: str, symbols: Set[str]) -> bool:
    """Return whether an older name of ``gene`` means this gene, and not an overlapping gene or a read-through.

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
    """Return the vocabulary id of ``gene``, -1 if unknown; ``symbols`` are the current symbols of all genes."""
    tagged = (f"{symbol}_{gene.ensembl_id}" for symbol in gene.symbols)  # the census' form if genes share a symbol
    previous = (name for name in gene.previous_symbols if name not in symbols)
    candidates = itertools.chain((gene.ensembl_id,), gene.symbols, tagged, previous)
    return next((index[name] for name in candidates if name in index), -1)


def _unambiguous(how: How, names: Iterable[tuple[int, Sequence[str]]]) -> dict[str, tuple[int, How]]:
    """Map names to (id, ``how``); names shared by several genes are unknown."""
    found: dict[str, int] = {}
    for token, group in names:
        for name in group:
            found[name] = token if found.get(name, token) == token else -1
    return {name: (token, how) if token >= 0 else _UNKNOWN for name, token in found.items()}
