"""Read cells with RNA and proteins: CITE-seq in obsm, an h5mu, or one matrix whose features have types."""

# C cells, G genes, P proteins

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import sparse

from cytoray.corpus.config import ModalityConfig, SourceConfig
from cytoray.corpus.readers.base import CellReader
from cytoray.corpus.readers.opening import open_source
from cytoray.errors import CorpusError
from cytoray.evaluation.voters import Expression
from cytoray.tasks.multiomic.paired import PairedCells, RnaCells, build_proteins, build_rna, sum_columns

ROWS_AT_A_TIME = 4_096
LABEL_KEY = "cell_type"  # looked for if no column is named
PREDICTED = "X_protein_predicted"
# In order of preference: raw counts before what may be normalised.
_NAMES = (
    r"antibody.?capture", r"prot\w*[_ ]?(raw|counts?)", r"(adt|cite|antibody)\w*[_ ]?(raw|counts?)",
    r"prot(eins?)?", r"adt", r"\w*(prot|antibod|adt|cite)\w*",
)  # fmt: skip


def read_paired(
    uri: str, *, protein_key: str | None = None, label_key: str | None = None, batch_key: str | None = None
) -> PairedCells:
    """Read all cells of a file that have proteins.

    Without ``protein_key`` the proteins are found by the name of their matrix; without ``label_key`` labels are those
    of ``cell_type``, if there is such a column. Cells without a single count of a protein are left out, with a
    warning. Raises CorpusError for missing proteins or columns and for values that cannot be used.
    """
    with open_source(SourceConfig(uri=uri)) as reader:
        matrix = find_proteins(reader, protein_key)
    modality = ModalityConfig(name="protein", matrix=matrix)
    with open_source(SourceConfig(uri=uri, modalities=(modality,))) as reader:
        cells = read_rna_of(reader)
        features = reader.modality_features("protein")
        values = _read_all(lambda start, stop: reader.read_modality("protein", start, stop), len(cells.names)).toarray()
        labels = _column(reader, label_key, default=LABEL_KEY)
        batches = _column(reader, batch_key)
    proteins, warnings = build_proteins(values, features, uri=uri, cells=cells.names)
    paired = PairedCells(cells.rna, cells.genes, proteins, uri, cells.names, labels, batches, None, tuple(warnings))
    measured = np.flatnonzero((values != 0).any(axis=1))
    if len(measured) < len(values):
        warnings.append(f"{len(values) - len(measured):,} cells without a count of any protein were left out")
        paired = replace(paired.take(measured), warnings=tuple(warnings))
    return paired


def read_rna(uri: str) -> RnaCells:
    """Read the RNA of all cells of a file."""
    with open_source(SourceConfig(uri=uri)) as reader:
        return read_rna_of(reader)


def read_rna_of(reader: CellReader) -> RnaCells:
    """Read the RNA of all cells of an open file; columns of the same gene are summed."""
    num_cells = reader.describe().num_cells
    names = tuple(str(name) for name in reader.obs.index)
    matrix = _read_all(reader.read_rows, num_cells)
    rna = build_rna(matrix, uri=reader.source.uri, genes=reader.gene_names, cells=names)
    values, genes = sum_columns(rna.values, reader.gene_names)
    return RnaCells(Expression(values, rna.log_normalised), genes, names)


def find_proteins(reader: CellReader, key: str | None) -> str:
    """Return the name of the matrix of proteins: obsm/NAME or mod/NAME; CorpusError that lists those there."""
    uri, there = reader.source.uri, list(reader.modality_names)
    listed = f"Other matrices in it: {', '.join(there) or 'none'}."
    if key is not None:
        for name in (key, f"mod/{key}", f"obsm/{key}"):
            if name in there:
                return name
        raise CorpusError(f"{uri}: no proteins under {key!r}.", remedy=listed, uri=uri, key=key, matrices=there)
    plain = {name: name.partition("/")[2] for name in there if name.partition("/")[2] != PREDICTED}
    for pattern in _NAMES:
        for name, word in plain.items():
            if re.fullmatch(pattern, word, re.IGNORECASE):
                return name
    raise CorpusError(
        f"{uri}: no matrix of proteins found (a modality such as prot, a feature type Antibody Capture, or a key of "
        "obsm such as protein_counts).",
        remedy=f"Name it with --protein-key. {listed}",
        uri=uri,
        matrices=there,
    )


def _column(reader: CellReader, key: str | None, *, default: str | None = None) -> tuple[str, ...] | None:
    """One text per cell of a column of obs, "missing" if a cell has none; None without a column."""
    if key is None and (default is None or default not in reader.obs):
        return None
    found = reader.labels(key if key is not None else str(default))
    return tuple("missing" if text is None else text for text in found)


def _read_all(read: Any, num_cells: int) -> sparse.csr_matrix:
    """All rows of a matrix, read in slabs."""
    parts = [read(start, min(start + ROWS_AT_A_TIME, num_cells)) for start in range(0, num_cells, ROWS_AT_A_TIME)]
    return sparse.csr_matrix(sparse.vstack(parts, format="csr"))
