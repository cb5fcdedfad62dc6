"""Gene sets, such as pathways: those packaged with cytoray, and the text format ``.gmt``."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cytoray.errors import ConfigError
from cytoray.tokens.gene_table import read_lines
from cytoray.tokens.mapping import NameResolver

# Built by scripts/build_gene_sets.py; licences and sources: data/LICENCES.md.
_SHIPPED = ("go_bp", "go_bp_immune", "go_tf", "hallmark", "reactome", "wikipathways")
_WEIGHT = re.compile(r"(\S+),\d+(?:\.\d+)?")  # Enrichr's files give each gene a weight: CD3D,1.0
_REMEDY = "Write one set per line, separated by tabs: its name, a description, then its gene symbols."


@dataclass(frozen=True)
class GeneSets:
    """A named collection of gene sets."""

    name: str
    members: Mapping[str, frozenset[str]]  # set name -> gene symbols

    @property
    def genes(self) -> frozenset[str]:
        """Every gene of at least one set."""
        return frozenset().union(*self.members.values())

    def for_genes(self, names: Sequence[str], *, min_size: int = 1) -> GeneSets:
        """Rewrite the sets in the gene names of a data set; sets with fewer than ``min_size`` of them are left out.

        Names may be symbols of another release or Ensembl ids: they are matched through the table of human genes.
        """
        symbols = sorted(self.genes)
        ids = _resolver(tuple(names)).map(symbols, None, sum_older=True).ids.tolist()
        known = {symbol: names[column] for symbol, column in zip(symbols, ids, strict=True) if column >= 0}
        found = {
            name: frozenset(known[symbol] for symbol in members if symbol in known)
            for name, members in self.members.items()
        }
        return GeneSets(self.name, {name: members for name, members in found.items() if len(members) >= min_size})


@functools.lru_cache(maxsize=4)  # several collections are rewritten for the same genes
def _resolver(names: tuple[str, ...]) -> NameResolver:
    """Build the look-up of a data set's names; of a repeated name, the first column counts."""
    return NameResolver({name: column for column, name in reversed(list(enumerate(names)))})


def shipped_gene_sets() -> tuple[str, ...]:
    """Return the names of the packaged collections.

    Of the Gene Ontology: biological processes of 10 to 500 genes, those below "immune system process" of 5 to 2,500,
    and DNA-binding transcription factors; of MSigDB: hallmarks, and the pathways of Reactome and WikiPathways.
    """
    return _SHIPPED


@functools.cache
def load_gene_sets(name: str) -> GeneSets:
    """Load a packaged collection, once per process (at most 0.3 s); ConfigError for an unknown name."""
    if name not in _SHIPPED:
        raise ConfigError(
            f"{name!r} is not a packaged collection of gene sets.",
            remedy=f"Use one of {', '.join(_SHIPPED)}, or the path of a .gmt file.",
        )
    return parse_gmt("\n".join(read_lines(f"{name}.gmt.gz")), name=name)


def parse_gmt(text: str, *, name: str, source: str = "") -> GeneSets:
    """Read the gene sets in the text of a ``.gmt`` file; sets without genes are left out.

    Sets of the same name get their description as a suffix (``Signaling (R-HSA-1)``). Raises ConfigError that
    names ``source`` if the text is something else, or if its genes are numbers.
    """
    source = source or name
    rows = [(number, line.split("\t")) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    for number, fields in rows:
        if len(fields) < 2 or not fields[0].strip():
            raise ConfigError(f"{source}: line {number} is not a gene set.", remedy=_REMEDY, line=number)
    repeated = {label for label, count in Counter(fields[0].strip() for _, fields in rows).items() if count > 1}
    members: dict[str, frozenset[str]] = {}
    for number, (label, description, *symbols) in rows:
        full = f"{label.strip()} ({description.strip()})" if label.strip() in repeated else label.strip()
        if full in members:
            raise ConfigError(f"{source}: line {number} repeats the set {full!r}.", remedy="Rename or remove one.")
        if genes := frozenset(map(_symbol, filter(str.strip, symbols))):
            members[full] = genes
    sets = GeneSets(name, members)
    _check_symbols(sets, source)
    return sets


def _symbol(field: str) -> str:
    """Strip spaces and a weight."""
    weighted = _WEIGHT.fullmatch(field.strip())
    return weighted[1] if weighted else field.strip()


def _check_symbols(sets: GeneSets, source: str) -> None:
    """Raise ConfigError if the sets have no genes, or mostly numbers."""
    genes = sets.genes
    if not genes:
        raise ConfigError(f"{source} contains no gene set.", remedy=_REMEDY)
    if sum(_is_number(gene) for gene in genes) * 2 > len(genes):
        remedy = "Use the file with gene symbols; of MSigDB's, the one that ends with .symbols.gmt."
        raise ConfigError(f"{source} contains numbers, not gene symbols.", remedy=remedy)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
