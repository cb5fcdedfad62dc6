"""Jobs of the Python client, by the service itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import pandas as pd
import pytest

from cytoray.errors import RequestError, ServingError
from cytoray.serving.client import AsyncClient, AsyncJob


def test_a_file_and_an_anndata_become_jobs_whose_results_are_downloaded(
    serve_jobs: Callable[..., Any], cells_file: Path, tmp_path: Path
) -> None:
    service = serve_jobs()
    transport = service.client._transport
    names = [f"c{row}" for row in range(21)]

    async def submit() -> tuple[AsyncClient, list[AsyncJob]]:
        client = AsyncClient("http://test", transport=transport)
        cells = anndata.read_h5ad(cells_file)
        jobs = [await client.submit_job(cells_file, format="csv", key="one"), await client.submit_job(cells, "embed")]
        again = await client.submit_job({"upload": jobs[0].about["input"]["upload"]}, format="csv", key="one")
        assert again.id == jobs[0].id
        with pytest.raises(RequestError, match="nothing"):
            await client.submit_job(cells_file, "nothing")
        with pytest.raises(ServingError, match="has not ended within 0 s"):
            await jobs[0].wait(timeout=0)
        return client, jobs

    client, jobs = service.runner.run(submit())
    service.work()

    async def download() -> None:
        await jobs[0].result(tmp_path / "answers.csv")
        await (await client.job(jobs[1].id)).result(tmp_path / "answers.h5ad")
        await client.close()

    service.runner.run(download())
    assert pd.read_csv(tmp_path / "answers.csv")["obs_name"].tolist() == names
    assert list(anndata.read_h5ad(tmp_path / "answers.h5ad").obs_names) == names
