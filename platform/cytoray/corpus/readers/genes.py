"""Find the names and the Ensembl ids of a table of genes without being told where they are."""

# G genes

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cytoray.corpus.config import SourceConfig
from cytoray.corpus.readers.problems import no_column
from cytoray.tokens.gene_table import genome_species, split_genomes, unversioned

# Where the CELLxGENE schema, 10x, scanpy, Seurat's converters, loompy and others keep them, best first.
_SYMBOL_COLUMNS = (
    "feature_name", "gene_symbols", "gene_symbol", "gene_name", "gene_names", "hgnc_symbol", "symbol", "symbols",
    "Symbol", "SYMBOL", "Gene", "GeneSymbol", "gene_short_name", "original_gene_symbols", "features", "name",
)  # fmt: skip
_ENSEMBL_COLUMNS = (
    "gene_ids", "ensembl_id", "ensembl_ids", "ensembl", "gene_id", "feature_id", "Accession", "ensembl_gene_id",
    "ensemblid", "EnsemblID", "ENSEMBL", "Ensembl", "id", "gene", "soma_joinid", "accession",
)  # fmt: skip
_GENOME_COLUMNS = ("genome", "Genome", "feature_reference", "species", "organism", "assembly")
_LOOKED_AT = 2_000  # names that decide what a column holds


def gene_names(var: pd.DataFrame, source: SourceConfig) -> list[str]:
    """Names of the G genes: ``gene_column``, else the index, unless ids or numbers are there and symbols beside it."""
    if source.gene_column is not None:
        return _texts(_column(var, source.gene_column, source.uri))
    index = _texts(var.index)
    if _share_of_ids(index) < 0.5 and not _are_numbers(index):
        return index
    for column in _SYMBOL_COLUMNS:
        if column in var and _share_of_ids(names := _texts(var[column])) < 0.5 and not _are_numbers(names):
            return [name or other for name, other in zip(names, index, strict=True)]
    return index


def ensembl_ids(var: pd.DataFrame, names: Sequence[str], source: SourceConfig) -> list[str] | None:
    """Ensembl ids of the G genes: ``ensembl_column``, else a column (or the index) that holds such; None if none."""
    if source.ensembl_column is not None:
        return _texts(_column(var, source.ensembl_column, source.uri))
    if _share_of_ids(names) >= 0.5:
        return None  # the names are the ids
    if _share_of_ids(index := _texts(var.index)) >= 0.5:
        return index
    there = (_texts(var[column]) for column in _ENSEMBL_COLUMNS if column in var)
    return next((ids for ids in there if _share_of_ids(ids) >= 0.5), None)


def gene_genomes(var: pd.DataFrame) -> list[str] | None:
    """Assembly or species of each of the G genes, from a column that names some; None if there is no such column."""
    for column in _GENOME_COLUMNS:
        if column in var and any(
            genome_species(str(value)) != "unknown" for value in var[column].unique()[:_LOOKED_AT]
        ):
            return _texts(var[column])
    return None


def _column(var: pd.DataFrame, column: str, uri: str) -> pd.Series[Any]:
    if column not in var:
        raise no_column(uri, "var", column, [str(name) for name in var.columns])
    return var[column]


def _texts(values: pd.Series[Any] | pd.Index[Any]) -> list[str]:
    """Values as text, a missing one as none."""
    objects = np.asarray(values, dtype=object)
    return ["" if missing else str(value) for value, missing in zip(objects, pd.isna(objects), strict=True)]


def _share_of_ids(names: Sequence[str]) -> float:
    """Share of gene ids, with or without their genome before them, among the names that are not empty."""
    there = split_genomes([name for name in names[:_LOOKED_AT] if name] or [""])[0]
    return sum(bool(unversioned(name)) for name in there) / len(there)


def _are_numbers(names: Sequence[str]) -> bool:
    """Whether all names are numbers, as an index is that nobody gave."""
    return bool(names) and all(name.isdecimal() for name in names[:_LOOKED_AT])
