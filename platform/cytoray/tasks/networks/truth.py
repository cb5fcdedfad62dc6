"""Known edges among the genes of a network."""

# T transcription factors, G targets

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cytoray.errors import CorpusError
from cytoray.evaluation.networks.scores import KnownEdges
from cytoray.tasks.networks.candidates import Candidates
from cytoray.tasks.networks.reading import match_edges, read_known_edges


def known_of(uri: str, candidates: Candidates, *, confidence: Sequence[str] = ("A", "B")) -> KnownEdges:
    """Read a table of known edges and find those among the candidates.

    Raises ConfigError for a table of another kind, CorpusError if it shares no factor, or no edge, with the network.
    """
    listed = read_known_edges(uri, confidence=confidence)
    edges = match_edges(listed, sorted({*candidates.tfs, *candidates.targets}))
    rows = {tf: row for row, tf in enumerate(candidates.tfs)}
    columns = {target: column for column, target in enumerate(candidates.targets)}
    shape = candidates.valid.shape
    found, signs = np.zeros(shape, bool), np.zeros(shape, np.int8)
    for edge in edges:
        if edge.tf in rows and edge.target in columns and edge.tf != edge.target:
            found[rows[edge.tf], columns[edge.target]] = True
            signs[rows[edge.tf], columns[edge.target]] = edge.sign
    if not found.any():
        theirs = sorted({edge.tf for edge in listed})
        shared = "shares no factor with" if not {edge.tf for edge in edges} & rows.keys() else "has no edge of"
        raise CorpusError(
            f"{uri} {shared} the network: its factors are {', '.join(theirs[:3])}, …, those of the network "
            f"{', '.join(candidates.tfs[:3])}, ….",
            remedy="Give a table in the gene names of the data, of the same species.",
        )
    return KnownEdges(found, signs, candidates.valid)
