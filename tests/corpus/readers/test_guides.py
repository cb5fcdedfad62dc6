"""Guide tables become a column of perturbations, by the share of each target among a cell's guides."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cytoray.corpus.config import GuideConfig, SourceConfig
from cytoray.corpus.readers.opening import open_source
from cytoray.errors import ConfigError, CorpusError

GUIDES = ("STAT2g1", "STAT2g2", "sgIRF1_1", "NTg1", "safe-1")
COUNTS = np.array(
    [
        [9, 0, 0, 0, 0],
        [5, 5, 0, 1, 0],
        [6, 0, 6, 0, 0],
        [0, 0, 1, 9, 0],
        [0, 0, 3, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 1, 0, 0, 9],
    ]
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    cells = [f"c{row}" for row in range(len(COUNTS))]
    genes = pd.DataFrame(index=["CD3E", "CD19", "STAT2", "IRF1"])
    data = anndata.AnnData(sparse.csr_matrix(np.ones((len(COUNTS), 4), np.float32)), pd.DataFrame(index=cells), genes)
    data.obsm["guide_counts"] = sparse.csr_matrix(COUNTS)
    data.uns["guide_names"] = np.array(GUIDES)
    data.write_h5ad(tmp_path / "screen.h5ad")
    return tmp_path / "screen.h5ad"


def perturbations(path: Path, **changes: object) -> list[str]:
    guides = GuideConfig.model_validate({"matrix": "obsm/guide_counts", **changes}, strict=False)
    with open_source(SourceConfig(uri=str(path), guides=guides)) as reader:
        return [str(value) for value in reader.obs[guides.column]]


def test_the_target_with_most_of_the_guide_counts_is_assigned(path: Path) -> None:
    found = perturbations(path)
    assert found == ["STAT2", "STAT2", "unassigned", "control", "unassigned", "unassigned", "safe"]
    assert perturbations(path, controls=["safe"], column="guide")[-1] == "control"


def test_several_targets_are_joined(path: Path) -> None:
    found = perturbations(path, max_targets=2, min_counts=1)
    assert found == ["STAT2", "STAT2", "IRF1+STAT2", "control", "IRF1", "unassigned", "safe"]


def test_the_remarks_count_the_cells(path: Path) -> None:
    with open_source(SourceConfig(uri=str(path), guides=GuideConfig(matrix="obsm/guide_counts"))) as reader:
        assert len(reader.obs) == len(COUNTS)
        notes = " ".join(reader.describe().notes)
    assert "obsm/guide_counts gives 'perturbation': 2 perturbations, 1 control cells, 3 unassigned" in notes
    assert "is not read" not in notes


def test_tables_and_patterns_that_are_wrong_are_refused(path: Path) -> None:
    with pytest.raises(CorpusError, match="guides"):
        perturbations(path, matrix="obsm/guides")
    with pytest.raises((ValueError, ConfigError), match="no group in brackets"):
        perturbations(path, target_pattern="STAT.")
