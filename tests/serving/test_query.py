"""`cytoray query`: a file in, a file out; a query that failed continues; mistakes are explained."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from cytoray.cli.main import main
from cytoray.model.predictor import CellPredictor
from cytoray.serving.client.connection import Connection
from cytoray.serving.edge.config import EdgeConfig
from cytoray.serving.edge.keys import Allowance, create_key

GENES = [f"GENE{number:02d}" for number in range(40)]


@pytest.fixture
def query(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CYTORAY_API_KEY", raising=False)

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["cytoray", "query", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def cells(make_counts: Any, tmp_path: Path) -> Path:
    obs = pd.DataFrame({"donor": ["a"] * 20}, index=[f"cell{row}" for row in range(20)])
    anndata.AnnData(make_counts(20), obs=obs, var=pd.DataFrame(index=GENES)).write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def test_answers_come_in_every_kind_of_file(
    query: Any, cells: Path, bundle: Any, build_service: Any, listen: Any, make_counts: Any, as_cells: Any
) -> None:
    offline = CellPredictor(bundle).predict(as_cells(make_counts(20)))
    assert offline.probabilities is not None
    labels = [offline.labels[best] for best in offline.probabilities.argmax(axis=1)]
    url = listen(build_service(bundle, max_cells=6))  # smaller than the requests of the client
    for kind in ("h5ad", "parquet", "csv"):
        code, out, err = query(cells, "--url", url, "--out", f"out.{kind}")
        assert code == 0, err
        assert f"20 cells answered by tiny version 7: out.{kind}" in out
    adata = anndata.read_h5ad("out.h5ad")
    assert list(adata.obs) == ["donor", "cytoray_label", "cytoray_probability"]
    assert list(adata.obs["cytoray_label"]) == labels
    np.testing.assert_array_equal(adata.X.toarray(), make_counts(20).toarray())
    np.testing.assert_allclose(adata.obsm["X_cytoray"], offline.embeddings, atol=1e-6)
    assert adata.uns["cytoray"]["annotate"]["model"]["version"] == "7"
    table = pq.read_table("out.parquet")
    assert table["obs_name"].to_pylist() == [f"cell{row}" for row in range(20)]
    assert table["label"].to_pylist() == labels
    assert table.schema.metadata[b"cytoray.model_version"] == b"7"
    frame = pd.read_csv("out.csv", index_col="obs_name")
    assert list(frame["label"]) == labels
    shares = frame[[f"probabilities.{label}" for label in offline.labels]]
    np.testing.assert_allclose(shares, offline.probabilities, atol=1e-6)
    assert len([name for name in frame if name.startswith("embedding.")]) == 16
    assert sorted(path.name for path in cells.parent.iterdir()) == ["cells.h5ad", "out.csv", "out.h5ad", "out.parquet"]


def test_a_query_that_failed_continues(
    query: Any, cells: Path, bundle: Any, build_service: Any, listen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = listen(build_service(bundle, max_cells=6))
    asked: list[int] = []
    send = Connection.ask

    async def counted(self: Connection, sent: Any, pace: Any) -> Any:
        asked.append(sent.num_cells)
        if len(asked) == 5:
            monkeypatch.setattr("cytoray.serving.client.connection.Connection._send", lost)
        return await send(self, sent, pace)

    async def lost(self: Connection, sent: Any, headers: Any) -> Any:
        from cytoray.errors import ServingError
        from cytoray.serving.client.failures import Failure

        raise Failure(ServingError("The network is away.", remedy="Wait."), "passing")

    plain = Connection._send
    monkeypatch.setattr(Connection, "ask", counted)
    words = (cells, "--url", url, "--out", "out.h5ad", "--parallel", 1, "--deadline", 0)
    code, out, err = query(*words)
    assert code == 2
    assert "The network is away. Wait." in err
    assert "of 20 cells were answered: the same command again" in err
    assert not Path("out.h5ad").exists()
    monkeypatch.setattr(Connection, "_send", plain)
    before = len(asked)
    code, out, err = query(*words, "--json")
    answer = json.loads(out)
    assert (code, answer["num_cells"]) == (0, 20)
    assert 0 < answer["num_kept"] < 20
    assert sum(asked[before:]) >= 20 - answer["num_kept"]
    assert anndata.read_h5ad("out.h5ad").obs["cytoray_label"].notna().all()


def test_mistakes_are_explained_with_exit_code_2(
    query: Any, cells: Path, bundle: Any, build_service: Any, listen: Any, make_counts: Any, tmp_path: Path
) -> None:
    url = listen(build_service(bundle))
    Path("there.csv").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = listener.getsockname()[1]
    unknown = anndata.AnnData(make_counts(3), var=pd.DataFrame(index=[f"NOPE{number}" for number in range(40)]))
    unknown.write_h5ad("unknown.h5ad")
    Path("empty.key").write_text("\n")
    mistakes: dict[str, tuple[object, ...]] = {
        "already exists": (cells, "--url", url, "--out", "there.csv"),
        "not a file that answers are written to": (cells, "--url", url, "--out", "out.txt"),
        "is not a folder": (cells, "--url", url, "--out", "nowhere/out.csv"),
        "not a task about cells": (cells, "--url", url, "--out", "out.csv", "--task", "genes"),
        "knows 0 of the 40 genes": ("unknown.h5ad", "--url", url, "--out", "out.csv"),
        "Check that the service is running": (
            cells, "--url", f"http://127.0.0.1:{free}", "--out", "out.csv", "--deadline", 0,
        ),
        "not the URL of a service": (cells, "--url", "localhost:8000", "--out", "out.csv"),
        "missing or empty": (cells, "--url", url, "--out", "out.csv", "--api-key-file", "empty.key"),
        "is not NAME=VALUE": (cells, "--url", url, "--out", "out.csv", "--set", "batch"),
        "missing.h5ad": ("missing.h5ad", "--url", url, "--out", "out.csv"),
    }  # fmt: skip
    for message, words in mistakes.items():
        code, out, err = query(*words)
        assert (code, out) == (2, ""), (message, err)
        assert message in err
    assert not Path("out.csv").exists()


def test_the_key_of_a_file_is_sent(
    query: Any, cells: Path, bundle: Any, build_service: Any, listen: Any, tmp_path: Path
) -> None:
    key, _ = create_key(tmp_path / "keys.json", owner="lab", allowance=Allowance(scopes=("annotate",)), days=None)
    url = listen(build_service(bundle), config=EdgeConfig(keys_file=str(tmp_path / "keys.json")))
    Path("right.key").write_text(f"{key}\n")
    code, _, err = query(cells, "--url", url, "--out", "out.csv")
    assert code == 2
    assert "no valid API key" in err
    assert query(cells, "--url", url, "--out", "out.csv", "--api-key-file", "right.key")[0] == 0
