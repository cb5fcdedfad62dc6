"""Parse the name of a perturbation, such as ``STAT1+IRF1``, into the genes that it hits."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from cytoray.tokens.vocabulary import GeneVocabulary

CONTROL_WORDS = frozenset({"control", "ctrl", "ctl", "non-targeting", "non_targeting", "nontargeting", "nt", "neg"})
# Values of a perturbation column that name no perturbation: such cells are neither perturbed nor control.
UNASSIGNED_WORDS = frozenset(
    {"", "unassigned", "unknown", "multiple", "multiplet", "doublet", "ambiguous", "none", "na", "nan", "negative"}
)
SEPARATORS = ("+", ",", ";", "|", "&")  # a name that is a gene as a whole is never cut
_SUFFIXED = re.compile(r"(?P<gene>.+)[-_](?P<suffix>[^-_]+)")
_OTHER_GENE = re.compile(r"(AS|DT|IT|OT)\d*", re.IGNORECASE)  # FOXP4-AS1 is not FOXP4 but a gene on its other strand


@dataclass(frozen=True)
class Perturbation:
    """The parts of a perturbation's name: genes, and others, such as a drug, a cytokine or a misspelt gene."""

    name: str
    genes: tuple[str, ...]  # as tokens of the vocabulary, each once
    others: tuple[str, ...] = ()
    suffixed: tuple[tuple[str, str], ...] = ()  # parts that were taken as the gene before a suffix, and that gene


def parse_perturbation(
    name: str, *, vocabulary: GeneVocabulary, control: str, measured: Collection[str] = ()
) -> Perturbation:
    """Parse ``name`` into genes of the vocabulary; parts equal to ``control`` or a word for it are dropped.

    A gene may be named by symbol, Ensembl id, an older symbol or an alias, as in a file of cells. ``measured`` are
    further names that count as genes although the vocabulary does not have them. An underscore separates genes alone
    (not older names of up to three letters). A part that is unknown, such as MRPL9_TSS, is taken as the gene before its
    last ``_`` or ``-`` if that is a current symbol, an Ensembl id or measured, and the suffix is not a gene itself;
    ``suffixed`` lists such parts.
    """
    known = _Known(vocabulary, measured)
    genes: dict[str, None] = {}
    others: dict[str, None] = {}
    suffixed: dict[str, str] = {}
    for part in _parts(name, control, known):
        gene = known.gene(part)
        if gene is None and (gene := known.before_suffix(part)) is not None:
            suffixed[part] = gene
        if gene is None:
            others[part] = None
        else:
            genes[gene] = None
    return Perturbation(name, tuple(genes), tuple(others), tuple(suffixed.items()))


def is_unassigned(name: str | None) -> bool:
    """Whether a value of a perturbation column means that the perturbation of a cell is unknown."""
    return name is None or name.strip().lower() in UNASSIGNED_WORDS


def _parts(name: str, control: str, known: _Known) -> list[str]:
    """Cut a name into its parts, without words for controls."""
    if known.gene(name) is not None:
        return [name]
    parts = [part.strip() for part in re.split("[" + re.escape("".join(SEPARATORS)) + "]", name)]
    found = []
    for part in parts:
        pieces = [piece for piece in part.split("_") if not _is_control(piece, control)]
        is_several = known.gene(part) is None and pieces and all(known.is_clear(piece) for piece in pieces)
        found += pieces if is_several else [part]
    return [part for part in found if part and not _is_control(part, control)]


def _is_control(part: str, control: str) -> bool:
    return part == control or part.lower() in CONTROL_WORDS


@dataclass(frozen=True)
class _Known:
    """The names that are genes."""

    vocabulary: GeneVocabulary
    measured: Collection[str]

    def gene(self, name: str) -> str | None:
        """Return the token of a gene, or its name if it was only measured; None if it is not a gene."""
        found = int(self.vocabulary.map_genes([name]).ids[0])
        if found >= 0:
            return self.vocabulary.tokens[found]
        return name if name in self.measured else None

    def is_clear(self, name: str, *, shortest: int = 4) -> bool:
        """Whether a piece of a name is a gene: an older name must be long enough, as KO, P1 and LPS are older names."""
        gene = self.gene(name)
        return gene is not None and (gene == name or len(name) >= shortest)

    def before_suffix(self, name: str) -> str | None:
        """Return the gene before the last ``_`` or ``-``; None if there is no such gene, or if the rest is one too.

        Aliases do not count: IFN is one of IFNA1, and IFN-beta another gene.
        """
        match = _SUFFIXED.fullmatch(name)
        if match is None or _OTHER_GENE.fullmatch(match["suffix"]) or self.is_clear(match["suffix"], shortest=3):
            return None
        gene = self.gene(match["gene"])
        is_current = gene is not None and (gene == match["gene"] or match["gene"].upper().startswith("ENSG"))
        return gene if is_current or match["gene"] in self.measured else None
