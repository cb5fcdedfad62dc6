"""Parse the name of a perturbation, such as ``STAT1+IRF1``, into the genes that it hits."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from cytoray.tokens.vocabulary import GeneVocabulary

CONTROL_WORDS = frozenset({"control", "ctrl", "ctl", "non-targeting", "non_targeting", "nontargeting", "nt", "neg"})
# Values of a perturbation column that name no perturbation: such cells are neither perturbed nor control.
UNASSIGNED_WORDS = frozenset(
    {"", "unassigned", "unknown", "multiple", "multiplet", "doublet", "ambiguous", "none", "na", "nan", "negative"}
)
SEPARATORS = ("+", ",", ";", "|", "&")  # a name that is a gene as a whole is never cut


@dataclass(frozen=True)
class Perturbation:
    """The parts of a perturbation's name: genes, and others, such as a drug, a cytokine or a misspelt gene."""

    name: str
    genes: tuple[str, ...]  # as tokens of the vocabulary, each once
    others: tuple[str, ...] = ()


def parse_perturbation(
    name: str, *, vocabulary: GeneVocabulary, control: str, measured: Collection[str] = ()
) -> Perturbation:
    """Parse ``name`` into genes of the vocabulary; parts equal to ``control`` or a word for it are dropped.

    A gene may be named by symbol, Ensembl id, an older symbol or an alias, as in a file of cells. ``measured`` are
    further names that count as genes although the vocabulary does not have them.
    """
    if _is_gene(name, vocabulary, measured):
        parts: Sequence[str] = (name,)
    else:
        parts = [part.strip() for part in re.split("[" + re.escape("".join(SEPARATORS)) + "]", name)]
    kept = [part for part in parts if part and part != control and part.lower() not in CONTROL_WORDS]
    genes: dict[str, None] = {}
    others: dict[str, None] = {}
    for part, token in zip(kept, _tokens(kept, vocabulary), strict=True):
        if token is not None or part in measured:
            genes[token or part] = None
        else:
            others[part] = None
    return Perturbation(name, tuple(genes), tuple(others))


def is_unassigned(name: str | None) -> bool:
    """Whether a value of a perturbation column means that the perturbation of a cell is unknown."""
    return name is None or name.strip().lower() in UNASSIGNED_WORDS


def _is_gene(name: str, vocabulary: GeneVocabulary, measured: Collection[str]) -> bool:
    return name in measured or _tokens([name], vocabulary)[0] is not None


def _tokens(names: Sequence[str], vocabulary: GeneVocabulary) -> list[str | None]:
    """Return the token of each name, None for names that are not genes; each is looked up on its own."""
    found = [int(vocabulary.map_genes([name]).ids[0]) for name in names]
    return [None if gene < 0 else vocabulary.tokens[gene] for gene in found]
