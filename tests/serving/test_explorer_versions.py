"""A session of the explorer is answered by one version of the model, and its cells count in quotas."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import anndata
import httpx
import numpy as np
import pandas as pd
import pytest

from cytoray.model.predictor import CellPredictor
from cytoray.serving.api import build_api
from cytoray.serving.edge.quotas import Quotas
from cytoray.serving.explorer.config import ExplorerConfig
from cytoray.serving.explorer.hub import Explorer
from cytoray.serving.explorer.routes import add_explorer
from cytoray.serving.rollout.slot import ModelSlot
from cytoray.serving.service import CellService
from cytoray.tasks.endpoint import ServedModel
from cytoray.tasks.messages import ModelInfo

NUM_CELLS = 9  # fewer than UMAP takes
GENES = [f"GENE{number:02d}" for number in range(40)]
API = "/explorer/api/sessions"


def other_version(bundle: Any, limits: Any) -> CellService:
    info = ModelInfo(name="tiny", version="8", digest="e" * 64)
    return CellService(ServedModel(bundle, CellPredictor(bundle, empty_cells="nan"), info), limits=limits)


@pytest.fixture
def content(make_counts: Any, tmp_path: Path) -> bytes:
    obs = pd.DataFrame(index=[f"cell{row}" for row in range(NUM_CELLS)])
    cells = anndata.AnnData(make_counts(NUM_CELLS), obs=obs, var=pd.DataFrame(index=GENES))
    cells.write_h5ad(tmp_path / "cells.h5ad")
    return (tmp_path / "cells.h5ad").read_bytes()


def test_a_session_keeps_its_version_until_it_is_run_again(
    bundle: Any, build_service: Any, content: bytes, tmp_path: Path
) -> None:
    """The version changes while the file is read; the map is answered by the one that was there when it began."""

    async def visit() -> None:
        service = build_service(bundle)
        slot: Any = ModelSlot(service)
        explorer = Explorer(slot, ExplorerConfig(folder=str(tmp_path / "sessions"), demos=()))
        api = build_api(service)
        add_explorer(api, explorer)
        transport = httpx.ASGITransport(api, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as page:
            opened = (await page.post(API, json={"name": "cells.h5ad", "num_bytes": len(content)})).json()
            route = f"{API}/{opened['id']}"
            await page.put(f"{route}/file?offset=0", content=content)
            await asyncio.sleep(0)  # the work begins
            slot.swap(other_version(bundle, service.limits), keep_s=1000.0)
            refused = await page.post(f"{route}/again")
            assert (refused.status_code, refused.json()["detail"]) == (
                404, "The file is being worked on. Wait for the map.",
            )  # fmt: skip
            await explorer.wait(opened["id"])

            first = await page.get(route)
            state = first.json()
            assert (state["stage"], state["model"]["version"]) == ("ready", "7"), state
            assert (await page.get("/explorer/api/about")).json()["model"]["version"] == "8"
            # Embedding and annotation are one forward pass per cell, charged to who watches.
            assert first.headers["x-cells"] == str(NUM_CELLS)
            assert (await page.get(route)).headers["x-cells"] == "0"
            assert (await page.get(f"{route}/download/answers.csv")).status_code == 200

            assert (await page.post(f"{route}/again")).status_code == 202
            await explorer.wait(opened["id"])
            second = await page.get(route)
            again = second.json()
            assert (again["stage"], again["model"]["version"]) == ("ready", "8"), again
            assert second.headers["x-cells"] == str(NUM_CELLS)
            assert [column["name"] for column in again["columns"]] == [column["name"] for column in state["columns"]]
            genes = np.frombuffer((await page.get(f"{route}/genes/GENE00")).content, "<f4")
            assert len(genes) == NUM_CELLS
            assert (await page.delete(route)).status_code == 204
        await explorer.close()
        await slot.close()

    asyncio.run(visit())
    assert not [path for path in (tmp_path / "sessions").rglob("*") if path.is_file()]


def test_the_edge_charges_what_an_answer_reports() -> None:
    """The header is the one by which all routes report their cells to the quotas."""
    from cytoray.serving.edge.exchange import CELLS_HEADER
    from cytoray.serving.edge.keys import Allowance

    assert CELLS_HEADER == b"x-cells"
    quotas = Quotas(lambda: 0.0)
    allowance = Allowance(scopes=("explorer",), cells_per_minute=5)
    quotas.enter("lab", allowance)
    quotas.leave("lab", allowance, cells=NUM_CELLS)
    with pytest.raises(Exception, match="has used its 5 cells per minute"):
        quotas.enter("lab", allowance)
