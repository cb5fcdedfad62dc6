"""The genes of a network, and the names of the evidence that cells give of its edges."""

# T transcription factors, G targets

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
CORRELATION, POOLED, TREES = "correlation", "pooled_correlation", "trees"


@dataclass(frozen=True, eq=False)
class Candidates:
    """The genes of a network, by name and by column of the data."""

    tfs: tuple[str, ...]  # (T,)
    targets: tuple[str, ...]  # (G,)
    tf_columns: Int64  # (T,)
    target_columns: Int64  # (G,)

    @cached_property
    def valid(self) -> Bool:
        """Whether a pair can be an edge, (T, G): a factor does not regulate itself here."""
        found: Bool = np.asarray(self.tfs, object)[:, None] != np.asarray(self.targets, object)[None]
        return found
