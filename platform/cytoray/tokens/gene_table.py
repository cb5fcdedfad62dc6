"""Gene names: the packaged table of human genes, Ensembl ids, genome prefixes and species."""

from __future__ import annotations

import functools
import gzip
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Literal

IdType = Literal["symbol", "ensembl", "mixed", "unknown"]

# A gene id of Ensembl, FlyBase or WormBase, and the suffixes of GENCODE: a version, the copy on Y.
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
# A look-up of names is cached only up to this length, so that its size is bounded whatever clients send. Ids and
# symbols are shorter.
_MOST_CHARACTERS = 64
# Rodent symbols are written Cd3d, Rpl3-ps1, mt-Nd1, 0610007P14Rik; human ones in capitals, except for C1orf112 etc.
_MOUSE_SYMBOL = re.compile(r"(?!C\d+orf)(?:mt-)?[A-Z]\d*[a-z][a-z0-9]*(?:-\w+)?|\d\w+Rik")
_SYMBOL = re.compile(r"[A-Za-z][\w.@/-]*|\d\w+Rik")
# Names of genome assemblies, and of species as references and data schemas write them.
_GENOMES = {
    "human": r"GRCh\d+|hg(?:18|19|38)|(?:T2T-)?CHM13|human|homo[ _]sapiens|NCBITaxon:9606",
    "mouse": r"GRCm\d+|mm(?:9|10|39)|mouse|mus[ _]musculus|NCBITaxon:10090",
    "rat": r"Rnor(?:_\d[\d.]*)?|mRatBN7(?:\.\d)?|GRCr\d|rn[4-8]|rat|rattus[ _]norvegicus|NCBITaxon:10116",
    "zebrafish": r"GRCz\d+|danRer\d+|danio[ _]rerio|NCBITaxon:7955",
    "rhesus macaque": r"Mmul(?:_\d+)?|rheMac\d+|macaca[ _]mulatta|NCBITaxon:9544",
    "crab-eating macaque": r"Macaca_fascicularis|macFas\d+|NCBITaxon:9541",
    "chimpanzee": r"Pan_tro|panTro\d+|pan[ _]troglodytes|NCBITaxon:9598",
    "pig": r"Sscrofa\d*|susScr\d+|sus[ _]scrofa|NCBITaxon:9823",
    "chicken": r"GRCg\w+|galGal\d+|gallus[ _]gallus|NCBITaxon:9031",
    "fruit fly": r"BDGP\d*|dm[36]|drosophila(?:[ _]melanogaster)?|NCBITaxon:7227",
    "worm": r"WBcel\d+|ce1[01]|caenorhabditis[ _]elegans|NCBITaxon:6239",
}
_GENOME_NAMES = {
    species: re.compile(rf"(?<![A-Za-z0-9])(?:{pattern})(?![A-Za-z0-9])", re.IGNORECASE)
    for species, pattern in _GENOMES.items()
}
_GENOME_PREFIX = re.compile(
    r"((?:"
    + "|".join(_GENOMES.values())
    + r")(?:\.p\d+)?(?:[_-]20\d\d-[A-Z])?(?:[_-]premrna)?)(?:[_-]+|[:|])(?=[A-Za-z0-9])",
    re.IGNORECASE,
)
_PREFIXED_SHARE = 0.05  # of the names; fewer prefixes belong to antibodies and the like: Mouse-IgG1
# Minimum shares of the recognisable genes for a mixture of human and other genes. Mouse data contain some genes with
# human names (F5, C3: 0.2 %), human data hardly any with mouse names (below 0.1 %).
_LEAST_RECOGNISED = 0.1  # of the genes; below this share the species is unknown
_LEAST_HUMAN, _LEAST_OTHER, _FEWEST_OTHER = 0.05, 0.02, 3


@dataclass(frozen=True)
class Gene:
    """A human gene and its names; an absent name is empty."""

    ensembl_id: str
    symbol: str  # GENCODE 48
    gencode38_symbol: str  # as in the census vocabulary; empty if the same
    approved_symbol: str  # the symbol that HGNC assigns to this gene alone
    previous_symbols: tuple[str, ...]
    alias_symbols: tuple[str, ...]

    @property
    def symbols(self) -> tuple[str, ...]:
        """Its GENCODE names, that of the census vocabulary first."""
        return tuple(name for name in (self.gencode38_symbol, self.symbol) if name)


def read_lines(name: str) -> list[str]:
    """Read the lines of a compressed text file packaged with this module."""
    packed = resources.files("cytoray.tokens").joinpath("data", name).read_bytes()
    return gzip.decompress(packed).decode().splitlines()


@functools.cache
def load_human_genes() -> tuple[Gene, ...]:
    """Load the packaged table of human genes, once per process (0.2 s)."""
    return tuple(_read_gene(line) for line in read_lines("human_genes.tsv.gz")[1:])


@functools.cache
def human_symbols() -> frozenset[str]:
    """Return every current and previous symbol of a human gene."""
    return frozenset(name for gene in load_human_genes() for name in (*gene.symbols, *gene.previous_symbols))


def unversioned(name: str) -> str:
    """Strip the version of a gene id (``ENSG00000167286.12``); empty if ``name`` is not a gene id."""
    return _unversioned(name) if len(name) <= _MOST_CHARACTERS else ""


@functools.lru_cache(maxsize=1 << 17)  # the files of a data set have the same genes
def _unversioned(name: str) -> str:
    match = _GENE_ID.fullmatch(name)
    return match[1] if match else ""


def guess_id_type(names: Sequence[str]) -> IdType:
    """Determine whether ``names`` are symbols, gene ids, both (each more than a tenth), or mostly neither."""
    num_ids = sum(bool(unversioned(name)) for name in names)
    num_symbols = sum(map(_looks_like_symbol, names)) - num_ids
    if num_ids + num_symbols <= len(names) / 2:
        return "unknown"
    if min(num_ids, num_symbols) * 10 > len(names):
        return "mixed"
    return "ensembl" if num_ids > num_symbols else "symbol"


def _looks_like_symbol(name: str) -> bool:
    return len(name) <= _MOST_CHARACTERS and _is_symbol(name)


@functools.lru_cache(maxsize=1 << 17)
def _is_symbol(name: str) -> bool:
    return bool(_SYMBOL.fullmatch(name))


def split_genomes(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split genome prefixes off names (``GRCh38_CD3D``, ``mm10___Cd3d``); the genome is empty if a name has none.

    Prefixes are removed only if at least a twentieth of the names has one.
    """
    found = [_GENOME_PREFIX.match(name) for name in names]
    if sum(map(bool, found)) < max(1, _PREFIXED_SHARE * len(names)):
        return list(names), [""] * len(names)
    bare = [name[match.end() :] if match else name for name, match in zip(names, found, strict=True)]
    return bare, [match[1] if match else "" for match in found]


@dataclass(frozen=True)
class Species:
    """The species of a matrix and of each of its G genes."""

    name: str  # one species, "human and mouse" for a mixture, "unknown" if few are recognised or none prevails
    of_genes: list[str]  # (G,) "unknown" if it cannot be determined

    @property
    def is_mixture(self) -> bool:
        """Whether human genes occur together with those of another species."""
        return self.name.startswith("human and ")


def judge_species(
    names: Sequence[str], *, ensembl_ids: Sequence[str] | None = None, genomes: Sequence[str] | None = None
) -> Species:
    """Determine the species of G genes: each by its Ensembl id, else by its genome, else by its symbol.

    ``names`` and ``ensembl_ids`` carry no prefixes; ``genomes`` are names of assemblies or species, empty if unknown.
    The result is a mixture if both human and other genes are a sizeable share, or if any gene has a genome other than
    the human one. For this, a mouse-like symbol counts only if it is a human symbol when written in capitals (Cd3d, but
    not Hashtag1), so that tags and transgenes do not make a mixture.
    """
    blank = [""] * len(names)
    of_genes, human, is_named, others = [], 0, False, Counter[str]()
    for name, gene_id, genome in zip(names, ensembl_ids or blank, genomes or blank, strict=True):
        evidence = (id_species(gene_id), id_species(name), genome_species(genome))
        species = next((one for one in evidence if one != "unknown"), "")
        of_genes.append(species or _species(name))
        human += of_genes[-1] == "human"
        if of_genes[-1] not in ("human", "unknown") and (species or name.upper() in human_symbols()):
            others[of_genes[-1]] += 1
            is_named = is_named or evidence[2] == species
    recognised = human + others.total()
    is_known = recognised >= _LEAST_RECOGNISED * len(names) and human >= _LEAST_HUMAN * recognised
    if is_known and (is_named or others.total() >= max(_FEWEST_OTHER, _LEAST_OTHER * recognised)):
        return Species(f"human and {others.most_common(1)[0][0]}", of_genes)
    return Species(_prevailing(of_genes), of_genes)


def genome_species(genome: str) -> str:
    """Return the species of a genome name (``GRCh38-2020-A``, ``mm10``, ``NCBITaxon:9606``), or "unknown"."""
    return _genome_species(genome) if len(genome) <= _MOST_CHARACTERS else "unknown"


@functools.lru_cache(maxsize=1 << 10)
def _genome_species(genome: str) -> str:
    found = {species for species, pattern in _GENOME_NAMES.items() if pattern.search(genome)}
    return found.pop() if len(found) == 1 else "unknown"


def guess_species(names: Sequence[str]) -> str:
    """Return the species of most recognisable ``names``; "unknown" if few are recognisable or no species prevails.

    Mouse and rat symbols look the same and count as mouse; human symbols are those of the packaged table.
    """
    return _prevailing(_species(name) for name in names)


def _prevailing(species: Iterable[str]) -> str:
    votes = Counter(species)
    num_genes = votes.total()
    recognised = num_genes - votes.pop("unknown", 0)
    if not votes or recognised < _LEAST_RECOGNISED * num_genes:
        return "unknown"
    best, count = votes.most_common(1)[0]
    return best if count * 2 > recognised else "unknown"


def id_species(name: str) -> str:
    """Return the species of a gene id, "unknown" for any other name."""
    return _SPECIES_PREFIXES.get(unversioned(name).rstrip("0123456789"), "unknown")


def _species(name: str) -> str:
    return _name_species(name) if len(name) <= _MOST_CHARACTERS else "unknown"


@functools.lru_cache(maxsize=1 << 17)  # the files of a data set have the same genes
def _name_species(name: str) -> str:
    if unversioned(name):
        return id_species(name)
    if name in human_symbols():
        return "human"
    return "mouse" if _MOUSE_SYMBOL.fullmatch(name) else "unknown"


def _read_gene(line: str) -> Gene:
    ensembl_id, symbol, gencode38_symbol, approved_symbol, previous, aliases = line.split("\t")
    return Gene(ensembl_id, symbol, gencode38_symbol, approved_symbol, _names(previous), _names(aliases))


def _names(cell: str) -> tuple[str, ...]:
    return tuple(cell.split("|")) if cell else ()
