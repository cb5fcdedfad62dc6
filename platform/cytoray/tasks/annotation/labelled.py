"""Read anyone's labelled cells for an assessment: genes mapped and values checked as in an ingest."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import sparse

from cytoray import storage
from cytoray.config import read_tree
from cytoray.corpus.config import SourceConfig
from cytoray.corpus.reading import read_labelled_cells
from cytoray.errors import ConfigError
from cytoray.evaluation.label_matching import Synonym
from cytoray.evaluation.voters import Expression
from cytoray.tasks.annotation.annotator import LabelledCells
from cytoray.tokens.vocabulary import GeneVocabulary

MOST_NAMED = 5  # labels that a warning lists
FEW_SCORED = 20


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


def label_warnings(labels: Sequence[str], batches: Sequence[str] | None = None) -> list[str]:
    """Return warnings about labels that are hard to learn or to score, alone or by the batches that they occur in."""
    counts = Counter(labels)
    warnings = []
    if len(counts) == 1:
        warnings.append(
            f"all {len(labels)} cells have the label {next(iter(counts))!r}: there is nothing to tell apart"
        )
    single = [label for label, count in sorted(counts.items()) if count == 1]
    if len(single) > MOST_NAMED:
        warnings.append(f"{len(single)} of {len(counts)} labels have one cell, such as {single[0]!r}")
    else:
        warnings += [f"label {label!r} has one cell" for label in single]
    return warnings + confounding_warning(labels, batches)


def confounding_warning(labels: Sequence[str], batches: Sequence[str] | None) -> list[str]:
    """Return a warning if each label occurs in one of several batches only."""
    if batches is None or len(set(batches)) < 2:
        return []
    batches_of: dict[str, set[str]] = {}
    for label, batch in zip(labels, batches, strict=True):
        batches_of.setdefault(label, set()).add(batch)
    if any(len(found) > 1 for found in batches_of.values()):
        return []
    return ["each label occurs in one batch only: labels and batches cannot be separated"]


def few_scored_warning(num_cells: int) -> list[str]:
    """Return a warning if so few cells are scored that the figures say little."""
    if num_cells >= FEW_SCORED:
        return []
    return [f"only {num_cells} cells are scored: figures of fewer than {FEW_SCORED} cells are not reliable"]


def gene_synonym() -> Synonym:
    """Return a function that gives a word's gene symbol if it is an alias of a gene, else the word."""
    vocabulary = GeneVocabulary.load_default()

    def synonym(word: str) -> str:
        """Return the symbol, or the word."""
        (gene,) = vocabulary.map_genes([word]).ids.tolist()
        return vocabulary.tokens[gene] if gene >= 0 else word

    return synonym


def read_label_map(uri: str) -> dict[str, str]:
    """Read a table of labels, {name in the data: name to assess}, from a JSON or YAML file, local or s3://."""
    with tempfile.TemporaryDirectory(prefix="cytoray-labels-") as scratch:
        path = Path(scratch) / "labels.yaml"
        if storage.is_remote(uri):
            path.write_bytes(storage.read_bytes(uri))
        else:
            path = storage.local_path(uri)
        table = read_tree(path).data  # JSON is YAML as well
    if wrong := [label for label, name in table.items() if not isinstance(name, str)]:
        raise ConfigError(
            f"{uri}: the name of {wrong[0]!r} is not text.", remedy='Write {"name in the data": "name", ...}.'
        )
    return {str(label): name for label, name in table.items()}
