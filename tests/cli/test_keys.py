"""API keys on the command line: shown once, listed without secrets, revoked by id."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cytoray.cli.main import app
from cytoray.errors import ConfigError, ConflictError


def _run(*words: str) -> str:
    done = CliRunner().invoke(app, ["keys", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_key_is_made_listed_and_revoked(tmp_path: Path) -> None:
    file = ["--file", str(tmp_path / "keys.json")]
    key = _run(
        "new", "lab", "--scope", "embed", "--class", "bulk", "--cells-per-minute", "600", "--days", "30", *file
    ).strip()
    made = json.loads(_run("new", "lab", "--json", *file))
    rows = json.loads(_run("ls", "--json", *file))["keys"]
    assert [row["id"] for row in rows] == [key.split("_")[1], made["id"]]
    assert (rows[0]["scopes"], rows[0]["class"], rows[0]["cells_per_minute"]) == (["embed"], "bulk", 600)
    assert (rows[1]["scopes"], rows[1]["class"], rows[1]["expires"]) == (["*"], None, None)
    listed = _run("ls", *file)
    assert "lab" in listed
    assert key.split("_", 2)[2] not in listed + (tmp_path / "keys.json").read_text()
    with pytest.raises(ConflictError, match="lab has 2 valid keys"):
        CliRunner().invoke(app, ["keys", "new", "lab", *file], catch_exceptions=False)
    assert f"revoked {made['id']} of lab" in _run("revoke", made["id"], *file)
    assert len(json.loads(_run("ls", "--json", *file))["keys"]) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [(["a b"], "owner"), (["lab", "--scope", "EMBED"], "scopes"), (["lab", "--class", "slow"], "bulk")],
)
def test_mistakes_make_no_file(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(app, ["keys", "new", *words, "--file", str(tmp_path / "keys.json")], catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []
