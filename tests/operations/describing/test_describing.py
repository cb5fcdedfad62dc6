"""Cards, differences and lists say what registry and store hold, figure by figure."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from small_runs import SHAPE, finetune_config, finish_run, make_corpus, pretrain_config

from cytoray.cli.main import main
from cytoray.corpus.synthetic import SynthConfig, synthesise
from cytoray.model.bundle import load_bundle
from cytoray.registry.models import find_version, register
from cytoray.registry.recorded import RECORD_TAG, RecordedAssessment
from cytoray.runs import find_bundle, run_folder
from cytoray.tracking import TrackingConfig
from cytoray.tracking.server import connect


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Path:
    """A store with three finished runs, and two versions of a model in MLflow."""
    here = tmp_path_factory.mktemp("described")
    synthesise(here / "raw", SynthConfig(num_cells=200, num_genes=600, mean_genes=80, num_files=2))
    first, second = sorted((here / "raw").glob("*.h5ad"))
    store = str(here / "store")
    make_corpus(store, [{"uri": str(first)}])
    finish_run(pretrain_config(store, here), seed=1, error=0.5)
    finish_run(finetune_config(store, here), seed=2)
    make_corpus(store, [{"uri": str(second)}], append=True)
    finish_run(
        pretrain_config(store, here, run="larger", num_steps=9, optimizer={"learning_rate": 0.5}), seed=3, error=0.25
    )
    shutil.copy(migrated_database, here / "registry.db")
    tracking = TrackingConfig(uri=f"sqlite:///{here}/registry.db", journal_folder=str(here / "journal"))
    for run in ("tuned", "larger"):
        register(Path(find_bundle(store, run).uri), name="blood", tracking=tracking)
    assessed = RecordedAssessment(
        "annotation", "macro_f1", 0.91, 0.93, (-0.03, -0.01), "loss", "s3://b/query.h5ad", "transfer", "r", "0" * 64
    )
    client = connect(tracking.uri)
    client.set_model_version_tag("blood", "1", f"{RECORD_TAG}x", assessed.to_tag())
    client.set_registered_model_alias("blood", "champion", "1")
    return here


@pytest.fixture
def cytoray(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CYTORAY_STORE", f"{made}/store")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{made}/registry.db")

    def run(*words: str, code: int = 0) -> Any:
        monkeypatch.setattr("sys.argv", ["cytoray", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out = capsys.readouterr().out
        assert (ended.value.code or 0) == code, out
        return json.loads(out) if "--json" in words else out

    return run


def test_a_card_has_what_data_figures_limits_licence_and_lineage(cytoray: Any, made: Path):
    card = cytoray("models", "card", "blood@champion", "--json", "--licence", "CC-BY-4.0")
    bundle = find_bundle(f"{made}/store", "tuned")
    model = load_bundle(Path(bundle.uri)).model
    assert (card["model"], card["digest"], card["aliases"]) == ("models:/blood/1", bundle.digest, ["champion"])
    assert card["what"]["num_parameters"] == sum(each.numel() for each in model.state_dict().values())
    assert card["what"]["shape"] == {
        key: SHAPE[key] for key in ("width", "num_layers", "num_heads", "feedforward_width")
    }
    assert card["what"]["labels"] == ["B", "T"]
    assert [(each["run"], each["corpus"]) for each in card["data"]["corpora"]] == [
        ("tuned", "cells@1"),
        ("base", "cells@1"),
    ]
    assert [source["num_cells"] for source in card["data"]["corpora"][0]["sources"]] == [100]
    figure = card["figures"]["assessments"][0]
    assert (figure["model"], figure["simple_method"], figure["verdict"]) == (0.91, 0.93, "loss")
    assert any("below the simple method" in limit for limit in card["limits"])
    assert card["licence"] == "CC-BY-4.0"
    assert [run["run"] for run in card["lineage"]["runs"]] == ["tuned", "base"]
    assert card["lineage"]["runs"][0]["environment"]["torch"]
    text = cytoray("models", "card", "blood@champion")
    for part in ("# blood/1", "## Data", "## Figures beside simple methods", "## Limits", "## Lineage", bundle.digest):
        assert part in text
    assert "| annotation | macro_f1 | 0.91 | 0.93 | loss |" in text
    assert "licence | not stated" in text
    written = cytoray("models", "card", "blood/2", "--out", "card.md", "--json")
    assert written["out"] == "card.md"
    assert Path("card.md").read_text().startswith("# blood/2")
    cytoray("models", "card", "blood/2", "--out", "card.pdf", code=2)
    cytoray("models", "card", "blood/9", code=2)


def test_a_card_says_what_it_cannot_know(cytoray: Any, made: Path, tmp_path: Path):
    shutil.copytree(find_bundle(f"{made}/store", "base").uri, tmp_path / "alone")
    card = cytoray("models", "card", str(tmp_path / "alone"), "--store", str(tmp_path), "--json")
    assert card["data"] is None
    assert "is no longer in" in card["lineage"]["unknown"]
    assert "Unknown: the runs" in cytoray("models", "card", str(tmp_path / "alone"), "--store", str(tmp_path))


def test_models_differ_in_settings_data_labels_figures_and_files(cytoray: Any):
    found = cytoray("models", "diff", "blood/1", "blood/2", "--json")
    assert not found["same"]
    assert not found["same_weights"]
    assert found["config"]["num_labels"] == [2, 0]
    assert found["training"]["train.num_steps"] == [4, 9]
    assert found["training"]["optimizer.learning_rate"] == [1e-4, 0.5]
    assert not any(key.startswith(("store", "tracking")) for key in found["training"])
    assert found["data"]["corpora"] == ["cells@1", "cells@2"]
    assert len(found["data"]["added_sources"]) == 1
    assert found["labels"]["removed"] == ["B", "T"]
    assert found["vocabulary"]["added"] == found["vocabulary"]["removed"] == []
    assert found["metrics"]["annotation macro_f1"] == [0.91, None]
    assert any(name.startswith("cls_decoder") for name in found["weights"]["removed"])
    assert set(found["files"]) == {"config.json", "labels.json", "lineage.json", "model.safetensors"}
    text = cytoray("models", "diff", "blood/1", "blood/2")
    for line in ("training     train.num_steps: 4 -> 9", "weights      different", "data         cells@1 -> cells@2"):
        assert line in text
    same = cytoray("models", "diff", "blood/1", "run:tuned", "--json")
    assert same["same"]
    assert "the same bundle" in cytoray("models", "diff", "blood/1", "run:tuned")


def test_runs_are_listed_with_their_state(cytoray: Any, made: Path):
    rows = {row["name"]: row for row in cytoray("runs", "ls", "--json")["runs"]}
    assert rows.keys() == {"base", "larger", "tuned"}
    base = rows["base"]
    assert (base["status"], base["step"], base["num_steps"], base["best"], base["best_name"]) == (
        "finished", 6, 6, 0.5, "masked",
    )  # fmt: skip
    assert base["loss"] == pytest.approx(2.5)
    assert base["steps_per_s"] == 3.0
    assert base["bundle_digest"] == find_bundle(f"{made}/store", "base").digest
    assert rows["tuned"]["best"] is None
    text = cytoray("runs", "ls").splitlines()
    assert text[0].split()[:4] == ["run", "stage", "status", "steps"]
    assert text[1].split()[:4] == ["base", "pretrain", "finished", "6/6"]
    assert cytoray("runs", "ls", "--uri", f"sqlite:///{made}/registry.db", "--json")["runs"][0]["mlflow"] == "missing"
    cytoray("runs", "ls", "--store", "nowhere", code=2)


@pytest.mark.parametrize(
    ("ended", "age_s", "done", "status"),
    [
        (False, 5, False, "running"),
        (False, 300, False, "silent"),
        (True, 5, False, "stopped"),
        (True, 5, True, "finished"),
    ],
)
def test_the_status_of_a_run_follows_its_lease(
    ended: bool, age_s: int, done: bool, status: str, cytoray: Any, made: Path, tmp_path: Path
):
    shutil.copytree(made / "store", tmp_path / "store")
    folder = Path(run_folder(str(tmp_path / "store"), "base"))
    then = time.time() - age_s
    if not done:
        (folder / "DONE.json").unlink()
    leases = folder / "leases"
    leases.mkdir()
    for name in ("000001.json", "000001.beat", *(["000001.ended"] if ended else [])):
        (leases / name).write_text("{}")
    for path in folder.rglob("*"):
        os.utime(path, (then, then))
    shown = cytoray("runs", "show", "base", "--store", str(tmp_path / "store"), "--json")
    assert shown["status"] == status
    assert shown["heartbeat_s"] == pytest.approx(then)


def test_a_run_is_shown_and_compared(cytoray: Any, made: Path):
    shown = cytoray("runs", "show", "larger", "--json")
    assert shown["validation"] == [{"step": 9.0, "masked": 0.25}]
    assert shown["config"]["optimizer"]["learning_rate"] == 0.5
    assert shown["environment"]["python"]
    assert shown["journal"] is None
    assert "best         masked 0.25" in cytoray("runs", "show", "larger")
    found = cytoray("runs", "compare", "base", "larger", "--json")
    assert found["runs"] == ["base", "larger"]
    assert found["config"] == {"train.num_steps": [6, 9], "optimizer.learning_rate": [1e-4, 0.5]}
    assert found["figures"]["best masked"] == [0.5, 0.25]
    assert len(set(found["figures"]["corpus_manifest_digest"])) == 2
    assert "train.num_steps" in cytoray("runs", "compare", "base", "larger")
    cytoray("runs", "compare", "base", code=2)
    cytoray("runs", "show", "unknown", code=2)


def test_versions_know_their_lineage(made: Path):
    tracking = TrackingConfig(uri=f"sqlite:///{made}/registry.db", journal_folder=str(made / "journal"))
    version = find_version("models:/blood/1", tracking=tracking)
    expected = find_bundle(f"{made}/store", "tuned").lineage
    assert {key: version.lineage.get(key) for key in expected} == expected
    assert hash(version)
