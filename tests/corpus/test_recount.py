"""Cells that an ingest leaves out as copies are in none of the numbers of its report."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import Any

import pytest

from cytoray.corpus import ingest as ingest_module
from cytoray.corpus.config import IngestConfig, SourceConfig
from cytoray.corpus.validate import ValidateConfig, validate


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tasks one after another, without Ray."""
    monkeypatch.setattr(ingest_module, "_map_tasks", lambda items, work, concurrency: map(work, items))


def test_the_report_of_an_ingest_is_that_of_a_validation(plant, build_adata, save, tmp_path, in_process):
    planted = plant(3)
    lost = [f"no gene {number}" for number in range(10)]
    cells = build_adata(planted, var_names=[*lost, *planted.genes[10:]])
    uris = [
        save(cells[rows].copy(), tmp_path / f"{name}.h5ad")
        for name, rows in (("a", range(200)), ("b", range(150, 300)), ("c", range(20)))
    ]
    sources = tuple(SourceConfig(uri=uri) for uri in uris)
    config = IngestConfig(store=str(tmp_path / "store"), corpus="cells", sources=sources, rows_per_task=64)
    result = ingest_module.ingest(config)
    folder = result.manifest.increments[0].report_key
    report = json.loads(Path(result.uri, str(folder), "report.json").read_text())
    expected = json.loads(json.dumps(validate(sources, options=ValidateConfig()).to_json()))
    assert report["dropped"] == {"duplicate_cell": 70}
    assert profiles(report) == profiles(expected)
    kept = planted.counts_CG  # each cell once
    assert sum(file["sum_values"] for file in profiles(report).values()) == kept.sum()
    assert sum(file["lost_values"] for file in profiles(report).values()) == kept[:, :10].sum()
    assert profiles(report)[uris[2]]["labels"] == {"cell_type": {}}  # nothing of it is kept


def profiles(report: dict[str, Any]) -> dict[str, Any]:
    """Profiles by file."""
    return {file["description"]["uri"]: file["profile"] for file in report["files"]}


def test_the_report_of_an_ingest_lists_the_files_that_were_not_read(plant, build_adata, save, tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    save(build_adata(plant(3, num_cells=40)), folder / "a.h5ad")
    (folder / "<notes>.xyz").write_text("nothing of interest")
    source = SourceConfig(uri=f"{folder}/")
    result = ingest_module.ingest(IngestConfig(store=str(tmp_path / "store"), corpus="cells", sources=(source,)))
    report = Path(result.uri, str(result.manifest.increments[0].report_key))
    (file,) = json.loads((report / "report.json").read_text())["not_read"]
    assert file["uri"] == f"{folder}/<notes>.xyz"
    page = (report / "report.html").read_text()
    assert "&lt;notes&gt;.xyz" in page
    assert html.escape(file["reason"]) in page
    assert html.escape(file["remedy"]) in page
