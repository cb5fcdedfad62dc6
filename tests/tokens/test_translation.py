"""Cells over the default vocabulary become the cells that a model with another vocabulary would be given."""

from __future__ import annotations

import numpy as np
import pytest

from cytoray.errors import ModelError
from cytoray.tokens.cells import SparseCells
from cytoray.tokens.packed import pack, unpack, with_bins, with_table
from cytoray.tokens.translation import Translation
from cytoray.tokens.vocabulary import GeneVocabulary

NAMES = ["CD3D", "MS4A1", "NKG7", "LYZ", "GNLY"]


def _cells() -> SparseCells:
    """Two cells over the default vocabulary, and one that has only a gene that the models below lack."""
    index = GeneVocabulary.load_default().index
    rows = [{"CD3D": 3.0, "LYZ": 300.0, "ACTB": 9.0}, {"MS4A1": 1.0, "NKG7": 2.0, "CD3D": 70_000.0}, {"ACTB": 4.0}]
    ids = [sorted((index[name], value) for name, value in row.items()) for row in rows]
    flat = [pair for row in ids for pair in row]
    return SparseCells(
        np.array([gene for gene, _ in flat], np.int32),
        np.array([value for _, value in flat], np.float32),
        np.cumsum([0, *map(len, rows)]).astype(np.int64),
        np.arange(3, dtype=np.uint64),
    )


def _by_name(cells: SparseCells, vocabulary: GeneVocabulary) -> list[dict[str, float]]:
    return [
        {
            vocabulary.tokens[gene]: float(value)
            for gene, value in zip(cells.gene_ids[start:stop], cells.values[start:stop], strict=True)
        }
        for start, stop in zip(cells.indptr[:-1], cells.indptr[1:], strict=True)
    ]


def test_genes_keep_their_values_under_their_new_ids_and_unknown_ones_are_left_out():
    vocabulary = GeneVocabulary(["<pad>", "<cls>", "<eoc>", *reversed(NAMES)])
    translation = Translation.to(vocabulary)
    assert translation is not None
    assert translation.num_genes == len(NAMES)
    wanted = [{"CD3D": 3.0, "LYZ": 300.0}, {"MS4A1": 1.0, "NKG7": 2.0, "CD3D": 70_000.0}, {}]
    packed = pack(_cells())
    for form in (packed, with_table(packed), with_bins(packed, np.ones(len(packed.values), np.int16))):
        found = translation.apply(form)
        assert found.bins is None, "bins were ranks among genes that the model lacks"
        assert found.holds_counts
        cells = unpack(found)
        assert _by_name(cells, vocabulary) == wanted
        assert all(
            np.all(np.diff(cells.gene_ids[a:b]) > 0) for a, b in zip(cells.indptr, cells.indptr[1:], strict=False)
        )
        assert cells.cell_ids.tolist() == [0, 1, 2]
    assert _by_name(translation.apply_sparse(_cells()), vocabulary) == wanted


def test_genes_are_found_by_the_rules_for_names_in_files():
    vocabulary = GeneVocabulary(["ENSG00000167286", "CD20", "LYZ"])  # an Ensembl id, an alias, a symbol
    translation = Translation.to(vocabulary)
    assert translation is not None
    found = _by_name(translation.apply_sparse(_cells()), vocabulary)
    assert found[0] == {"ENSG00000167286": 3.0, "LYZ": 300.0}


def test_the_default_vocabulary_needs_no_translation_and_foreign_genes_are_refused():
    assert Translation.to(GeneVocabulary.load_default()) is None
    assert Translation.to(GeneVocabulary(list(GeneVocabulary.load_default().tokens))) is None
    with pytest.raises(ModelError, match="no gene that corpora are stored over"):
        Translation.to(GeneVocabulary([f"peak{number}" for number in range(5)]))
