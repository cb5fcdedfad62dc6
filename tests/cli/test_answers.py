"""Answers for people and, with --json, for programs; errors have one shape; defaults come from one place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cytoray.cli.main import app, command_tree, main

ROOT = Path(__file__).parents[2]
READING = {
    "version", "data ls", "data show", "data diff", "data verify", "data validate", "data gc", "train plan",
    "config check", "config show", "models ls", "tracking sync",
}  # fmt: skip


def run(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Run the command line as its entry point does: exit code, stdout, stderr."""
    monkeypatch.setattr("sys.argv", ["cytoray", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


@pytest.fixture
def cytoray(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    for name in ("CYTORAY_STORE", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")  # restored afterwards, whatever cytoray.yaml sets
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: run([str(word) for word in arguments], monkeypatch, capsys)


def commands(group: Any, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        inner = commands(command, f"{prefix}{name} ") if hasattr(command, "commands") else {prefix + name: command}
        found |= inner
    return found


def test_every_command_that_reads_has_json():
    tree = commands(command_tree())
    for name in sorted(READING):
        assert "--json" in [option for parameter in tree[name].params for option in parameter.opts], name


def test_exit_codes_are_in_the_help():
    help_text = " ".join(CliRunner().invoke(app, ["--help"]).output.split())
    assert "Exit codes: 0 done" in help_text
    assert "75 training" in help_text


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["data", "ls", "--store", "nowhere"], "CorpusError"),
        (["data", "show", "x", "--store", "nowhere"], "CorpusError"),
        (["config", "show", "nowhere.yaml"], "ConfigError"),
        (["models", "ls", "--uri", "not-a-uri"], "ConfigError"),
        (["data", "show"], "MissingParameter"),
        (["data", "ls", "--store", "x", "--unknown"], "NoSuchOption"),
    ],
)
def test_errors_have_one_shape(arguments: list[str], kind: str, cytoray: Any):
    code, out, err = cytoray(*arguments, "--json")
    error = json.loads(out)["error"]
    assert code == 2
    assert error.keys() == {"kind", "message", "remedy", "details"}
    assert error["kind"] == kind
    assert error["message"]
    assert err == ""
    code, out, err = cytoray(*arguments)
    assert (code, out) == (2, "")
    assert err


def test_a_config_check_of_all_our_files_is_good(cytoray: Any):
    files = sorted((ROOT / "configs").glob("*/*.yaml"))
    code, out, err = cytoray("config", "check", *files, "--json")
    rows = json.loads(out)["files"]
    assert (code, err, len(rows)) == (0, "", len(files))
    assert all(row["problem"] is None for row in rows)
    Path("bad.yaml").write_text("kind: pretrain\nwidth: 3\n")
    code, out, _ = cytoray("config", "check", "bad.yaml", files[0], "--json")
    assert code == 2
    assert [row["problem"] is None for row in json.loads(out)["files"]] == [False, True]


def test_versions_are_all_listed_and_defaults_come_from_the_working_folder(cytoray: Any, cells: Path, tmp_path: Path):
    from cytoray.corpus.config import IngestConfig
    from cytoray.corpus.ingest import ingest

    files = sorted(cells.glob("*.h5ad"))
    for file, append in zip(files, (False, True), strict=True):
        settings = {"store": str(tmp_path / "kept"), "corpus": "blood", "sources": [{"uri": str(file)}]}
        ingest(IngestConfig.model_validate_json(json.dumps(settings | {"append": append})))
    Path("cytoray.yaml").write_text("store: kept\n")
    code, out, _ = cytoray("data", "ls", "--json")
    assert code == 0
    assert [(row["corpus"], row["version"]) for row in json.loads(out)["corpora"]] == [("blood", 1), ("blood", 2)]
    code, out, _ = cytoray("data", "ls")
    assert [line.split()[0] for line in out.splitlines()] == ["blood@1", "blood@2"]
    code, out, _ = cytoray("data", "diff", "blood@1", "blood@2", "--json")
    assert json.loads(out)["added_sources"] == [str(files[1])]
    code, out, _ = cytoray("data", "verify", "blood", "--json")
    assert (code, json.loads(out)["damaged"]) == (0, [])
    code, out, _ = cytoray("data", "ls", "--store", tmp_path / "elsewhere")  # a flag wins
    assert code == 2


def test_an_unknown_default_is_refused(cytoray: Any):
    Path("cytoray.yaml").write_text("stor: kept\n")
    code, _, err = cytoray("data", "ls")
    assert code == 2
    assert "did you mean store?" in err


def test_embed_finds_store_and_mlflow_where_the_other_commands_do(cytoray: Any, mlflow_uri: str, tmp_path: Path):
    words = ["embed", "cells.h5ad", "--out", "out", "--model"]
    assert "run:NAME needs store" in cytoray(*words, "run:a")[2]
    assert "models:/NAME needs tracking" in cytoray(*words, "models:/a@b")[2]
    Path("cytoray.yaml").write_text(f"store: {tmp_path}/kept\ntracking_uri: {mlflow_uri}\n")
    code, _, problem = cytoray(*words, "run:a")
    assert code == 2
    assert f"Run 'a' has exported no bundle in {tmp_path}/kept" in problem
    code, _, problem = cytoray(*words, "models:/a@b")
    assert code == 2
    assert "needs tracking" not in problem
    assert "Unknown registered model 'a'" in problem
    _, _, problem = cytoray(*words, "run:a", "--store", f"{tmp_path}/other")
    assert f"has exported no bundle in {tmp_path}/other" in problem
    Path("embed.yaml").write_text("model: run:a\nout: out\ndata: {uri: cells.h5ad}\n")
    assert "run:NAME needs store" in cytoray("embed", "--config", "embed.yaml")[2]  # a file names its own
