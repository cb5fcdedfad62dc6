"""The client for asynchronous code: ``AsyncClient(url)``."""

# C cells, D width

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import numpy.typing as npt

from cytoray.serving.client.core import Core
from cytoray.serving.client.facade import Methods
from cytoray.serving.client.frames import annotated
from cytoray.serving.client.jobs import AsyncJob
from cytoray.serving.client.questions import Asked
from cytoray.serving.client.reading import read_result, warn
from cytoray.serving.client.settings import ClientSettings
from cytoray.serving.sending import CellSource
from cytoray.tasks.annotation.answers import Annotations

if TYPE_CHECKING:
    import anndata

Float32 = npt.NDArray[np.float32]


class AsyncClient(Methods):
    """A connection to one service from one event loop; its methods are those of ``Client``, to be awaited.

    ::

        async with AsyncClient("http://localhost:8000") as client:
            adata = await client.annotate(adata)
    """

    def __init__(self, url: str, timeout: float = 60.0, **settings: Unpack[ClientSettings]) -> None:
        """Connect to a service; arguments as of ``Client``."""
        super().__init__(url, timeout, **settings)
        self._core = Core(self._settings)

    async def query(self, adata: anndata.AnnData, task: str = "annotate", **options: Any) -> anndata.AnnData:
        """Return ``adata`` with the answers of a task about cells; see ``Client.query``."""
        found: anndata.AnnData = await self._query(adata, task, options)
        return found

    async def embed(self, *cells: Any, **options: Any) -> Any:
        """Return the embeddings of cells; see ``Client.embed``."""
        return await self._embed_or_annotate("embed", cells, options)

    async def annotate(self, *cells: Any, **options: Any) -> Any:
        """Return the labels of cells; see ``Client.annotate``."""
        return await self._embed_or_annotate("annotate", cells, options)

    async def embed_adata(self, adata: anndata.AnnData, **options: Any) -> Float32:
        """Return the embeddings (C, D) of the C cells of ``adata``; see ``Client.embed_adata``."""
        embeddings: Float32 = await self._method("embed", adata, **options)
        return embeddings

    async def annotate_adata(self, adata: anndata.AnnData, **options: Any) -> Annotations:
        """Return labels, probabilities and embeddings of the C cells of ``adata``; see ``Client.annotate_adata``."""
        found: Annotations = await self._method("annotate", adata, **options)
        return found

    async def ask(self, endpoint: str, sent: CellSource | None = None, /, **members: Any) -> Any:
        """Ask any endpoint by name; see ``Client.ask``."""
        return await self._named(endpoint, sent, members)

    async def submit_job(self, cells: Any, task: str = "annotate", **options: Any) -> AsyncJob:
        """Submit a job for many cells; see ``Client.submit_job``."""
        return await self._core.submit_job(cells, task, options)

    async def job(self, job_id: str) -> AsyncJob:
        """Return a job that was submitted before, by its id."""
        return await self._core.find_job(job_id)

    async def close(self) -> None:
        """Close the connections."""
        await self._core.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, asked: Asked, adata: Any = None) -> Any:
        received = await self._core.ask(asked)
        if adata is None:
            return read_result(received)
        warn(received)
        return annotated(adata, received)
