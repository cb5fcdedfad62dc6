"""The page of a pipeline: chain, states, figures beside baselines and relative links; all text is escaped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cytoray.operations.pipeline.page import render_page
from cytoray.operations.pipeline.planning import StagePlan
from cytoray.operations.pipeline.reading import Pipeline, read_pipeline
from cytoray.operations.pipeline.records import StageFailure, StageKey, StageRecord

QUICKSTART = Path(__file__).parents[3] / "configs" / "pipeline" / "quickstart.yaml"
RESULTS: dict[str, dict[str, Any]] = {
    "cells": {
        "corpus": "STORE/corpora/pbmc68k", "version": 2, "manifest_digest": "m" * 64, "content_digest": "c" * 64,
        "num_cells": 1234, "report": "STORE/corpora/pbmc68k/reports/000002/report.html",
    },
    "pretrain": {"bundle_digest": "d" * 64, "step": 60, "card": "STORE/runs/pretrain-1/card/card.html", "held_out": {}},
    "types": {"bundle_digest": "e" * 64, "step": 300, "card": "STORE/runs/finetune-1/card/card.html"},
    "scores": {
        "scores": {
            "cytoray": {"macro_f1": 0.8125, "accuracy": 0.9}, "majority class": {"macro_f1": 0.0625, "accuracy": 0.25},
        },
    },
}  # fmt: skip


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pipeline:
    monkeypatch.chdir(tmp_path)
    return read_pipeline(QUICKSTART, overrides=["name=blood-and-more"])


@pytest.fixture
def plans(pipeline: Pipeline) -> list[StagePlan]:
    """All stages but the last are done; the gate has refused the model."""
    plans = []
    for stage in pipeline.stages:
        settings = {"run": stage.config.run} if hasattr(stage.config, "run") else {}
        sources = {"s3://b/<b>one</b>.h5ad": "v1", "s3://b/two.h5ad": "v1"} if stage.kind == "ingest" else {}
        key = StageKey(kind=stage.kind, settings=settings, inputs={"sources": "f" * 64}, sources=sources)
        if stage.name not in RESULTS:
            failure = StageFailure(
                kind="GateError", problem="macro_f1 0.8125 is <worse>", remedy="Promote a better model.", exit_code=3,
                at="2026-11-29T19:00:00+00:00",
            )  # fmt: skip
            plans.append(StagePlan(stage, "run", "was started and is not done", key, failure=failure))
            continue
        store = pipeline.config.store
        result = {k: v.replace("STORE", store) if isinstance(v, str) else v for k, v in RESULTS[stage.name].items()}
        files = {f"{pipeline.folder}/reports/scores/1/umap.png": "9" * 64} if stage.name == "scores" else {}
        record = StageRecord(
            stage=stage.name, key=key, result=result, files=files, started="2026-11-29T18:24:00+00:00", seconds=75.0,
            revision="r",
        )  # fmt: skip
        plans.append(StagePlan(stage, "done", "done", key, record=record))
    return plans


def test_the_page_has_all_that_leads_from_the_data_to_the_service(pipeline: Pipeline, plans: list[StagePlan]):
    page = render_page(pipeline, plans)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.partition("</style>")[2]))
    for part in (
        "Pipeline blood-and-more", "champion was not promoted", "exit code 3", "2 source files", "pbmc68k@2",
        "1,234 cells",
        "Not done: champion.", "4 of 5 stages done", "5 min time in jobs", "macro f1 0.8125 majority class 0.0625",
        "corpus of cells, model of pretrain", "was started and is not done", "2026-11-29 18:24:00", "e" * 64,
    ):  # fmt: skip
        assert part in text, (part, text[:4000])
    assert "<worse>" not in page
    assert "&lt;worse&gt;" in page
    links = re.findall(r'<a href="([^"]+)"', page)
    assert "../../corpora/pbmc68k/reports/000002/report.html" in links
    assert "reports/scores/1/umap.png" in links
    assert not re.search(r'(src|href)="https?:', page), "nothing is fetched from elsewhere"
    assert "prefers-color-scheme: dark" in page


def test_a_page_in_a_bucket_has_relative_links_too(plans: list[StagePlan]):
    from cytoray.operations.pipeline.page import _relative

    folder = "s3://lab/store/pipelines/blood"
    assert _relative("s3://lab/store/runs/a/card/card.html", folder) == "../../runs/a/card/card.html"
    assert _relative("s3://other/report.html", folder) == "s3://other/report.html"
    assert _relative("/tmp/report.html", folder) == "/tmp/report.html"
