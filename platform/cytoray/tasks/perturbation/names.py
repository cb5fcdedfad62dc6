"""Names of perturbations in a column: genes, combinations, other conditions, guides, and cells without one."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cytoray.errors import CorpusError
from cytoray.tokens.perturbations import Perturbation, is_unassigned, parse_perturbation
from cytoray.tokens.vocabulary import GeneVocabulary

# STAT2g1, STAT2_g1, sgSTAT2-1, STAT2_sg2, STAT2-1, STAT2.3, MRPL9_TSS, ATF4_P1P2
_GUIDE = re.compile(
    r"^(?:sg[-_]?)?(?P<stem>.+?)"
    r"(?:[-_. ]?(?:sgRNA|gRNA|sg|g|guide)[-_. ]?\d+|[-_.]\d{1,2}|[-_.](?:TSS\d?|P1P2|P1|P2))$",
    re.IGNORECASE,
)
_SEQUENCE = re.compile(r"[ACGT]{17,24}", re.IGNORECASE)
_LOOKS_CONTROL = re.compile(
    r"^(nt|ntc|ctrl|neg|control|scramble|safe)|non[-_ ]?target|negctrl|luciferase", re.IGNORECASE
)
_SHOWN = 5


@dataclass(frozen=True)
class NamedPerturbations:
    """The perturbation of each cell, and the meaning of its names."""

    names: tuple[str, ...]  # (P,) parts joined by +
    parts: tuple[tuple[str, ...], ...]  # (P,) genes, or other conditions
    genes: frozenset[str]  # of the parts, those that are genes
    codes: tuple[int | None, ...]  # (C,) into ``names``, -1 for control, None for cells left out
    left_out: Mapping[str, int]  # number of cells by the value that they have
    warnings: tuple[str, ...] = ()


def name_perturbations(
    values: Sequence[str | None], *, control: str, measured: Sequence[str], where: str
) -> NamedPerturbations:
    """Find the perturbation of each of C cells by its value in a column.

    ``measured`` are the genes of the cells, ``where`` names file and column in messages. Names of guides are mapped to
    their targets, with a warning. Raises CorpusError for a missing control value, for guides that do not name their
    targets, or if no cell is perturbed.
    """
    counts = Counter("" if value is None else value for value in values)
    distinct = [value for value in counts if not is_unassigned(value) or value == control]
    _refuse_sequences(distinct, where)
    known = _Genes(measured)
    guides = _guides(distinct, control, known)
    _check_control(control, {guides.get(value, value) for value in distinct}, where)
    found_parts = {value: known.parse(guides.get(value, value), control) for value in distinct}
    parsed = {value: tuple(sorted({*each.genes, *each.others})) for value, each in found_parts.items()}
    kept = {value: parts for value, parts in parsed.items() if value != control and guides.get(value) != control}
    names = sorted({"+".join(parts) for parts in kept.values() if parts})
    if not names:
        raise CorpusError(
            f"{where}: no cell has a perturbation other than {control!r}.", remedy="Name another column or control."
        )
    place = {name: row for row, name in enumerate(names)}
    code_of = {value: place["+".join(parts)] if (parts := kept.get(value)) else -1 for value in distinct}
    codes = tuple(code_of.get("" if value is None else value) for value in values)
    left_out = {value or "missing": number for value, number in counts.items() if value not in code_of}
    by_name = {"+".join(parts): parts for parts in kept.values() if parts}
    found = tuple(by_name[name] for name in names)
    warnings = [_guide_warning(guides, where)] if guides else []
    warnings += suffix_warnings([found_parts[value] for value in kept], where)
    if left_out:
        listed = ", ".join(f"{value!r} {number:,}" for value, number in sorted(left_out.items()))
        warnings.append(f"{sum(left_out.values()):,} cells without a known perturbation were left out ({listed})")
    genes = frozenset(part for parts in found for part in parts if known.is_gene(part))
    return NamedPerturbations(tuple(names), found, genes, codes, left_out, tuple(warnings))


def symbols_of(genes: Sequence[str]) -> tuple[str, ...]:
    """Return the symbol of each gene of a data set: that of the vocabulary if it is known there, else its name."""
    vocabulary = GeneVocabulary.load_default()
    ids = vocabulary.map_genes(list(genes)).ids.tolist()
    return tuple(name if token < 0 else vocabulary.tokens[token] for name, token in zip(genes, ids, strict=True))


class _Genes:
    """The genes that names may be of: those of the vocabulary, and those measured."""

    def __init__(self, measured: Sequence[str]) -> None:
        self._vocabulary, self._measured = GeneVocabulary.load_default(), frozenset(measured)

    def is_gene(self, name: str) -> bool:
        """Whether a name is that of a gene."""
        return name in self._measured or int(self._vocabulary.map_genes([name]).ids[0]) >= 0

    def parse(self, name: str, control: str) -> Perturbation:
        """The genes and other conditions of a name."""
        return parse_perturbation(name, vocabulary=self._vocabulary, control=control, measured=self._measured)


def suffix_warnings(parsed: Iterable[Perturbation], where: str) -> list[str]:
    """Return a warning that lists the names that were taken as the gene before their suffix; empty without any."""
    found = {part: gene for each in parsed for part, gene in each.suffixed}
    if not found:
        return []
    listed = ", ".join(f"{part} → {gene}" for part, gene in sorted(found.items()))
    return [f"{where}: {len(found)} names are not genes and were taken as the gene before their suffix ({listed})"]


def _guides(values: Sequence[str], control: str, known: _Genes) -> dict[str, str]:
    """Targets by guide, if the values name guides: most are not genes, but are without the number of a guide."""
    stems = {}
    for value in values:
        match = _GUIDE.match(value)
        if value != control and match and not known.is_gene(value):
            stems[value] = match["stem"]
    targets = {value: stem for value, stem in stems.items() if known.is_gene(stem)}
    others = [value for value in values if value != control and not _LOOKS_CONTROL.search(value)]
    if len(targets) < 2 or len(targets) < 0.5 * len(others):
        return {}
    controls = {value: control for value, stem in stems.items() if _LOOKS_CONTROL.search(stem) and value != control}
    return targets | ({} if control not in values and control not in stems.values() else controls)


def _guide_warning(guides: Mapping[str, str], where: str) -> str:
    some = ", ".join(f"{guide} → {target}" for guide, target in list(guides.items())[:_SHOWN])
    return f"{where} has guides: {len(guides)} were mapped to {len(set(guides.values()))} targets ({some}, …)"


def _refuse_sequences(values: Sequence[str], where: str) -> None:
    found = [value for value in values if _SEQUENCE.fullmatch(value)]
    if found:
        raise CorpusError(
            f"{where} has sequences of guides, such as {found[0]}, not targets.",
            remedy="Add a column with the target of each cell's guide, and name that with --perturbation-key.",
            guides=found[:_SHOWN],
        )


def _check_control(control: str, values: set[str], where: str) -> None:
    if control in values:
        return
    near = difflib.get_close_matches(control, sorted(values), n=3, cutoff=0.5)
    likely = [value for value in sorted(values) if _LOOKS_CONTROL.search(value) and value not in near]
    listed = [*near, *likely][:_SHOWN] or sorted(values)[:_SHOWN]
    raise CorpusError(
        f"{where}: no cell has the control value {control!r}.",
        remedy=f"Name it with --control. Nearest values: {', '.join(map(repr, listed)) or 'none'}.",
        control=control,
        nearest=listed,
    )
