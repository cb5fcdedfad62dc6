"""The whole way with one command, in a subprocess as a user starts it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(1200)
CYTORAY = Path(sys.executable).with_name("cytoray")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _quickstart(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [str(CYTORAY), "quickstart", "--folder", str(folder), "--port", str(_free_port()), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900, check=False)


@pytest.mark.ray
def test_quickstart_goes_the_whole_way(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    first = _quickstart(folder, "--steps", "20")
    assert first.returncode == 0, first.stderr[-3000:]
    for stage in ("data", "ingest", "pretrain", "finetune", "evaluate", "register", "serve", "query"):
        assert stage in first.stdout
    assert "served = offline" in first.stdout
    assert "Before fine-tuning, the" in first.stdout
    assert len(list((folder / "store").rglob("card/card.html"))) == 2
    assert "restored cell by cell" in first.stderr  # says what was done with log-normalised values
    scores = json.loads((folder / "report" / "scores.json").read_text())
    assert {"cytoray", "logistic regression", "majority class"} <= set(scores)
    for plot in ("confusion.png", "umap.png"):
        assert (folder / "report" / plot).read_bytes().startswith(b"\x89PNG")
    assert "Traceback" not in first.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_second_quickstart_skips_what_is_done(tmp_path: Path) -> None:
    for _ in range(2):
        last = _quickstart(tmp_path / "work", "--steps", "20")
        assert last.returncode == 0, last.stderr[-3000:]
    assert last.stdout.count("already done, skipped") == 4  # data, ingest, pretrain, finetune
    assert "Traceback" not in last.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data", "nowhere.h5ad", "--label-key", "x"], "there is no such object"),
        (["--data", "picture.h5ad", "--label-key", "x"], "looks like a PNG image"),
        (["--data", "s3://nobody/x.h5ad", "--label-key", "x", "--endpoint-url", "http://127.0.0.1:9"], "127.0.0.1:9"),
        (["--data", "picture.h5ad"], "--data and --label-key must be used together"),
    ],
)
def test_bad_input_is_a_paragraph_and_exit_code_2(
    arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "picture.h5ad").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    monkeypatch.chdir(tmp_path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")
    result = _quickstart(tmp_path / "work", *arguments)
    assert result.returncode == 2
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "work" / "store").exists()
