"""Read anyone's labelled cells for an assessment: genes mapped and values checked as in an ingest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy import sparse

from cytoray.config import read_tree
from cytoray.corpus.config import SourceConfig
from cytoray.corpus.reading import read_labelled_cells
from cytoray.errors import ConfigError
from cytoray.evaluation.label_matching import Synonym
from cytoray.evaluation.voters import Expression
from cytoray.tasks.annotation.annotator import LabelledCells
from cytoray.tokens.vocabulary import GeneVocabulary


def read_labelled(uri: str, label_key: str, *, batch_key: str | None = None) -> LabelledCells:
    """Read all cells of a file that have a label, and with ``batch_key`` the batch of each: "missing" if it has none.

    Raises CorpusError for a file that cannot be read, a missing column or cells without labels.
    """
    named = read_labelled_cells(SourceConfig(uri=uri), label_key, second_key=batch_key)
    cells = named.cells
    values = cells.values.astype(np.float32)
    shape = (cells.num_cells, GeneVocabulary.load_default().size)
    matrix = sparse.csr_matrix((values, cells.gene_ids, cells.indptr), shape=shape)
    batches = None if batch_key is None else tuple("missing" if batch is None else batch for batch in named.second)
    log_normalised = bool((values != np.round(values)).any())
    return LabelledCells(Expression(matrix, log_normalised), tuple(str(label) for label in named.labels), uri, batches)


def gene_synonym() -> Synonym:
    """Return a function that gives a word's gene symbol if it is an alias of a gene, else the word."""
    vocabulary = GeneVocabulary.load_default()

    def synonym(word: str) -> str:
        """Return the symbol, or the word."""
        (gene,) = vocabulary.map_genes([word]).ids.tolist()
        return vocabulary.tokens[gene] if gene >= 0 else word

    return synonym


def read_label_map(path: Path) -> dict[str, str]:
    """Read a table of labels, {name in the data: name to assess}, from a JSON or YAML file."""
    table = read_tree(path).data  # JSON is YAML as well
    if wrong := [label for label, name in table.items() if not isinstance(name, str)]:
        raise ConfigError(
            f"{path}: the name of {wrong[0]!r} is not text.", remedy='Write {"name in the data": "name", ...}.'
        )
    return {str(label): name for label, name in table.items()}
