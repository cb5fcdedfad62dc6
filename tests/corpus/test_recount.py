"""Cells that an ingest leaves out as copies are in none of the numbers of its report."""

from __future__ import annotations

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
    cells = build_adata(plant(3))
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
    assert profiles(report)[uris[2]]["labels"] == {"cell_type": {}}  # nothing of it is kept


def profiles(report: dict[str, Any]) -> dict[str, Any]:
    """Profiles by file, less what an ingest has of all cells that passed the checks, copies included."""
    of_columns = {"sum_values", "lost_values", "column_values"}
    return {
        file["description"]["uri"]: {name: part for name, part in file["profile"].items() if name not in of_columns}
        for file in report["files"]
    }
