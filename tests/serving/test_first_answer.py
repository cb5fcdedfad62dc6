"""docs/first-answer.md, run as it is written: from an h5ad to labels, and the same labels in the explorer."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import httpx
import pandas as pd
import pytest

from cytoray.cli.main import main
from cytoray.serving.explorer.config import ExplorerConfig

PAGE = Path(__file__).parents[2] / "docs" / "first-answer.md"
ADDRESS = "http://127.0.0.1:8000"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUM_CELLS = 9  # fewer than UMAP takes


@pytest.fixture
def url(bundle: Any, build_service: Any, listen: Any, tmp_path: Path) -> str:
    return str(listen(build_service(bundle), explorer=ExplorerConfig(folder=str(tmp_path / "sessions"))))


@pytest.fixture
def outputs(
    url: str, make_counts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[dict[str, Any], list[str]]:
    """The variables of the page's Python, and what its commands printed."""
    monkeypatch.chdir(tmp_path)
    obs = pd.DataFrame(index=[f"cell{row}" for row in range(NUM_CELLS)])
    var = pd.DataFrame(index=[f"GENE{number:02d}" for number in range(40)])
    anndata.AnnData(make_counts(NUM_CELLS), obs=obs, var=var).write_h5ad("cells.h5ad")
    scope: dict[str, Any] = {}
    printed = []
    for language, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        text = text.replace(ADDRESS, url)
        if language == "python":
            exec(compile(text, PAGE.name, "exec"), scope)
            continue
        for line in text.splitlines():
            monkeypatch.setattr("sys.argv", shlex.split(line))
            with pytest.raises(SystemExit) as ended:
                main()
            assert not ended.value.code
            printed.append(capsys.readouterr().out)
    printed.append(capsys.readouterr().out)
    return scope, printed


def test_the_page_does_what_it_says(outputs: tuple[dict[str, Any], list[str]], url: str) -> None:
    scope, (told, counts) = outputs
    assert f"{NUM_CELLS} cells answered by tiny version 7: annotated.h5ad" in told
    assert "by tiny version 7" in counts
    labels = list(anndata.read_h5ad("annotated.h5ad").obs["cytoray_label"])
    assert list(scope["adata"].obs["cytoray_label"]) == labels
    assert scope["counts"].sum() == NUM_CELLS
    assert labels_of_the_explorer(url) == labels


def labels_of_the_explorer(url: str) -> list[str]:
    """Send the file as the page in the browser does, and read the labels that it colours by."""
    content = Path("cells.h5ad").read_bytes()
    with httpx.Client(base_url=f"{url}/explorer/api", timeout=60) as page:
        session = page.post("/sessions", json={"name": "cells.h5ad", "num_bytes": len(content)}).json()["id"]
        page.put(f"/sessions/{session}/file", params={"offset": 0}, content=content).raise_for_status()
        state = next(state for state in states(page, session) if state["stage"] in ("ready", "failed"))
        assert state["stage"] == "ready", state["trouble"]
        text = page.get(f"/sessions/{session}/download/answers.csv").text
    rows = [line.split(",") for line in text.replace('"', "").splitlines()]
    return [row[rows[0].index("label")] for row in rows[1:]]


def states(page: httpx.Client, session: str) -> Iterator[dict[str, Any]]:
    """Poll the state of a session, as the page does."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        yield page.get(f"/sessions/{session}").json()
        time.sleep(0.1)
