"""A pipeline run again does what is new and nothing else; what fails stops it with a remedy and an exit code."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cytoray.config import build_config
from cytoray.corpus.manifest import load_manifest
from cytoray.errors import ConfigError
from cytoray.operations.pipeline import stage_job
from cytoray.operations.pipeline.planning import plan
from cytoray.operations.pipeline.reading import Pipeline
from cytoray.operations.pipeline.running import StageError, run_pipeline
from cytoray.registry.models import list_versions, register
from cytoray.registry.promotion import roll_back
from cytoray.tracking import TrackingConfig

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
Read = Callable[..., Pipeline]


def states(pipeline: Pipeline) -> dict[str, tuple[str, str]]:
    """State and reason of each stage."""
    return {one.stage.name: (one.state, one.reason) for one in plan(pipeline)}


def tracking_of(tmp_path: Path) -> TrackingConfig:
    return build_config(TrackingConfig, overrides=[f"uri=sqlite:///{tmp_path}/mlflow.db"])


def test_what_is_done_is_skipped_and_new_files_become_a_new_version(
    read: Read, runner: Any, add_file: Callable[[], Path], tmp_path: Path
):
    pipeline = read()
    assert states(pipeline) == {"cells": ("run", "has never run"), "champion": ("run", "has never run")}
    done = run_pipeline(pipeline, runner)
    assert done.ran == tuple(runner.ran) == ("cells", "champion")
    assert states(pipeline) == {"cells": ("done", "done"), "champion": ("done", "done")}
    first = load_manifest(pipeline.config.store, "blood")
    page = Path(done.page).read_text()
    for part in ("blood@1", first.digest[:12], "tiny/1", "80 cells"):
        assert part in page

    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")}
    assert run_pipeline(pipeline, runner).ran == ()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")} == written

    added = add_file()
    assert states(pipeline)["cells"] == ("run", f"1 new source files: {added}")
    assert run_pipeline(pipeline, runner).ran == ("cells",), "the model does not depend on the cells"
    second = load_manifest(pipeline.config.store, "blood")
    assert (second.version, second.num_cells, second.parent) == (2, 120, first.digest)
    assert run_pipeline(pipeline, runner).ran == ()


def test_a_corpus_is_not_made_anew_under_its_name(read: Read, runner: Any, stages: Any):
    run_pipeline(read(), runner, until="cells")
    stages["cells"]["checks"] = {"min_genes": 5}
    with pytest.raises(ConfigError, match=r"corpus 'blood' was made with other settings: checks\.min_genes") as caught:
        plan(read())
    assert "another name" in caught.value.remedy
    stages["cells"]["corpus"] = "blood-5"
    assert states(read())["cells"] == ("run", "settings changed: checks.min_genes, corpus")


def test_a_changed_source_is_an_error_with_the_file_and_stops_the_rest(read: Read, runner: Any, sources: Path):
    pipeline = read()
    run_pipeline(pipeline, runner, until="cells")
    changed = sources / "part-000.h5ad"
    os.utime(changed, (1, 1))
    assert states(pipeline)["cells"] == ("run", f"1 changed source files: {changed}")
    with pytest.raises(StageError, match="the file is not the one that the corpus was made from") as caught:
        run_pipeline(pipeline, runner)
    assert caught.value.exit_code == 2
    assert "run the same command again" in caught.value.remedy
    assert runner.ran == ["cells", "cells"], "the stages behind it did not run"
    (planned, _) = plan(pipeline)
    assert planned.failure is not None
    assert planned.failure.kind == "CorpusError"
    page = (Path(pipeline.folder) / "index.html").read_text()
    assert "cells failed" in page
    assert "exit code 2" in page


def test_the_error_of_a_stage_is_reported_if_the_page_cannot_be_written(
    read: Read, runner: Any, sources: Path, caplog: pytest.LogCaptureFixture
):
    pipeline = read()
    run_pipeline(pipeline, runner, until="cells")
    os.utime(sources / "part-000.h5ad", (1, 1))
    page = Path(pipeline.folder) / "index.html"
    page.unlink()
    page.mkdir()
    with pytest.raises(StageError, match="the file is not the one that the corpus was made from"):
        run_pipeline(pipeline, runner)
    assert "the page was not written" in caplog.text


class AtLog(logging.Handler):
    """Does something when the first warning is logged."""

    def __init__(self, action: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self.action = action
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note the message."""
        self.messages.append(record.getMessage())
        if len(self.messages) == 1:
            self.action()


def test_a_stage_waits_for_an_mlflow_that_is_away(
    read: Read, runner: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    pipeline = read()
    database, elsewhere = tmp_path / "mlflow.db", tmp_path / "elsewhere"

    def come_back() -> None:
        database.rmdir()
        elsewhere.rename(database)

    database.rename(elsewhere)
    database.mkdir()
    with pytest.raises(StageError, match="cannot be used") as caught:
        run_pipeline(replace(pipeline, config=pipeline.config.model_copy(update={"patience_s": 0.0})), runner)
    assert caught.value.exit_code == 2

    monkeypatch.setattr(stage_job, "PAUSE_S", 0.01)
    watching = AtLog(come_back)
    stage_job.logger.addHandler(watching)
    try:
        assert run_pipeline(pipeline, runner).ran == ("champion",)
    finally:
        stage_job.logger.removeHandler(watching)
    (message,) = watching.messages
    assert message.startswith("champion is tried again for 600 s. MLflow at sqlite:///")
    assert states(pipeline)["champion"] == ("done", "done")


def test_an_error_of_an_mlflow_that_answers_is_reported_soon(
    read: Read, runner: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    pipeline = read()
    run_pipeline(pipeline, runner, until="cells")
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.execute("DROP TABLE registered_models")
    monkeypatch.setattr(stage_job, "PAUSE_S", 0.01)
    watching = AtLog(lambda: None)
    stage_job.logger.addHandler(watching)
    try:
        with pytest.raises(StageError, match="Database migration in unexpected state"):
            run_pipeline(pipeline, runner)
    finally:
        stage_job.logger.removeHandler(watching)
    assert len(watching.messages) == 1


def test_a_model_that_fails_its_gate_is_not_promoted(read: Read, runner: Any, stages: Any, tmp_path: Path):
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({"cytoray": {"macro_f1": 0.5}}))
    stages["champion"]["gate"] = {"scores": str(scores), "metric": "macro_f1", "at_least": 0.6}
    pipeline = read()
    with pytest.raises(StageError, match=r"macro_f1 0\.5 is not at least 0\.6") as caught:
        run_pipeline(pipeline, runner)
    assert caught.value.exit_code == 3
    (version,) = list_versions("tiny", tracking=tracking_of(tmp_path))
    assert version.aliases == ("candidate",)
    assert "champion was not promoted" in (Path(pipeline.folder) / "index.html").read_text()

    scores.write_text(json.dumps({"cytoray": {"macro_f1": 0.75}}))
    os.utime(scores, (1, 1))
    assert run_pipeline(pipeline, runner).ran == ("champion",)
    (version,) = list_versions("tiny", tracking=tracking_of(tmp_path))
    assert version.aliases == ("champion",)


def test_a_version_that_was_rolled_back_is_not_promoted_again(
    read: Read, runner: Any, bundle: Path, tmp_path: Path, stages: Any
):
    tracking = tracking_of(tmp_path)
    other = tmp_path / "other"
    _other_bundle(bundle, other)
    stages["champion"]["model"] = str(other)
    run_pipeline(read(), runner)
    stages["champion"]["model"] = str(bundle)
    assert run_pipeline(read(), runner).ran == ("champion",)
    assert [version.aliases for version in list_versions("tiny", tracking=tracking)] == [("previous",), ("champion",)]
    roll_back("tiny", tracking=tracking)
    assert run_pipeline(read(), runner).ran == ()
    assert list_versions("tiny", tracking=tracking)[0].aliases == ("champion",)
    stages["champion"]["model"] = str(other)  # a change that the user made is another matter
    assert states(read())["champion"] == ("run", "settings changed: model; model changed")


def _other_bundle(bundle: Path, folder: Path) -> None:
    """Save the same model with other weights."""
    from dataclasses import replace

    import torch

    from cytoray.model.bundle import load_bundle, save_bundle

    found = load_bundle(bundle)
    with torch.no_grad():
        for parameter in found.model.parameters():
            parameter.mul_(1.5)
    save_bundle(replace(found, digest=None), folder)


def test_a_result_that_was_lost_is_made_again(read: Read, runner: Any, tmp_path: Path):
    pipeline = read()
    run_pipeline(pipeline, runner, until="cells")
    (tmp_path / "store/corpora/blood/versions/000001.json").unlink()
    state, reason = states(pipeline)["cells"]
    assert (state, reason.startswith("its result is missing: ")) == ("run", True)
    assert run_pipeline(pipeline, runner, until="cells").ran == ("cells",)
    assert load_manifest(pipeline.config.store, "blood").num_cells == 80


def test_registering_elsewhere_counts_as_another_registry(read: Read, runner: Any, bundle: Path, tmp_path: Path):
    pipeline = read()
    register(bundle, name="tiny", tracking=tracking_of(tmp_path), alias="champion")
    assert run_pipeline(pipeline, runner).ran == ("cells", "champion")
    assert len(list_versions("tiny", tracking=tracking_of(tmp_path))) == 1, "the same bundle is not registered twice"
