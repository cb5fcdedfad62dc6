"""Check the embeddings and names that scores and corrections are computed from."""

# C cells, D dimensions

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cytoray.errors import CorpusError

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


def code_names(names: Sequence[str], what: str = "name") -> tuple[Int64, tuple[str, ...]]:
    """Return codes (C,) into the sorted distinct names, and these; raises CorpusError if a name is missing."""
    missing = [row for row, name in enumerate(names) if name is None or name != name or str(name) in ("", "nan")]
    if missing:
        raise CorpusError(
            f"{len(missing)} of {len(names)} cells have a missing {what} (the first in row {missing[0]}).",
            remedy="Leave these cells out, or name them.",
            rows=missing[:5],
        )
    distinct, codes = np.unique(np.asarray([str(name) for name in names], str), return_inverse=True)
    return codes.astype(np.int64), tuple(map(str, distinct))


def finite_points(points: npt.NDArray[np.floating], what: str) -> Float64:
    """Return ``points`` (C, D) in double precision; raises CorpusError for no cells or values that are not finite."""
    values = np.asarray(points, np.float64)
    assert values.ndim == 2, f"{what}: expected (cells, dimensions), got shape {values.shape}"
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(values) == 0 or len(bad):
        problem = (
            f"{len(bad)} cells with values that are not finite (the first in row {bad[0]})" if len(bad) else "no cells"
        )
        raise CorpusError(f"The {what} has {problem}.", remedy="Embed the cells again, or leave these out.")
    return values
