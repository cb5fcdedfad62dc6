"""The gate's arithmetic and its files: every condition that fails is told with both numbers."""

from __future__ import annotations

import json
import math

import pytest
import yaml

from cytoray.errors import ConfigError, NotFoundError, RegistryError
from cytoray.evaluation.classification import score_classification
from cytoray.evaluation.report import write_scores
from cytoray.registry.gate import Champion, GateConfig, judge
from cytoray.registry.scores import load_scores
from cytoray.stages.config import load_stage_config

ROWS = {
    "cytoray": {"macro_f1": 0.7, "mse": 40.0},
    "majority class": {"macro_f1": 0.1, "mse": 90.0},
    "logistic regression": {"macro_f1": 0.7, "mse": 35.0},
}


def gate(**fields) -> GateConfig:
    return GateConfig(**{"scores": "scores.json", "metric": "macro_f1"} | fields)


@pytest.mark.parametrize(
    ("fields", "champion", "failed"),
    [
        ({"at_least": 0.7}, None, []),
        ({"at_least": 0.71}, None, ["macro_f1 0.7 is not at least 0.71"]),
        ({"beats": ("majority class",)}, None, []),
        (  # as good as is not better than
            {"beats": ("majority class", "logistic regression")},
            None,
            ["macro_f1 0.7 does not beat logistic regression, which has 0.7"],
        ),
        ({"not_below_champion": True}, None, []),
        ({"not_below_champion": True}, Champion(3, 0.7), []),
        ({"not_below_champion": True}, Champion(3, 0.75), ["macro_f1 0.7 is worse than the 0.75 of version 3"]),
        ({"not_below_champion": True, "tolerance": 0.1}, Champion(3, 0.8), []),  # 0.8 - 0.7 > 0.1 in floating point
        ({"not_below_champion": True, "tolerance": 0.1}, Champion(3, 0.81), ["the 0.81 of version 3 (tolerance 0.1)"]),
        ({"not_below_champion": True}, Champion(3, None), ["version 3 was promoted without macro_f1"]),
        (
            {"at_least": 0.9, "beats": ("logistic regression",), "not_below_champion": True},
            Champion(2, 0.8),
            ["not at least 0.9", "does not beat logistic", "worse than the 0.8"],
        ),
        ({"metric": "mse", "better": "lower", "at_most": 40.0, "beats": ("majority class",)}, None, []),
        (
            {"metric": "mse", "better": "lower", "at_most": 39, "beats": ("logistic regression",)},
            None,
            ["mse 40 is not at most 39", "mse 40 does not beat logistic regression, which has 35"],
        ),
        ({"metric": "mse", "better": "lower", "not_below_champion": True}, Champion(1, 39.0), ["worse than the 39"]),
        ({"metric": "mse", "better": "lower", "not_below_champion": True}, Champion(1, 41.0), []),
    ],
)
def test_conditions(fields, champion, failed):
    found = judge(gate(**fields), ROWS, champion=champion).failed
    assert len(found) == len(failed)
    assert all(part in sentence for part, sentence in zip(failed, found, strict=True))


def test_a_row_or_metric_that_is_not_there_lists_those_that_are():
    with pytest.raises(RegistryError, match=r"no scores of 'kNN'.*cytoray, logistic regression, majority class"):
        judge(gate(beats=("kNN",)), ROWS, champion=None)
    with pytest.raises(RegistryError, match=r"'cytoray' has no accuracy.*macro_f1, mse"):
        judge(gate(metric="accuracy", at_least=0.5), ROWS, champion=None)


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({}, "has no condition"),
        ({"metric": "mse", "at_least": 3}, "mse is an error: set better: lower"),
        ({"better": "lower", "at_least": 3}, "at_least cannot be combined with better: lower"),
        ({"at_most": 3}, "at_most cannot be combined with better: higher"),
        ({"at_least": 0.5, "tolerance": 0.1}, "tolerance requires not_below_champion"),
        ({"at_least": math.nan}, "gate.at_least"),
        ({"not_below_champion": True, "tolerance": -0.1}, "gate.tolerance"),
        ({"at_last": 0.5}, "did you mean gate.at_least"),
    ],
)
def test_a_gate_that_makes_no_sense_is_refused(tmp_path, section, told):
    config = {"kind": "promote", "store": "s", "model": "run:r", "name": "n", "tracking": {"uri": "sqlite:///m.db"}}
    config["gate"] = {"scores": "scores.json", "metric": "macro_f1"} | section
    (tmp_path / "promote.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match=told):
        load_stage_config(tmp_path / "promote.yaml")


def test_the_alias_previous_is_not_for_the_user(tmp_path):
    (tmp_path / "promote.yaml").write_text(
        "{kind: promote, store: s, model: 'run:r', name: n, tracking: {uri: 'sqlite:///m.db'}, alias: previous}"
    )
    with pytest.raises(ConfigError, match="cytoray models rollback"):
        load_stage_config(tmp_path / "promote.yaml")


def test_the_file_of_an_evaluation_gives_its_rows_and_names_no_bundle(tmp_path):
    path = tmp_path / "scores.json"
    scored = score_classification(["T", "B", "T"], ["T", "B", "B"], labels=["B", "T"])
    write_scores({"cytoray": scored}, path)
    scores = load_scores(str(path), model="cytoray", step=None)
    assert scores.rows["cytoray"]["macro_f1"] == scored.macro_f1
    assert scores.rows["cytoray"]["accuracy"] == pytest.approx(2 / 3)
    assert scores.bundle_digest is None


def test_a_card_gives_its_table_and_what_was_found_at_the_step_of_the_bundle(tmp_path):
    path = tmp_path / "card.json"
    card = {
        "digests": {"bundle": "ab" * 32},
        "scores": {"cytoray": {"mse": 40.0, "mae": None}, "global mean bin": {"mse": 90.0}},
        "validation": [{"step": 5.0, "accuracy": 0.5}, {"step": 10.0, "accuracy": 0.8}],
    }
    path.write_text(json.dumps(card))
    scores = load_scores(str(path), model="cytoray", step=5)
    assert scores.rows == {
        "cytoray": {"mse": 40.0, "step": 5.0, "accuracy": 0.5},
        "global mean bin": {"mse": 90.0},
    }
    assert scores.bundle_digest == "ab" * 32
    assert "accuracy" not in load_scores(str(path), model="cytoray", step=7).rows["cytoray"]
    path.write_text(json.dumps(card | {"digests": {}}))  # stopped: these points are of no bundle yet
    assert "accuracy" not in load_scores(str(path), model="cytoray", step=5).rows["cytoray"]


@pytest.mark.parametrize("text", ["", "[]", "no json", "\x00"])
def test_what_holds_no_scores_is_refused(tmp_path, text):
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(RegistryError, match="does not contain scores"):
        load_scores(str(tmp_path / "scores.json"), model="cytoray", step=None)
    with pytest.raises(NotFoundError):
        load_scores(str(tmp_path / "absent.json"), model="cytoray", step=None)
