"""The explorer's page in headless Chromium: a file is dropped, explored and downloaded, by pointer and by keyboard.

`make test-explorer`; with EXPLORER_SHOTS=folder the screenshots are kept there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import httpx
import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "serve" / "explorer"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LEAST_FRAMES_PER_S = 10  # far below what is measured: a guard against drawing that is not fluid at all

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed"),
    pytest.mark.skipif(not (SOURCE / "node_modules").exists(), reason="`npm ci` was not run in serve/explorer"),
    pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="Chromium is not installed"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("explorer")


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """A service whose model carries a reference, a perturbation model and a network."""
    command = [sys.executable, str(ROOT / "tests" / "helpers" / "explorer_server.py"), str(folder)]
    paths = [ROOT / "platform", ROOT / "tests" / "helpers", *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert server.stdin is not None
    assert server.stdout is not None
    with server:
        yield server.stdout.readline().strip()
        server.stdin.close()
        assert server.wait(60) == 0
    assert not [path for path in (folder / "sessions").rglob("*") if path.is_file()]


def drive(script: str, *arguments: str) -> dict[str, Any]:
    """Run a scenario; returns what it saw."""
    command = ["node", str(SOURCE / "test" / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    assert seen["complaints"] == []
    return seen


@pytest.fixture(scope="module")
def shots(folder: Path) -> Path:
    """Where screenshots and downloads go."""
    place = Path(os.environ.get("EXPLORER_SHOTS", folder / "shots"))
    place.mkdir(parents=True, exist_ok=True)
    return place


@pytest.fixture(scope="module")
def visit(url: str, folder: Path, shots: Path) -> dict[str, Any]:
    """What a scientist saw who dropped the file."""
    return drive("scenario.mjs", url, str(folder / "cells.h5ad"), str(shots))


def test_a_dropped_file_is_explored_on_a_map(visit: dict[str, Any], url: str, folder: Path) -> None:
    assert visit["paint_ms"] < 2000
    assert visit["cells"] == "300 cells"
    for word in ("explorer-demo", "version 3"):
        assert word in visit["model"]
    adata = anndata.read_h5ad(folder / "cells.h5ad")
    with_counts = [entry.split("\n") for entry in visit["legend"]]
    assert sum(int(count) for _, count, *_ in with_counts) == 300
    assert visit["clicked"] == "cell0"
    row = adata.X[0].toarray().ravel()
    one = {"i": row.nonzero()[0].tolist(), "v": row[row > 0].tolist()}
    body = {"genes": list(adata.var_names), "cells": [one], "include_embedding": False}
    wanted = httpx.post(f"{url}/v1/annotate", json=body).json()["cells"][0]["label"]
    assert wanted in visit["verdict"][0]
    assert visit["spoken"].startswith(f"cell0: {wanted}")
    assert visit["neighbours"] == 5
    assert " ".join(visit["problem"].split()).startswith(
        "This file cannot be shown notes.txt: this looks like plain text"
    )
    assert visit["closed"] == 404


def test_legend_and_genes_filter_the_map(visit: dict[str, Any]) -> None:
    hidden = int(visit["legend"][0].split("\n")[1])
    assert visit["filtered"] == f"{300 - hidden} of 300 cells"
    assert visit["coloured"] == "Map of 300 cells, coloured by STAT1"
    assert int(visit["high_only"].split()[0]) < 10
    assert visit["effect"].startswith("Predicted changes: ")
    assert "Regulates" in visit["network"]
    assert visit["near"] == 12
    assert visit["arrows"] > 10


def test_another_version_is_noticed_and_asked_again(visit: dict[str, Any]) -> None:
    assert "answered by explorer-demo version 3. The service now has version 4" in visit["notice"]
    assert visit["again"] == "300 cells"
    assert visit["wider_than_screen"] <= 0


def test_what_is_downloaded_holds_the_answers(visit: dict[str, Any], shots: Path) -> None:
    names = visit["downloads"]
    assert names == {
        "answers.csv": "cells.answers.csv",
        "annotated.h5ad": "cells.annotated.h5ad",
        "svg": "cells.svg",
        "png": "cells.png",
    }
    table = pd.read_csv(shots / names["answers.csv"]).set_index("cell")
    annotated = anndata.read_h5ad(shots / names["annotated.h5ad"])
    assert annotated.obs["cytoray_label"].tolist() == table["label"].tolist()
    assert annotated.obs["cytoray_map_label"].tolist() == table["map.label"].tolist()
    assert annotated.obsm["X_cytoray_umap"].shape == (300, 2)
    figure = ET.fromstring((shots / names["svg"]).read_text())
    paths = figure.findall(".//{http://www.w3.org/2000/svg}path")
    assert len(paths) >= 300
    texts = [text.text for text in figure.iter("{http://www.w3.org/2000/svg}text")]
    assert any("explorer-demo, version 3" in (text or "") for text in texts)
    assert (shots / names["png"]).read_bytes().startswith(b"\x89PNG")


def test_assistive_technology_finds_no_barrier(visit: dict[str, Any]) -> None:
    found = {name: visit[name] for name in visit if name.startswith("axe ")}
    assert len(found) == 7
    assert not any(found.values()), found


def test_everything_works_by_keyboard(url: str, shots: Path) -> None:
    seen = drive("keyboard.mjs", url, str(shots))
    assert seen["first"].startswith("cell")
    assert seen["second"].startswith("cell")
    assert seen["first"] != seen["second"]
    assert seen["none"] == "No cell is selected"
    hidden = int(seen["entry"].split("\n")[1])
    assert seen["filtered"] == f"{300 - hidden} of 300 cells"
    assert seen["tab"] == "Gene"


def test_a_hundred_thousand_cells_stay_fluid(url: str, shots: Path) -> None:
    seen = drive("frames.mjs", url, "100000", str(shots / "many.png"))
    print(f"\n{json.dumps(seen)}")
    assert seen["frames_per_s"] >= LEAST_FRAMES_PER_S
    assert seen["first_paint_ms"] < 2000
