"""``cytoray models``: register a bundle by itself, list all, go back; MLflow comes from the environment."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from cytoray.cli.main import app


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["models", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_bundles_are_registered_listed_and_rolled_back_without_runs(
    tracking, make_bundle, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)
    one, two = make_bundle(1), make_bundle(2)
    assert "No model" in run("ls")
    first = json.loads(run("register", one, "--name", "blood", "--alias", "champion", "--json"))
    assert (first["version"], first["aliases"]) == (1, ["champion"])
    second = json.loads(run("register", two, "--name", "blood", "--json"))
    assert (second["version"], second["aliases"]) == (2, ["candidate"])
    run("register", two, "--name", "blood", "--alias", "champion")
    run("register", one, "--name", "brain")
    listed = json.loads(run("ls", "--json"))["versions"]
    assert [(row["name"], row["version"]) for row in listed] == [("blood", 1), ("blood", 2), ("brain", 1)]
    assert run("rollback", "blood").splitlines()[0].startswith("champion  blood/1")
    assert len(run("ls", "blood").splitlines()) == 2
