"""Reports on model versions: recorded for the right model only, shown, and read by the gate."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from planted_batches import planted
from planted_batches import write as write_cells
from typer.testing import CliRunner

from cytoray.cli.main import app
from cytoray.config import load_config
from cytoray.errors import ConfigError, NotFoundError, RegistryError
from cytoray.evaluation.assessment import Assessment, MetricRow, write_report
from cytoray.evaluation.intervals import Interval
from cytoray.model.bundle import ModelBundle, save_bundle
from cytoray.model.config import ModelConfig
from cytoray.model.transformer import ScGPT
from cytoray.registry.artifacts import RegisteredVersion
from cytoray.registry.assessments import record_assessment
from cytoray.registry.gate import AssessmentsConfig, GateConfig
from cytoray.registry.models import find_version, list_versions, register
from cytoray.registry.promotion import promote_version, roll_back
from cytoray.registry.recorded import RECORD_TAG
from cytoray.stages.config import PromoteConfig
from cytoray.tokens.tokenizer import TokenizerConfig
from cytoray.tokens.vocabulary import GeneVocabulary
from cytoray.tracking.server import connect

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
NAME = "annotator"
Report = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Report:
    """Write the report of an assessment; return its folder."""

    def write_one(
        digest: str | None, product: float, baseline: float = 0.8, *, task: str = "annotation", data: str = "d"
    ) -> str:
        verdict = "loss" if product < baseline else "tie" if product == baseline else "win"
        difference = Interval(product - baseline - 0.01, product - baseline + 0.01)
        metrics = {
            "macro_f1": MetricRow(0.1, baseline, 0.5, product, None, difference, verdict),
            "brier": MetricRow(baseline=0.25, product=0.125),
        }
        folder = str(tmp_path / f"report-{len(list(tmp_path.glob('report-*')))}")
        found = Assessment(
            task=task,
            data={"uri": f"{data}.h5ad", "digest": data * 64, "num_cells": 9},
            split="5 folds of cells",
            metrics=metrics,
            chosen={"blend": 5},
            why=("fold 1: blend",),
            seeds=(0,),
            seconds=1.0,
            model=None if digest is None else "models:/x/1",
            model_digest=digest,
        )
        write_report(found, folder, page=b"<html>page</html>")
        return folder

    return write_one


@pytest.fixture
def version(tracking, make_bundle) -> RegisteredVersion:
    return register(make_bundle(1), name=NAME, tracking=tracking)


def tags(tracking, number: int = 1) -> dict[str, str]:
    return dict(connect(tracking.uri).get_model_version(NAME, str(number)).tags)


def held(tracking) -> dict[str, int]:
    return {alias: each.version for each in list_versions(NAME, tracking=tracking) for alias in each.aliases}


def test_figures_become_tags_and_the_files_artifacts(tracking, version, write: Report):
    folder = write(version.digest, 0.875)
    found = record_assessment(version, folder, tracking=tracking)
    kept = tags(tracking)
    assert kept["assessment.annotation.macro_f1"] == "0.875"
    assert kept["assessment.annotation.macro_f1.baseline"] == "0.8"
    assert kept["assessment.annotation.macro_f1.verdict"] == "win"
    assert kept["assessment.annotation.brier"] == "0.125"
    (record,) = found.assessments
    assert record.line() == "annotation macro_f1 0.875 (simple method 0.800, win)"
    from mlflow.artifacts import download_artifacts

    for name in ("report.json", "report.html"):
        stored = download_artifacts(
            run_id=version.run_id, artifact_path=f"{record.report}/{name}", tracking_uri=tracking.uri
        )
        assert Path(stored).read_bytes() == (Path(folder) / name).read_bytes()
    assert record_assessment(version, folder, tracking=tracking) == found, "recording again changes nothing"
    better = record_assessment(version, write(version.digest, 0.9), tracking=tracking)
    assert [each.product for each in better.assessments] == [0.9], "the same data and split: replaced"
    other = record_assessment(version, write(version.digest, 0.7, data="e"), tracking=tracking)
    assert sorted(each.product for each in other.assessments) == [0.7, 0.9]


def test_a_report_of_another_model_or_of_none_is_refused(tracking, version, write: Report, tmp_path: Path):
    with pytest.raises(RegistryError, match=rf"model models:/x/1 \(digest abababababababab\).*{version.digest[:16]}"):
        record_assessment(version, write("ab" * 32, 0.9), tracking=tracking)
    with pytest.raises(RegistryError, match="was made without a model"):
        record_assessment(version, write(None, 0.9), tracking=tracking)
    (tmp_path / "report-9").mkdir()
    with pytest.raises(NotFoundError, match=r"has no report\.json"):
        record_assessment(version, str(tmp_path / "report-9"), tracking=tracking)
    (tmp_path / "report-9" / "report.json").write_text('{"rows": 3}')
    (tmp_path / "report-9" / "report.html").write_text("")
    with pytest.raises(RegistryError, match="is not the report of an assessment"):
        record_assessment(version, str(tmp_path / "report-9"), tracking=tracking)
    assert not [key for key in tags(tracking) if key.startswith(("assessment.", RECORD_TAG))]


def test_a_loss_keeps_the_champion_and_names_figures_and_the_way_on(tracking, version, make_bundle, write: Report):
    champion = promote_version(version, tracking=tracking)
    assert champion.aliases == ("champion",), "what was never assessed passes"
    worse = register(make_bundle(2), name=NAME, tracking=tracking)
    record_assessment(worse, write(worse.digest, 0.875, task="mapping"), tracking=tracking)
    record_assessment(worse, write(worse.digest, 0.75), tracking=tracking)
    with pytest.raises(RegistryError) as caught:
        promote_version(worse, tracking=tracking)
    for told in (
        "stays a candidate, and version 1 keeps the alias champion",
        "annotation: macro_f1 0.7500 is below the simple method, which has 0.8000, difference -0.0600 to -0.0400",
        "(d.h5ad, 5 folds of cells)",
        "assessments.allow_loss",
    ):
        assert told in str(caught.value)
    assert "mapping" not in str(caught.value)
    assert held(tracking) == {"champion": 1, "candidate": 2}
    with pytest.raises(RegistryError, match="annotation: macro_f1"):
        promote_version(worse, tracking=tracking, assessments=AssessmentsConfig(allow_loss=("mapping",)))
    allowed = AssessmentsConfig(allow_loss=("annotation",))
    assert promote_version(worse, tracking=tracking, assessments=allowed).aliases == ("champion",)
    assert roll_back(NAME, tracking=tracking)[0].version == 1
    assert roll_back(NAME, tracking=tracking)[0].version == 2, "the way back is always open"


def test_registering_with_an_alias_follows_the_rule_of_a_promotion(tracking, version, make_bundle, write: Report):
    promote_version(version, tracking=tracking)
    folder = make_bundle(2)
    worse = register(folder, name=NAME, tracking=tracking)
    record_assessment(worse, write(worse.digest, 0.75), tracking=tracking)
    for alias, kept in (("champion", "version 1 keeps"), ("staging", "no version has")):
        with pytest.raises(RegistryError, match=rf"{kept} the alias {alias}(.|\n)*annotation: macro_f1 0.75"):
            register(folder, name=NAME, tracking=tracking, alias=alias)
    assert register(folder, name=NAME, tracking=tracking, alias="candidate").version == worse.version
    assert held(tracking) == {"champion": 1, "candidate": 2}


@pytest.mark.parametrize("product", [0.8, 0.9])
def test_a_tie_and_a_win_pass(tracking, version, write: Report, product: float):
    record_assessment(version, write(version.digest, product), tracking=tracking)
    required = AssessmentsConfig(require=("annotation",))
    assert promote_version(version, tracking=tracking, assessments=required).aliases == ("champion",)


def test_a_task_that_must_have_been_assessed(tracking, version, write: Report, tmp_path: Path):
    record_assessment(version, write(version.digest, 0.9, task="mapping"), tracking=tracking)
    (tmp_path / "scores.json").write_text('{"cytoray": {"macro_f1": 0.5}}')
    gate = GateConfig(scores=str(tmp_path / "scores.json"), metric="macro_f1", at_least=0.6)
    required = AssessmentsConfig(require=("annotation", "mapping"))
    with pytest.raises(RegistryError) as caught:
        promote_version(version, tracking=tracking, gate=gate, assessments=required)
    assert caught.value.details["failed"] == ["macro_f1 0.5 is not at least 0.6", "annotation has not been assessed"]
    assert held(tracking) == {"candidate": 1}


def test_a_damaged_record_neither_hides_a_loss_nor_stops_what_does_not_need_it(tracking, version, write: Report):
    record_assessment(version, write(version.digest, 0.75), tracking=tracking)
    (key,) = [key for key in tags(tracking) if key.startswith(RECORD_TAG)]
    connect(tracking.uri).set_model_version_tag(NAME, "1", key, '{"task": "annotation"}')
    assert find_version(f"models:/{NAME}/1", tracking=tracking).assessments == ()
    with pytest.raises(RegistryError, match=f"The tag {key} is not the record of an assessment"):
        promote_version(version, tracking=tracking)


def test_unknown_tasks_are_refused_in_the_configuration(tmp_path: Path):
    text = "kind: promote\nmodel: bundle\nname: x\ntracking: {uri: 'sqlite:////tmp/x.db'}\n"
    (tmp_path / "promote.yaml").write_text(f"{text}assessments: {{require: [labelling]}}\n")
    with pytest.raises(ConfigError, match=r"unknown task 'labelling'.*annotation, integration"):
        load_config(PromoteConfig, tmp_path / "promote.yaml")


def test_commands(tracking, version, write: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)

    def run(*arguments: object) -> str:
        """Run ``cytoray models``."""
        done = CliRunner().invoke(app, ["models", *map(str, arguments)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    assert "No assessment is recorded" in run("show", f"{NAME}/1")
    said = run("record", f"{NAME}@candidate", write(version.digest, 0.75))
    assert said == f"{NAME}/1  annotation macro_f1 0.750 (simple method 0.800, loss)\n"
    assert "annotation macro_f1 0.750 (simple method 0.800, loss)" in run("ls", NAME)
    shown = run("show", f"models:/{NAME}/1")
    assert "d.h5ad, 5 folds of cells" in shown
    assert "report.html" in shown
    assert json.loads(run("show", f"{NAME}/1", "--json"))["assessments"][0]["interval"] == pytest.approx([-0.06, -0.04])
    with pytest.raises(RegistryError, match="below the simple method"):
        run("register", tmp_path / "bundle-1", "--name", NAME, "--alias", "champion")
    run("register", tmp_path / "bundle-1", "--name", NAME, "--alias", "champion", "--allow-loss", "annotation")
    assert held(tracking) == {"champion": 1}


def test_an_assessment_is_recorded_on_the_version_that_it_was_made_with(tracking, tmp_path: Path):
    vocabulary = GeneVocabulary.load_default()
    shape = ModelConfig(vocabulary_size=vocabulary.size, width=8, num_heads=2, feedforward_width=8, num_layers=1)
    torch.manual_seed(0)
    network = ScGPT(shape, pad_id=vocabulary.pad_id)
    save_bundle(ModelBundle(network, vocabulary, TokenizerConfig(max_length=64)), tmp_path / "bundle")
    version = register(tmp_path / "bundle", name=NAME, tracking=tracking)
    cells, query = planted((30, 30)), planted((20,), seed=3)
    words = ["--data", write_cells(tmp_path, cells), "--query", write_cells(tmp_path, query, "query.h5ad")]
    words += ["--model", f"models:/{NAME}@candidate", "--uri", tracking.uri, "--cache-folder", tmp_path / "cache"]
    words = ["assess", "mapping", *map(str, words), "--record", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert f"recorded on models:/{NAME}/1" in done.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["model"], report["model_digest"]) == (f"models:/{NAME}@candidate", version.digest)
    assert report["model_note"] == ""
    found = find_version(f"models:/{NAME}/1", tracking=tracking)
    row = report["metrics"]["macro_f1"]
    assert [(each.task, each.product, each.verdict) for each in found.assessments] == [
        ("mapping", row["product"], row["verdict"])
    ]
    before = (tmp_path / "out" / "report.json").stat().st_mtime_ns
    again = CliRunner().invoke(app, words, catch_exceptions=False)
    assert f"recorded on models:/{NAME}/1" in again.stdout
    assert (tmp_path / "out" / "report.json").stat().st_mtime_ns == before, "found, not assessed again"
