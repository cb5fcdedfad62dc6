"""The embeddings of a session's cells, as the model answered them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from cytoray.serving.explorer.answering import EMBEDDED, answers_file


def read_embeddings(folder: Path) -> npt.NDArray[np.float32]:
    """Read the embeddings (C, D) that the model gave, NaN for a cell without one."""
    column = pq.read_table(answers_file(folder, EMBEDDED), columns=["embedding"])["embedding"].combine_chunks()
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(len(column), -1)
