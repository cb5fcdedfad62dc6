"""Rules about a whole source: whether its genes match the vocabulary, and what its values are."""

# G genes (columns of the file)

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Literal

import numpy as np

from cytoray.corpus.config import CheckConfig
from cytoray.corpus.readers.base import CellReader, ValueKind
from cytoray.errors import CorpusError
from cytoray.tokens.vocabulary import GeneMapping, GeneVocabulary

Values = Literal["counts", "expression"]
SHOWN = 10  # names in a refusal
EXAMPLES = 5  # names in a finding
FIRST_ROWS = 256  # searched for a value to name
HUMAN = ("human", "unknown")
COUNT_KINDS = ("counts", "near_counts", "recoverable")  # kinds of values that become exact counts


def map_source_genes(reader: CellReader, vocabulary: GeneVocabulary, checks: CheckConfig) -> GeneMapping:
    """Map a source's G genes to the vocabulary.

    Raises CorpusError by the rules about genes and species whose severity is error, and
    by min_matched_genes and min_matched_share.
    """
    ids, genomes = (None if texts is None else tuple(texts) for texts in (reader.ensembl_ids, reader.genomes))
    mapping = _map(vocabulary, tuple(reader.gene_names), ids, genomes, checks.sum_older_names)
    _gene_findings(reader, mapping, checks)
    return mapping


def source_findings(reader: CellReader, mapping: GeneMapping, checks: CheckConfig) -> dict[str, str]:
    """Findings about the whole source, by rule; CorpusError if the severity of that rule is error."""
    return {**_gene_findings(reader, mapping, checks), **_value_findings(reader, checks)}


def corpus_values(kinds: Iterable[ValueKind], checks: CheckConfig) -> Values:
    """Whether sources of these kinds give a corpus of exact counts or, if one cannot, of expression."""
    exact = set(COUNT_KINDS if checks.rules.not_recoverable != "warn" else COUNT_KINDS[:2])
    return "counts" if set(kinds) <= exact else "expression"


@functools.lru_cache(maxsize=8)  # used for every range of rows; 60,000 names take a quarter of a second
def _map(
    vocabulary: GeneVocabulary,
    names: tuple[str, ...],
    ensembl_ids: tuple[str, ...] | None,
    genomes: tuple[str, ...] | None,
    sum_older: bool,
) -> GeneMapping:
    return vocabulary.map_genes(names, ensembl_ids=ensembl_ids, genomes=genomes, sum_older=sum_older)


def _gene_findings(reader: CellReader, mapping: GeneMapping, checks: CheckConfig) -> dict[str, str]:
    """Apply the rules about genes, the most severe first."""
    num_genes, num_matched = int((mapping.origin >= 0).sum()), mapping.num_matched
    share = f"{num_matched:,} of {num_genes:,} genes are in the vocabulary"
    findings = {}
    if mapping.is_mixture:
        findings["mixed_species"] = _mixture(reader, mapping, checks)
    elif mapping.species not in HUMAN:
        findings["wrong_species"] = (
            f"these are {mapping.species} genes ({_some(mapping.unknown)}), but the vocabulary is human: {share}"
        )
        if checks.rules.wrong_species == "error":
            raise _refusal(reader, "wrong_species", findings["wrong_species"], _orthologs(reader, mapping.species))
    for rule, short in (
        ("min_matched_genes", num_matched < max(1, min(checks.min_matched_genes, num_genes))),
        ("min_matched_share", num_matched < checks.min_matched_share * num_genes),
    ):
        if short:
            problem = f"{share}. The first of theirs: {_some(reader.gene_names, count=SHOWN)}"
            raise _refusal(reader, rule, problem, _known_names(reader, rule))
    if mapping.unknown:
        findings["unknown_genes"] = (
            f"{len(mapping.unknown):,} of {num_genes:,} genes are not in the vocabulary and are left out: "
            f"{_some(mapping.unknown)}"
        )
        if checks.rules.unknown_genes == "error":
            remedy = "Remove these columns, or set checks.rules.unknown_genes: warn to leave them out."
            raise _refusal(reader, "unknown_genes", findings["unknown_genes"], remedy)
    if mapping.duplicates:
        some = [
            f"{token} ({', '.join(names[:3])})" for token, names in list(mapping.duplicates.items())[: EXAMPLES + 1]
        ]
        findings["duplicate_gene"] = (
            f"several columns for {len(mapping.duplicates):,} of the vocabulary's genes, whose values are summed: "
            f"{_some(some)}"
        )
        if checks.rules.duplicate_gene == "error":
            remedy = "Keep one column per gene, or set checks.rules.duplicate_gene: warn to sum them."
            raise _refusal(reader, "duplicate_gene", findings["duplicate_gene"], remedy)
    older = sorted(column for columns in mapping.older.values() for column in columns)
    if older:
        findings["older_name"] = (
            f"columns left out for an older name of a gene that has a column of its own: {len(older):,} "
            f"(checks.sum_older_names: true sums them): {_some([reader.gene_names[column] for column in older])}"
        )
    return findings


def _mixture(reader: CellReader, mapping: GeneMapping, checks: CheckConfig) -> str:
    """The finding of the rule mixed_species; CorpusError if its severity is error."""
    human, other = int((mapping.origin > 0).sum()), int((mapping.origin < 0).sum())
    species = mapping.species.removeprefix("human and ")
    problem = f"{other:,} genes of another species ({species}) among {human:,} human genes"
    if checks.rules.mixed_species == "error":
        remedy = (
            "Remove the other genes and the cells of the other species, or set checks.rules.mixed_species: drop to "
            "leave both out."
        )
        raise _refusal(reader, "mixed_species", f"there are {problem}", remedy)
    if checks.rules.mixed_species == "warn":
        return f"{problem} are left out; cells of either species are kept with their human genes"
    return (
        f"{problem} are left out, as are cells with less than {checks.min_human_share:.0%} of their counts in "
        "human genes"
    )


def _value_findings(reader: CellReader, checks: CheckConfig) -> dict[str, str]:
    """Apply the rules about the kind of values."""
    rules, matrix = checks.rules, reader.matrix
    if reader.value_kind == "negative" and rules.negative == "error":
        remedy = (
            "Expression is never negative (scaled data?): name the counts with `matrix: layers/NAME` or raw.X, or "
            "set checks.rules.negative to drop."
        )
        raise _refusal(reader, "negative", f"{matrix} holds negative values{_first_negative(reader)}", remedy)
    if reader.value_kind == "near_counts":
        return {"near_counts": f"the values of {matrix} are within 0.001 of integers, and are rounded to them"}
    if reader.value_kind == "recoverable":
        text = f"{matrix} is log-normalised; its counts are restored cell by cell"
        if rules.not_recoverable == "warn":
            text += ", and cells that give none back keep their values"
        if rules.recovered == "error":
            remedy = "Name the raw counts with `matrix: layers/NAME` or raw.X, or set checks.rules.recovered: warn."
            raise _refusal(reader, "recovered", f"{matrix} is log-normalised, not raw counts", remedy)
        return {"recovered": text}
    if reader.value_kind in ("expression", "negative"):
        if rules.not_counts == "error":
            problem = f"{matrix} does not hold counts, and none can be recovered from it (normalised or scaled values)"
            remedy = (
                "Name the raw counts with `matrix: layers/NAME` or raw.X, or set checks.rules.not_counts: warn to "
                "keep the values as float32 expression."
            )
            raise _refusal(reader, "not_counts", problem, remedy)
        return {"not_counts": f"{matrix} does not hold counts; its values are kept as float32 expression"}
    return {}


def _first_negative(reader: CellReader) -> str:
    """The place of the first negative value among the first rows, as the end of a sentence."""
    matrix = reader.read_rows(0, min(len(reader.obs), FIRST_ROWS)).tocoo()
    found = np.flatnonzero(matrix.data < 0)
    if not len(found):
        return ""
    row, gene, value = int(matrix.row[found[0]]), matrix.col[found[0]], matrix.data[found[0]]
    cell = str(reader.obs.index[row])
    return f"; the first is {value:g} in cell {cell!r} (row {row:,}), gene {reader.gene_names[gene]!r}"


def _orthologs(reader: CellReader, species: str) -> str:
    """Explain how to map genes of another species to a human vocabulary."""
    here = _gene_place(reader)
    return (
        f"Map them to their human orthologs first, for instance with Ensembl's table (BioMart: {species} gene, human "
        "gene stable ID and name, one-to-one orthologs): write the human symbol or ENSG id of each gene to a new "
        f"column of var and name it with gene_column (now: {here}), or set checks.rules.wrong_species: "
        "warn to keep only genes with equal names."
    )


def _known_names(reader: CellReader, rule: str) -> str:
    return (
        "Known are human gene symbols and Ensembl ids (ENSG…): name the column of var that holds them with gene_column "
        f"(the names were taken from {_gene_place(reader)}), or lower checks.{rule}."
    )


def _gene_place(reader: CellReader) -> str:
    place = "the index of var" if reader.gene_column is None else f"var[{reader.gene_column!r}]"
    return f"{place}; columns of var: {', '.join(map(repr, reader.var_columns)) or 'none'}"


def _some(names: Iterable[str], *, count: int = EXAMPLES) -> str:
    """The first few of many names."""
    listed = list(names)
    return ", ".join(listed[:count]) + (", …" if len(listed) > count else "")


def _refusal(reader: CellReader, rule: str, problem: str, remedy: str) -> CorpusError:
    return CorpusError(f"{reader.source.uri}: {problem}.", remedy=remedy, uri=reader.source.uri, rule=rule)
