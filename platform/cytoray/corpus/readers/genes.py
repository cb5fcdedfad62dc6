"""Find the names and the Ensembl ids in a table of genes, whatever its columns are called."""

# G genes

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cytoray.corpus.config import SourceConfig
from cytoray.corpus.readers.problems import no_column
from cytoray.tokens.gene_table import (
    genome_species,
    guess_species,
    human_symbols,
    id_species,
    split_genomes,
    unversioned,
)

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
_NUMBER = re.compile(r"\d+(\.0+)?")
_ENOUGH_SYMBOLS = 0.3  # of a column's values
_LOOKED_AT = 2_000  # names that decide what a column holds


def gene_column(var: pd.DataFrame, source: SourceConfig) -> str | None:
    """Return the column of var that names the G genes, None for the index.

    That is ``gene_column``, else the index, unless it holds ids, numbers or names of unknown kind and a column holds
    gene symbols: one with a usual name, or else the column of text with the most human symbols.
    """
    if source.gene_column is not None:
        return source.gene_column
    index = _texts(var.index)
    is_ids, is_numbers = _share_of_ids(index) >= 0.5, _are_numbers(index)
    if not is_ids and not is_numbers and guess_species(index[:_LOOKED_AT]) != "unknown":
        return None
    for column in _SYMBOL_COLUMNS:
        if is_ids and column in var and _share_of_ids(names := _texts(var[column])) < 0.5 and not _are_numbers(names):
            return column
    if is_ids:
        return None
    shares = {name: _share_of_symbols(_texts(var[name])) for name in _text_columns(var)}
    order = {name: place for place, name in enumerate(_SYMBOL_COLUMNS)}
    best = min(shares, key=lambda name: (-shares[name], order.get(name, len(order))), default=None)
    if best is not None and shares[best] >= _ENOUGH_SYMBOLS:
        return best
    # Of another species: a column with a usual name is better than numbers.
    usual = (name for name in _SYMBOL_COLUMNS if name in shares and guess_species(_texts(var[name])) != "unknown")
    return next(usual, None)


def gene_names(var: pd.DataFrame, source: SourceConfig) -> list[str]:
    """Return the names of the G genes, from the column of ``gene_column`` or, for a gene without one, the index."""
    index, column = _texts(var.index), gene_column(var, source)
    if column is None:
        return index
    names = _texts(_column(var, column, source.uri))
    return names if source.gene_column else [name or other for name, other in zip(names, index, strict=True)]


def ensembl_ids(var: pd.DataFrame, names: Sequence[str], source: SourceConfig) -> list[str] | None:
    """Return the Ensembl ids of the G genes: ``ensembl_column``, else a column (or the index) of ids; else None."""
    if source.ensembl_column is not None:
        return _texts(_column(var, source.ensembl_column, source.uri))
    if _share_of_ids(names) >= 0.5:
        return None  # the names are the ids
    if _share_of_ids(index := _texts(var.index)) >= 0.5:
        return index if source.gene_column is None else _human_only(index)
    columns = [column for column in _ENSEMBL_COLUMNS if column in var]
    columns += [column for column in _text_columns(var) if column not in columns]
    there = (_texts(var[column]) for column in columns)
    found = next((ids for ids in there if _share_of_ids(ids) >= 0.5), None)
    return found if found is None or source.gene_column is None else _human_only(found)


def _human_only(ids: Sequence[str]) -> list[str]:
    """Ids found beside names that the user chose: ids of mouse genes say nothing if the names are human orthologs."""
    return [gene_id if id_species(gene_id) in ("human", "unknown") else "" for gene_id in ids]


def gene_genomes(var: pd.DataFrame) -> list[str] | None:
    """Assembly or species of each of the G genes, from a column that names some; None if there is no such column."""
    for column in _GENOME_COLUMNS:
        if column in var and any(
            genome_species(str(value)) != "unknown" for value in var[column].unique()[:_LOOKED_AT]
        ):
            return _texts(var[column])
    return None


def _text_columns(var: pd.DataFrame) -> list[str]:
    """Columns that hold text, each name once."""
    found = []
    for name in dict.fromkeys(var.columns):
        column = var[name]
        if isinstance(column, pd.Series) and (
            isinstance(column.dtype, pd.CategoricalDtype) or column.dtype.kind in "OU"
        ):
            found.append(name)
    return found


def _share_of_symbols(names: Sequence[str]) -> float:
    """Share of human gene symbols among the names that are not empty."""
    there = [name for name in names[:_LOOKED_AT] if name] or [""]
    return sum(name in human_symbols() for name in there) / len(there)


def _column(var: pd.DataFrame, column: str, uri: str) -> pd.Series[Any]:
    if column not in var:
        raise no_column(uri, "var", column, [str(name) for name in var.columns])
    return var[column]


def _texts(values: pd.Series[Any] | pd.Index[Any]) -> list[str]:
    """Values as text; a missing one is empty."""
    objects = np.asarray(values, dtype=object)
    return ["" if missing else str(value) for value, missing in zip(objects, pd.isna(objects), strict=True)]


def _share_of_ids(names: Sequence[str]) -> float:
    """Share of gene ids, with or without their genome before them, among the names that are not empty."""
    there = split_genomes([name for name in names[:_LOOKED_AT] if name] or [""])[0]
    return sum(bool(unversioned(name)) for name in there) / len(there)


def _are_numbers(names: Sequence[str]) -> bool:
    """Whether all names are numbers, as in an index that was never set."""
    return bool(names) and all(_NUMBER.fullmatch(name) for name in names[:_LOOKED_AT])
