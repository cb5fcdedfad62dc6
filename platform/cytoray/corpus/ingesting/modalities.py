"""Check further matrices over the cells of a source: proteins, peaks or guides, as counts or as other values."""

# C cells, F features of a modality

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse

from cytoray.corpus.readers.base import CellReader
from cytoray.errors import CorpusError

SAMPLE_ROWS = 256  # of a modality, to see whether it holds counts


def judge_modality(reader: CellReader, name: str, *, num_cells: int) -> bool:
    """Return whether the first cells of a modality hold counts; CorpusError for values below zero.

    Values that are not finite do not count here: their cells may be left out later.
    """
    values = reader.read_modality(name, 0, min(SAMPLE_ROWS, num_cells))
    data = values.data[np.isfinite(values.data)]
    if (data < 0).any():
        check_modality(reader, name, values, counts=False, rows=np.arange(values.shape[0]))
    return bool((data == np.rint(data)).all())


def check_modality(
    reader: CellReader, name: str, values: sparse.csr_matrix, *, counts: bool, rows: npt.NDArray[np.integer]
) -> None:
    """Raise CorpusError for the first value that is not finite, below zero or, of ``counts``, a fraction.

    ``rows`` (C,) are the rows of the cells in the source. Values below zero are never counts: they were centred (CLR)
    or scaled, which cannot be undone.
    """
    data = values.data
    bad = ~np.isfinite(data) | (data < 0)
    if counts:
        bad |= data != np.rint(data)
    if not bad.any():
        return
    first = int(np.argmax(bad))
    row = int(np.searchsorted(values.indptr, first, side="right")) - 1
    feature, value = reader.modality_features(name)[values.indices[first]], data[first]
    why = ": centred (CLR) or scaled values have lost their counts" if value < 0 else ""
    raise CorpusError(
        f"{reader.source.uri}: modality {name!r} holds {value:g} for {feature!r} in row {rows[row]:,}, "
        f"which is not a {'count' if counts or value < 0 else 'number'}{why}.",
        remedy="Name a matrix of raw counts in sources.modalities, or leave the modality out.",
        uri=reader.source.uri,
        rule="modality",
        key=name,
    )


def modality_notes(features: Mapping[str, Sequence[str]], whole: Mapping[str, bool]) -> Iterator[str]:
    """Yield a remark on each modality for the user: its size, and a warning if it does not hold counts."""
    for name, names in features.items():
        some = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        kept = "counts, kept exactly" if whole[name] else "not counts: kept as they are, of which only ranks are used"
        yield f"modality {name} ({len(names):,} features: {some}) holds {kept}"
