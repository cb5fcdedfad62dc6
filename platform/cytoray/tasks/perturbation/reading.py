"""Read a screen from a file of cells or an AnnData: a column of obs, or a table of guides in obsm."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from cytoray.corpus.config import ModalityConfig, SourceConfig
from cytoray.corpus.readers.base import CellReader
from cytoray.corpus.readers.opening import open_source
from cytoray.errors import CorpusError
from cytoray.evaluation.voters import Expression
from cytoray.tasks.multiomic.paired import RnaCells, build_rna, sum_columns
from cytoray.tasks.multiomic.reading import ROWS_AT_A_TIME, read_rna_of
from cytoray.tasks.perturbation.covariates import numeric_columns
from cytoray.tasks.perturbation.screen import Columns, Screen, ScreenColumns, build_screen

DOMINANT_SHARE, FEWEST_UMIS = 0.8, 5  # of a cell's guide counts: its guide is then clear


def read_screen(cells: Any, columns: Columns) -> Screen:
    """Read a file or an AnnData; ``columns.perturbation`` is a column of obs or a table of guide counts in obsm.

    In a table of guides a cell has the guide with more than DOMINANT_SHARE of its counts and at least FEWEST_UMIS.
    Raises CorpusError for missing columns and for values that cannot be used.
    """
    if not isinstance(cells, str | Path):
        return _screen_of(cells, columns)
    uri = str(cells)
    with open_source(SourceConfig(uri=uri)) as reader:
        is_table = columns.perturbation not in reader.obs and f"obsm/{columns.perturbation}" in reader.modality_names
        check_columns(columns, list(map(str, reader.obs)), list(reader.modality_names), uri=uri)
    modalities = (ModalityConfig(name="guides", matrix=f"obsm/{columns.perturbation}"),) if is_table else ()
    with open_source(SourceConfig(uri=uri, modalities=modalities)) as reader:
        rna = read_rna_of(reader)
        values = _dominant_guides(reader, len(rna.names)) if is_table else reader.labels(columns.perturbation)
        batches, types = (_texts(reader, key) for key in (columns.batch, columns.cell_type))
        numbers = numeric_columns(reader.obs, columns.covariates, uri=uri)
    return build_screen(rna, ScreenColumns(values, batches, types, numbers), columns, uri=uri)


def cell_type_column(uri: str) -> str | None:
    """Return the column of obs that is called cell_type or the like; None unless there is exactly one."""
    with open_source(SourceConfig(uri=uri)) as reader:
        names = [str(name) for name, values in reader.obs.items() if values.dtype.kind != "f"]  # no probabilities
    found = [name for name in names if re.match(r"cell[ _.]?type", name, re.IGNORECASE)]
    return found[0] if len(found) == 1 else None


def check_columns(columns: Columns, there: Sequence[str], matrices: Sequence[str], *, uri: str) -> None:
    """Raise CorpusError that lists the nearest columns if one is missing."""
    wanted = [
        ("--perturbation-key", columns.perturbation),
        ("--batch-key", columns.batch),
        ("--cell-type-key", columns.cell_type),
        *(("--covariates", name) for name in columns.covariates),
    ]
    for option, key in wanted:
        if key is None or key in there or (option == "--perturbation-key" and f"obsm/{key}" in matrices):
            continue
        near = difflib.get_close_matches(key, there, n=3, cutoff=0.4) or list(there)[:8]
        raise CorpusError(
            f"{uri}: obs has no column {key!r}.",
            remedy=f"Name it with {option}. Nearest: {', '.join(near) or 'none'}.",
            column=key,
            nearest=near,
        )


def dominant(counts: sparse.csr_matrix, names: Sequence[str]) -> list[str | None]:
    """Return the dominant guide of each cell, None if it has none."""
    matrix = sparse.csr_matrix(counts)
    totals = np.asarray(matrix.sum(axis=1)).ravel()
    largest = np.asarray(matrix.max(axis=1).todense()).ravel()
    places = np.asarray(matrix.argmax(axis=1)).ravel()
    clear = (largest >= FEWEST_UMIS) & (largest > DOMINANT_SHARE * totals)
    return [names[place] if good else None for place, good in zip(places, clear, strict=True)]


def _dominant_guides(reader: CellReader, num_cells: int) -> list[str | None]:
    starts = range(0, num_cells, ROWS_AT_A_TIME)
    parts = [reader.read_modality("guides", start, min(start + ROWS_AT_A_TIME, num_cells)) for start in starts]
    return dominant(sparse.csr_matrix(sparse.vstack(parts)), reader.modality_features("guides"))


def _texts(reader: CellReader, key: str | None) -> list[str] | None:
    """One text per cell of a column of obs; None without a column."""
    if key is None:
        return None
    return ["missing" if text is None else text for text in reader.labels(key)]


def _screen_of(adata: Any, columns: Columns) -> Screen:
    """The screen of an AnnData."""
    if not hasattr(adata, "obsm"):
        raise CorpusError(f"These cells are a {type(adata).__name__}.", remedy="Give a file of cells or an AnnData.")
    from cytoray.tokens.labels import label_texts

    check_columns(columns, list(adata.obs), [f"obsm/{key}" for key in adata.obsm], uri="AnnData")
    if columns.perturbation in adata.obs:
        values = label_texts(adata.obs[columns.perturbation])
    else:
        table = adata.obsm[columns.perturbation]
        names = list(map(str, getattr(table, "columns", adata.uns.get("guide_names", range(table.shape[1])))))
        values = dominant(sparse.csr_matrix(np.asarray(table) if hasattr(table, "columns") else table), names)
    batches, types = (
        None if key is None else [text or "missing" for text in label_texts(adata.obs[key])]
        for key in (columns.batch, columns.cell_type)
    )
    numbers = numeric_columns(adata.obs, columns.covariates, uri="AnnData")
    return build_screen(rna_of(adata), ScreenColumns(values, batches, types, numbers), columns, uri="AnnData")


def rna_of(adata: Any) -> RnaCells:
    """Return the RNA of an AnnData, of counts or log-normalised expression in X; columns of one gene are summed."""
    names, genes = (tuple(map(str, index)) for index in (adata.obs_names, adata.var_names))
    rna = build_rna(sparse.csr_matrix(adata.X), uri="AnnData", genes=genes, cells=names)
    values, genes = sum_columns(rna.values, genes)
    return RnaCells(Expression(values, rna.log_normalised), genes, names)
