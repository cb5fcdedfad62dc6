"""Read the cells of a reference and of a query, with their genes mapped and their labels, batches and names."""

# C cells, V genes of the vocabulary

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from cytoray.corpus.config import SourceConfig
from cytoray.corpus.readers.finding import find_sources
from cytoray.corpus.reading import NamedCells, read_cells, read_labelled_cells
from cytoray.errors import CorpusError
from cytoray.evaluation.voters import Expression
from cytoray.tasks.annotation.labelled import label_warnings
from cytoray.tasks.mapping.inputs import MapCells, as_expression, keep_genes
from cytoray.tokens.labels import is_placeholder
from cytoray.tokens.vocabulary import GeneVocabulary


def read_reference(
    uris: Sequence[str], label_key: str, *, batch_key: str | None, vocabulary: GeneVocabulary
) -> tuple[MapCells, list[str]]:
    """Read all labelled cells of files or prefixes, and return them with warnings about those left out.

    A name that occurs twice gets its source before it. Raises CorpusError for cells without labels.
    """
    parts = []
    for source in find_sources([SourceConfig(uri=uri) for uri in uris]).sources:
        named = read_labelled_cells(source, label_key, second_key=batch_key, vocabulary=vocabulary)
        parts.append(_as_cells(named, source.identity, vocabulary, has_batches=batch_key is not None))
    cells = _joined(parts)
    placeholders = Counter(label for label in cells.labels if is_placeholder(str(label)))
    kept = np.flatnonzero([label not in placeholders for label in cells.labels])
    if len(kept) < 2:
        raise CorpusError(
            f"{', '.join(uris)}: {len(kept)} cells have a cell type in {label_key!r}; a reference needs at least two.",
            remedy="Set --label-key to the column of cell types.",
        )
    warnings = [f"{count} cells labelled {label!r} were left out" for label, count in sorted(placeholders.items())]
    cells = cells.take(kept)
    return cells, [*warnings, *label_warnings([str(label) for label in cells.labels], cells.batches)]


def read_query(uri: str, *, vocabulary: GeneVocabulary, label_key: str | None = None) -> MapCells:
    """Read all cells of a file, those without genes included; labels are None without ``label_key``."""
    named = read_cells(SourceConfig(uri=uri), vocabulary=vocabulary, keep_empty=True, label_key=label_key)
    return _as_cells(named, SourceConfig(uri=uri).identity, vocabulary, has_batches=False)


def _as_cells(named: NamedCells, source: str, vocabulary: GeneVocabulary, *, has_batches: bool) -> MapCells:
    measured = np.zeros(vocabulary.size, bool)
    assert named.measured is not None, "read from a file"
    measured[named.measured] = True
    batches = tuple("missing" if batch is None else batch for batch in named.second) if has_batches else None
    labels = tuple(None if label is None else str(label) for label in named.labels)
    expression = as_expression(named.cells, num_genes=vocabulary.size)
    return MapCells(expression, named.names, labels, (source,) * len(named.names), batches, measured)


def _joined(parts: Sequence[MapCells]) -> MapCells:
    """The cells of several files, over the genes that all of them measured."""
    names = [name for part in parts for name in part.names]
    sources = tuple(source for part in parts for source in part.sources)
    twice = {name for name, count in Counter(names).items() if count > 1}
    called = [f"{source}/{name}" if name in twice else name for name, source in zip(names, sources, strict=True)]
    seen: Counter[str] = Counter()
    for place, name in enumerate(called):
        seen[name] += 1
        called[place] = name if seen[name] == 1 else f"{name}-{seen[name]}"
    measured = np.logical_and.reduce([part.measured for part in parts if part.measured is not None])
    values = sparse.vstack([part.expression.values for part in parts], format="csr")
    has_batches = parts[0].batches is not None
    batches = tuple(batch for part in parts for batch in part.batches or ()) if has_batches else None
    if len(parts) > 1:
        values = keep_genes(values, measured)
        batches = tuple(f"{a}/{b}" for a, b in zip(sources, batches, strict=True)) if batches else sources
    labels = tuple(label for part in parts for label in part.labels)
    return MapCells(Expression(values), tuple(called), labels, sources, batches, measured)
