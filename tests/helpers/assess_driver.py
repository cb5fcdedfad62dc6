"""Assess a task on few cells with small fits, in a process that may be killed: assess_driver.py TASK SETTINGS."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from planted_batches import planted, write
from planted_proteins import build

TASKS = ("annotation", "integration", "mapping", "multiomic")


def make_small() -> None:
    """Fewer folds and draws, and smaller networks: the cells are few."""
    from cytoray.evaluation import annotator
    from cytoray.tasks.annotation import assessment as annotation
    from cytoray.tasks.integration import judging
    from cytoray.tasks.multiomic import assessment, members

    annotator.NUM_FOLDS = annotation.NUM_FOLDS = 2
    judging.NUM_DRAWS = 10
    assessment.NUM_FOLDS, members.NUM_NETWORKS, members.LAYERS = 2, 1, (16,)


def write_settings(task: str, folder: Path) -> dict[str, Any]:
    """Write the files of cells that a task is assessed on; return its settings, without ``out``."""
    if task == "multiomic":
        return {"data": str(write(folder, build()))}
    cells = {"data": str(write(folder, planted((50, 40)))), "label_key": "cell_type"}
    if task == "integration":
        return cells | {"batch_key": "batch"}
    if task == "annotation":
        return cells
    query = planted((40,), seed=3)[:, 80:].copy()  # with fewer genes the mapper is fitted twice
    return cells | {"query": str(write(folder, query, "q.h5ad"))}


if __name__ == "__main__":
    import cytoray

    make_small()
    cytoray.assess(sys.argv[1], **json.loads(sys.argv[2]))
