"""What gene names mean: the packaged human table, the shape of Ensembl ids, and which species names look like."""

from __future__ import annotations

import functools
import gzip
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Literal

IdType = Literal["symbol", "ensembl", "mixed", "unknown"]

# A gene id of Ensembl (or of FlyBase, WormBase), then what GENCODE may append: a version, a copy on Y.
_GENE_ID = re.compile(r"(ENS[A-Z]{0,4}G\d{11}|FBgn\d{7}|WBGene\d{8})(?:\.\d+)?(?:_PAR_Y)?")
_SPECIES_PREFIXES = {
    "ENSG": "human",
    "ENSMUSG": "mouse",
    "ENSRNOG": "rat",
    "ENSDARG": "zebrafish",
    "ENSMMUG": "rhesus macaque",
    "ENSMFAG": "crab-eating macaque",
    "ENSPTRG": "chimpanzee",
    "ENSGGOG": "gorilla",
    "ENSCJAG": "marmoset",
    "ENSMICG": "mouse lemur",
    "ENSSSCG": "pig",
    "ENSBTAG": "cow",
    "ENSCAFG": "dog",
    "ENSOCUG": "rabbit",
    "ENSGALG": "chicken",
    "FBgn": "fruit fly",
    "WBGene": "worm",
}
# Rodent symbols are written Cd3d, Rpl3-ps1, mt-Nd1, 0610007P14Rik; human ones in capitals, except C1orf112 and such.
_MOUSE_SYMBOL = re.compile(r"(?!C\d+orf)(?:mt-)?[A-Z]\d*[a-z][a-z0-9]*(?:-\w+)?|\d\w+Rik")
_SYMBOL = re.compile(r"[A-Za-z][\w.@/-]*|\d\w+Rik")


@dataclass(frozen=True)
class Gene:
    """A human gene and its names; an absent name is empty."""

    ensembl_id: str
    symbol: str  # GENCODE 48
    gencode38_symbol: str  # as in the census vocabulary; empty if the same
    approved_symbol: str  # the one of them that HGNC gives to this gene alone
    previous_symbols: tuple[str, ...]
    alias_symbols: tuple[str, ...]

    @property
    def symbols(self) -> tuple[str, ...]:
        """The names GENCODE gives it, the one of the census vocabulary first."""
        return tuple(name for name in (self.gencode38_symbol, self.symbol) if name)


def read_lines(name: str) -> list[str]:
    """Lines of a compressed text file packaged with this module."""
    packed = resources.files("cytoray.tokens").joinpath("data", name).read_bytes()
    return gzip.decompress(packed).decode().splitlines()


@functools.cache
def load_human_genes() -> tuple[Gene, ...]:
    """The packaged table of human genes, read once a process (0.2 s)."""
    return tuple(_read_gene(line) for line in read_lines("human_genes.tsv.gz")[1:])


@functools.cache
def human_symbols() -> frozenset[str]:
    """Every current and previous symbol of a human gene."""
    return frozenset(name for gene in load_human_genes() for name in (*gene.symbols, *gene.previous_symbols))


@functools.lru_cache(maxsize=1 << 17)  # the files of a data set have the same genes
def unversioned(name: str) -> str:
    """The bare id of a versioned gene id (``ENSG00000167286.12``); empty when ``name`` is no gene id."""
    match = _GENE_ID.fullmatch(name)
    return match[1] if match else ""


def guess_id_type(names: Sequence[str]) -> IdType:
    """Whether ``names`` are symbols, gene ids, both (each above a tenth), or mostly neither."""
    num_ids = sum(bool(unversioned(name)) for name in names)
    num_symbols = sum(map(_looks_like_symbol, names)) - num_ids
    if num_ids + num_symbols <= len(names) / 2:
        return "unknown"
    if min(num_ids, num_symbols) * 10 > len(names):
        return "mixed"
    return "ensembl" if num_ids > num_symbols else "symbol"


@functools.lru_cache(maxsize=1 << 17)
def _looks_like_symbol(name: str) -> bool:
    return bool(_SYMBOL.fullmatch(name))


def guess_species(names: Sequence[str]) -> str:
    """The species that most of the recognisable ``names`` belong to; "unknown" when few are, or none prevails.

    Mouse and rat symbols look the same and count as mouse; human symbols are those of the packaged table.
    """
    votes = Counter(_species(name) for name in names)
    recognised = len(names) - votes.pop("unknown", 0)
    if not votes or recognised * 10 < len(names):
        return "unknown"
    species, count = votes.most_common(1)[0]
    return species if count * 2 > recognised else "unknown"


@functools.lru_cache(maxsize=1 << 17)  # the files of a data set have the same genes
def _species(name: str) -> str:
    gene_id = unversioned(name)
    if gene_id:
        return _SPECIES_PREFIXES.get(gene_id.rstrip("0123456789"), "unknown")
    if name in human_symbols():
        return "human"
    return "mouse" if _MOUSE_SYMBOL.fullmatch(name) else "unknown"


def _read_gene(line: str) -> Gene:
    ensembl_id, symbol, gencode38_symbol, approved_symbol, previous, aliases = line.split("\t")
    return Gene(ensembl_id, symbol, gencode38_symbol, approved_symbol, _names(previous), _names(aliases))


def _names(cell: str) -> tuple[str, ...]:
    return tuple(cell.split("|")) if cell else ()
