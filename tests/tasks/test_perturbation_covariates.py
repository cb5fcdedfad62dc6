"""Doses and times as covariates: read from columns of numbers, interpolated, and shown in every answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from planted_screen import GENES, NEW, TARGETS, screen, small_assessments, write_sets
from typer.testing import CliRunner

import cytoray
from cytoray.cli.main import app
from cytoray.errors import CorpusError, RequestError
from cytoray.tasks.perturbation.reading import read_screen
from cytoray.tasks.perturbation.screen import Columns

COLUMNS = Columns("perturbation", "control", covariates=("dose",))
OTHERS = [column for column, gene in enumerate(GENES) if gene not in TARGETS]


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Only the planted gene sets, and fewer draws."""
    with small_assessments():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A screen of two doses, gene sets, and a model."""
    found = tmp_path_factory.mktemp("doses")
    screen(15, doses=(0.25, 1.0)).write_h5ad(found / "screen.h5ad")
    write_sets(found)
    run("perturbations", "fit", "--data", found / "screen.h5ad", "--batch-key", "batch", "--covariates", "dose",
        "--gene-sets", found / "pathways.gmt", "--out", found / "model")  # fmt: skip
    return found


def run(*words: object) -> dict[str, Any]:
    """Run a command and return its JSON."""
    result = CliRunner().invoke(app, [*map(str, words), "--json"], catch_exceptions=False)
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_effects_follow_the_dose(folder: Path) -> None:
    model = cytoray.PerturbationModel.load(folder / "model")
    points = [{"dose": dose} for dose in (0.0, 0.25, 0.625, 1.0)]
    found = model.predict(["IFNGR1", NEW], at=points)
    assert found.names == ("IFNGR1", NEW) * 4
    assert [point["dose"] for point in found.covariates] == [0, 0, 0.25, 0.25, 0.625, 0.625, 1, 1]
    deltas = found.deltas.reshape(4, 2, -1)[:, :, OTHERS]
    assert not deltas[0].any(), "controls have a dose of 0"
    size = np.linalg.norm(deltas, axis=2)
    assert (size[1] < 0.7 * size[3]).all()
    assert (size[1] < size[2]).all()
    assert (size[2] < size[3]).all()
    assert np.corrcoef(deltas[2, 1], deltas[3, 0])[0, 1] > 0.8, "the new gene is like its pathway at any dose"
    np.testing.assert_allclose(deltas[2, 0], deltas[[1, 3], 0].mean(axis=0), atol=0.25)
    plain = model.predict(NEW)
    assert "dose not given" in plain.warnings[0]
    assert not plain.covariates
    beyond = model.predict(NEW, at={"dose": 5})
    assert "dose 5: beyond the measured 0 to 1" in beyond.warnings[0]
    np.testing.assert_allclose(beyond.deltas[0], found.deltas[7])
    pair = model.predict("IFNGR1+SMO", at={"dose": 1}).deltas[0]
    np.testing.assert_allclose(pair, model.predict("IFNGR1,SMO", at={"dose": 1}).deltas.sum(axis=0), atol=1e-9)


def test_covariates_are_columns_of_answers(folder: Path, tmp_path: Path) -> None:
    found = run("perturb", folder / "model", "--genes", f"{NEW},SMO", "--at", "dose=0.5", "--at", "dose=1",
                "--num-cells", 5, "--data", folder / "screen.h5ad", "--out", tmp_path / "o.h5ad")  # fmt: skip
    assert [(each["perturbation"], each["covariates"]) for each in found["perturbations"]] == [
        (NEW, {"dose": 0.5}), ("SMO", {"dose": 0.5}), (NEW, {"dose": 1.0}), ("SMO", {"dose": 1.0}),
    ]  # fmt: skip
    written = anndata.read_h5ad(tmp_path / "o.h5ad")
    assert written.obs["dose"].tolist() == [0.5] * 10 + [1.0] * 10
    assert written.obs_names[0] == f"{NEW} (dose 0.5)-0"


def test_doses_are_assessed(folder: Path, tmp_path: Path) -> None:
    found = run("assess", "perturbation", "--data", folder / "screen.h5ad", "--batch-key", "batch", "--covariates",
                "dose", "--gene-sets", folder / "pathways.gmt", "--out", tmp_path / "out")  # fmt: skip
    units = {unit["name"]: unit for unit in found["details"]["units"]}
    assert len(units) == 24
    assert {"IFNGR1 (dose 0.25)", "IFNGR1 (dose 1)"} <= units.keys()
    assert found["metrics"]["wmse"]["product"] < 0.6 * found["metrics"]["wmse"]["baseline"]
    assert units["IFNGR1 (dose 1)"]["relative_error"] < 0.5


def test_columns_that_are_not_covariates_are_refused(tmp_path: Path) -> None:
    adata = screen(6, doses=(0.25, 1.0))
    adata.obs["level"] = np.where(adata.obs["dose"] == 1, "10uM", "low")
    adata.obs["depth"] = np.linspace(0, 1, adata.n_obs)
    cases = {"level": "column 'level' is text, such as 'low', '10uM'", "depth": "distinct values; a covariate has 50",
             "doze": "no column 'doze'"}  # fmt: skip
    for name, problem in cases.items():
        with pytest.raises(CorpusError, match=problem) as caught:
            cytoray.PerturbationModel.fit(adata, covariates=[name])
        assert caught.value.remedy
    adata.obs["as_text"] = pd.Categorical([f"{dose:g}" for dose in adata.obs["dose"]])
    values = read_screen(adata, Columns("perturbation", "control", covariates=("as_text", "dose"))).values
    assert values is not None
    np.testing.assert_array_equal(values[:, 0], values[:, 1], "texts that are numbers are numbers")
    model = cytoray.PerturbationModel.fit(adata, covariates=["dose"])
    for point, problem in (({"time": 1}, "no covariate 'time'"), ({}, "'dose' not given")):
        with pytest.raises(RequestError, match=problem):
            model.predict("SMO", at=[point])
    with pytest.raises(RequestError, match=r"no covariate 'dose'.*--covariates"):
        cytoray.PerturbationModel.fit(screen(6)).predict("SMO", at={"dose": 1})
    with pytest.raises(RequestError, match="'high' is not a value of a covariate"):
        run("perturb", tmp_path, "--genes", "SMO", "--data", tmp_path, "--out", tmp_path / "o", "--at", "high")


def test_cells_without_a_dose_are_left_out_and_controls_are_matched_by_time() -> None:
    adata = screen(12, doses=(0.25, 1.0))
    dose, is_control = adata.obs["dose"].to_numpy(), (adata.obs["perturbation"] == "control").to_numpy()
    adata.obs.loc[adata.obs_names[np.flatnonzero(~is_control)[:4]], "dose"] = np.nan
    adata.obs.loc[adata.obs_names[is_control], "dose"] = np.nan
    found = read_screen(adata, COLUMNS)
    assert "4 perturbed cells without dose were left out" in " ".join(found.warnings)
    assert found.cells.batches is None, "controls have no dose to be matched by"
    adata.obs["time"] = np.where(np.arange(adata.n_obs) % 2, 6, 24)
    adata.obs["dose"] = dose
    matched = read_screen(adata, Columns("perturbation", "control", covariates=("dose", "time")))
    assert matched.values is not None
    assert matched.cells.batches is not None
    later = matched.values[:, 1] == 24
    assert set(matched.cells.groups[later]) & set(matched.cells.groups[~later]) == set()
    assert matched.by_point().names[:4] == (
        "ATG12 (dose 0.25, time 6)", "ATG12 (dose 0.25, time 24)", "ATG12 (dose 1, time 6)", "ATG12 (dose 1, time 24)",
    )  # fmt: skip
