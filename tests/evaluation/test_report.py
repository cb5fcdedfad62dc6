"""The file and the table that set a model beside its baselines."""

import json

import pytest

from cytoray.drafts import replace_file
from cytoray.evaluation.classification import score_classification
from cytoray.evaluation.report import ScoreRow, scores_table, write_scores


@pytest.fixture
def scores():
    truth = ["B", "B", "Treg β"]
    return {
        "model": score_classification(truth, truth, labels=["B", "Treg β"]),
        "majority class": score_classification(truth, ["B"] * 3, labels=["B", "Treg β"]),
    }


def test_table_has_a_row_a_name_in_the_order_given(scores):
    model, majority = scores_table(scores)
    assert model == ("model", 1.0, 1.0, 1.0, 1.0)
    assert majority == pytest.approx(ScoreRow("majority class", 2 / 3, 1 / 3, 0.5, 0.4))


def test_file_holds_every_score_readably(scores, tmp_path):
    path = tmp_path / "new folder" / "scores.json"
    write_scores(scores, path)

    document = json.loads(path.read_text(encoding="utf-8"))
    assert document == {name: scored.as_dict() for name, scored in scores.items()}
    assert "Treg β" in path.read_text(encoding="utf-8")
    assert [file.name for file in path.parent.iterdir()] == ["scores.json"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "scores.json"
    replace_file(path, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("cytoray.drafts.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["scores.json"]
