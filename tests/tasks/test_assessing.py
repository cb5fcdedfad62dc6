"""Settings that all assessments share: the default model, a place for the report that lasts, and bad cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from planted_proteins import build

import cytoray
from cytoray.cli.main import main
from cytoray.errors import ConfigError, CytorayError
from cytoray.stages.assess_key import content_digest
from cytoray.tasks import task_assessments
from cytoray.tasks.annotation.labelled import read_label_map
from cytoray.tasks.assessing import MODEL_VARIABLE, WITHOUT_MODEL, AssessConfig, with_default_model
from cytoray.tasks.multiomic import assessment, members
from cytoray.tracking.places import JOB_VARIABLE, WORKING_DIRECTORIES


@pytest.fixture(autouse=True)
def no_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No default of the user who runs the tests, restored afterwards whatever cytoray.yaml sets."""
    for name in (MODEL_VARIABLE, "CYTORAY_STORE", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def settings_of(task: str) -> dict[str, str]:
    more = {"mapping": {"query": "query.h5ad"}, "networks": {"truth": "edges.tsv"}}
    return {"data": "cells.h5ad"} | more.get(task, {})


def test_the_model_is_the_named_one_else_the_default_else_none(monkeypatch: pytest.MonkeyPatch):
    named, open_, without = (AssessConfig(data="x", **more) for more in ({"model": "a"}, {}, {"model": None}))
    assert with_default_model(open_) == (open_, WITHOUT_MODEL)
    monkeypatch.setenv(MODEL_VARIABLE, "models:/b@champion")
    assert with_default_model(named) == (named, "")
    found, note = with_default_model(open_)
    assert found.model == "models:/b@champion"
    assert "models:/b@champion is the default of CYTORAY_MODEL" in note
    assert with_default_model(without) == (without, WITHOUT_MODEL), "null in a file is no model"


@pytest.mark.parametrize("task", task_assessments())
def test_every_assessment_uses_the_default_of_the_file(
    task: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    Path("cytoray.yaml").write_text("model: nowhere\n")
    words = [word for key, value in settings_of(task).items() for word in (f"--{key}", value)]
    monkeypatch.setattr("sys.argv", ["cytoray", "assess", task, *words, "--out", "out"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "model: nowhere is neither a bundle" in capsys.readouterr().err


def test_annotate_without_a_model_is_refused_with_the_way_to_name_one(monkeypatch: pytest.MonkeyPatch):
    adata = anndata.AnnData(np.ones((3, 2), np.float32), var=pd.DataFrame(index=["CD3E", "CD4"]))
    with pytest.raises(ConfigError, match=r"No model is named.*CYTORAY_MODEL"):
        cytoray.annotate(adata)
    monkeypatch.setenv(MODEL_VARIABLE, "nowhere")
    with pytest.raises(CytorayError, match="nowhere"):
        cytoray.annotate(adata)


@pytest.mark.parametrize("task", task_assessments())
def test_a_job_refuses_a_folder_that_is_deleted_with_it(task: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    folder = tmp_path / WORKING_DIRECTORIES / "job"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv(JOB_VARIABLE, "{}")
    with pytest.raises(ConfigError, match=r"out: .*Ray deletes.*or an s3:// prefix"):
        cytoray.assess(task, **settings_of(task))


@pytest.mark.parametrize("model", [None, "run:base", "bundle"])
def test_only_a_registered_model_can_be_recorded_on(model: str | None, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"only a registered model.*models:/NAME@ALIAS"):
        cytoray.assess("annotation", data="x.h5ad", model=model, record=True, out=str(tmp_path / "out"))


def test_the_digest_of_an_input_covers_all_that_is_read(tmp_path: Path, s3_uri: str):
    from cytoray import storage

    for place in (str(tmp_path / "some"), f"{s3_uri}/some"):
        for name in ("matrix.mtx", "features.tsv", "barcodes.tsv", "other.txt"):
            storage.write_bytes(f"{place}/{name}", name.encode())
        file, folder = content_digest(f"{place}/matrix.mtx"), content_digest(place)
        storage.write_bytes(f"{place}/other.txt", b"changed")
        assert content_digest(f"{place}/matrix.mtx") == file
        assert content_digest(place) != folder
        storage.write_bytes(f"{place}/barcodes.tsv", b"changed")
        assert content_digest(f"{place}/matrix.mtx") != file
    assert content_digest(str(tmp_path / "nowhere.h5ad")) == "missing"


def test_a_table_of_labels_may_be_in_a_bucket(tmp_path: Path, s3_uri: str):
    from cytoray import storage

    for uri in (str(tmp_path / "names.json"), f"{s3_uri}/names.json"):
        storage.write_bytes(uri, b'{"CD14+ Mono": "mono"}')
        assert read_label_map(uri) == {"CD14+ Mono": "mono"}
        storage.write_bytes(uri, b'{"x": 3}')
        with pytest.raises(ConfigError, match=r"names\.json: the name of 'x' is not text"):
            read_label_map(uri)


def test_a_rerun_finds_its_report_and_again_makes_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(assessment, "NUM_FOLDS", 2)
    monkeypatch.setattr(members, "NUM_NETWORKS", 1)
    monkeypatch.setattr(members, "LAYERS", (16,))
    build().write_h5ad(tmp_path / "cells.h5ad")
    report = tmp_path / "out" / "report.json"

    def assess(**options: object) -> tuple[dict[str, Any], bool]:
        """Assess, and say whether the report was written anew."""
        before = report.stat().st_ino if report.exists() else None
        found = cytoray.assess("multiomic", data="cells.h5ad", out="out", **options)
        assert json.loads(report.read_text()) == found
        return found, report.stat().st_ino != before

    first, _ = assess()
    assert first["model"] is first["model_digest"] is None
    assert first["model_note"] == WITHOUT_MODEL
    assert (
        "No model was named: the product is a blend of statistical methods"
        in (tmp_path / "out" / "report.html").read_text()
    )
    assert assess() == (first, False)
    again, is_new = assess(again=True)
    assert is_new
    assert again | {"seconds": 0} == first | {"seconds": 0}
    adata = build()
    adata.obs["cell_type"] = "T"
    adata.write_h5ad(tmp_path / "cells.h5ad")
    changed, is_new = assess()
    assert is_new, "the file has changed"
    assert changed["key"] != first["key"]
