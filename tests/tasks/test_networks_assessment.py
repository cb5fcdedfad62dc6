"""Assessments of gene networks on planted cells: known edges, halves and knock-outs, beside correlation and trees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from planted_network import EDGES, FACTORS, GENES, build, write_truth
from planted_reference import build_bundle
from pydantic import ValidationError
from scipy import sparse, stats
from typer.testing import CliRunner

import cytoray
from cytoray.cli.main import app
from cytoray.errors import ConfigError, CorpusError
from cytoray.model.bundle import save_bundle
from cytoray.tasks.networks.assess_config import AssessNetworksConfig
from cytoray.tasks.networks.screen import stratified_welch

SMALL: dict[str, Any] = {"num_trees": 30, "block_size": 30, "pool_size": 3, "run_on": "here", "gene_sets": "none"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cells")
    build().write_h5ad(folder / "cells.h5ad")
    write_truth(folder / "truth.tsv")
    write_screen(folder / "screen.h5ad")
    return folder


def write_screen(path: Path) -> None:
    """Cells of which some lack IRF1 and with it the expression of its targets."""
    adata = build(240, seed=5)
    counts = adata.X.toarray()
    knocked = np.arange(240) % 3 == 0
    for target in EDGES["IRF1"]:
        counts[knocked, GENES.index(target)] = 0
    adata.X = sparse.csr_matrix(counts)
    adata.obs["perturbation"] = pd.Categorical(np.where(knocked, "IRF1", "control"))
    adata.write_h5ad(path)


def test_planted_edges_are_found_and_reported(files: Path) -> None:
    options = ["--data", str(files / "cells.h5ad"), "--truth", str(files / "truth.tsv"), "--out", str(files / "report")]
    options += ["--screen", str(files / "screen.h5ad"), "--num-trees", "30", "--block-size", "30", "--pool-size", "3"]
    command = ["assess", "networks", *options, "--run-on", "here", "--gene-sets", "none", "--json"]
    found = json.loads(CliRunner().invoke(app, command, catch_exceptions=False).stdout)
    metrics = found["metrics"]
    auroc = metrics["factor_auroc"]
    assert auroc["product"] > 0.95
    assert auroc["baseline"] > 0.95
    assert auroc["floor"] < 0.7, "edges that were shuffled are not found"
    assert auroc["interval"][0] <= auroc["product"] - auroc["baseline"] <= auroc["interval"][1]
    assert metrics["early_precision_ratio"]["product"] > 4
    assert metrics["sign_accuracy"]["product"] == 1
    assert metrics["half_overlap"]["product"] > 3 * metrics["half_overlap"]["floor"]
    assert metrics["knock_out_auroc"]["product"] > 0.9
    (screened,) = found["details"]["screen"]
    assert screened["factor"] == "IRF1"
    assert metrics["knock_out_auroc"]["floor"] == screened["other_factors"] < 0.65, "edges of other factors"
    members = {row["member"]: row for row in found["details"]["members"]}
    assert {"|correlation|", "trees", "product"} <= members.keys()
    assert members["trees"]["factor_auroc"] > 0.9
    assert sum(found["chosen"].values()) == 5
    page = (files / "report" / "report.html").read_text()
    for title in ("Evidence", "Halves", "Knock-outs", "of a factor"):
        assert title in page


def test_a_kept_network_is_evaluated(files: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "out": str(tmp_path / "network")}
    cytoray.infer_networks(str(files / "cells.h5ad"), **settings)
    command = ["networks", "evaluate", settings["out"], "--truth", str(files / "truth.tsv")]
    screen = ["--screen", str(files / "screen.h5ad")]
    found = json.loads(CliRunner().invoke(app, [*command, *screen, "--json"], catch_exceptions=False).stdout)
    assert found["metrics"]["factor_auroc"]["product"] > 0.95
    assert found["metrics"]["knock_out_auroc"]["product"] > 0.9
    text = CliRunner().invoke(app, command, catch_exceptions=False).stdout
    assert "early_precision_ratio" in text
    assert CliRunner().invoke(app, command[:3]).exception is not None, "nothing is known"


def test_a_screen_is_not_inferred_from_its_knock_outs(files: Path) -> None:
    screen = str(files / "screen.h5ad")
    found = cytoray.assess("networks", data=screen, screen=screen, out=str(files / "own"), **SMALL)
    assert found["data"]["num_cells"] == 160
    assert any("160 cells of 'control'" in warning for warning in found["warnings"])
    assert found["metrics"]["knock_out_auroc"]["product"] > 0.9
    assert "factor_auroc" not in found["metrics"]


def test_knock_outs_are_compared_with_controls_of_their_batch() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(300, 4))
    is_first, batches = rng.random(300) < 0.3, np.zeros(300, np.int64)
    plain = stratified_welch(sparse.csr_matrix(values), is_first, batches)
    np.testing.assert_allclose(plain, stats.ttest_ind(values[is_first], values[~is_first], equal_var=False).statistic)
    batches = np.where(is_first, rng.random(300) < 0.8, rng.random(300) < 0.2).astype(np.int64)
    values += 3 * batches[:, None]
    values[is_first, 0] += 1
    confounded = stratified_welch(sparse.csr_matrix(values), is_first, np.zeros(300, np.int64))
    matched = stratified_welch(sparse.csr_matrix(values), is_first, batches)
    assert (confounded > 5).all()
    assert matched[0] > 5
    assert (np.abs(matched[1:]) < 3).all()


def test_what_cannot_be_assessed_is_named(files: Path, tmp_path: Path) -> None:
    data = str(files / "cells.h5ad")
    other = tmp_path / "other.tsv"
    other.write_text("tf\ttarget\nFOXP3\tIL2RA\n")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"truth": str(other)}, "shares no factor with the network"),
        ({"truth": str(write_truth(tmp_path / "two.tsv", factors=FACTORS[:2]))}, "2 factors of the network"),
        ({"screen": str(files / "screen.h5ad"), "control": "ctrl"}, r"no cell has 'ctrl'.*IRF1, control"),
        ({"screen": str(files / "screen.h5ad"), "perturbation_key": "guide"}, "guide"),
    ]
    for settings, problem in cases:
        with pytest.raises(CorpusError, match=problem):
            cytoray.assess("networks", data=data, out=str(tmp_path / "out"), **SMALL, **settings)
    with pytest.raises(ConfigError, match="name a table of known edges"):
        cytoray.assess("networks", data=data, out=str(tmp_path / "out"))
    with pytest.raises(ValidationError):
        AssessNetworksConfig(data=data)


def test_a_model_adds_evidence(files: Path, tmp_path: Path) -> None:
    save_bundle(build_bundle(genes=GENES), tmp_path / "bundle")
    settings = {**SMALL, "model": str(tmp_path / "bundle"), "knock_out_cells": 5, "max_cells": 40}
    network = cytoray.infer_networks(str(files / "cells.h5ad"), out=str(tmp_path / "network"), **settings)
    assert set(network.about["evidence"]["all"]) >= {"knock_out", "embedding", "attention"}
    for kind in ("knock_out", "embedding", "attention"):
        assert np.isfinite(network.edges[kind]).all()
        assert network.edges[kind].nunique() > 50
    assert network.edges["embedding"].abs().max() <= 1 + 1e-5
    assert ((network.edges["attention"] > 0) & (network.edges["attention"] <= 1)).all()
    again = cytoray.infer_networks(str(files / "cells.h5ad"), out=str(tmp_path / "again"), **settings)
    pd.testing.assert_frame_equal(again.edges, network.edges)
    found = cytoray.assess(
        "networks", data=str(files / "cells.h5ad"), truth=str(files / "truth.tsv"), out=str(tmp_path / "r"), **settings
    )
    assert found["metrics"]["factor_auroc"]["model"] is not None
