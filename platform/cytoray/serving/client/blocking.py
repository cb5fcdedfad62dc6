"""The client for ordinary code: ``Client(url)``."""

# C cells, D width

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import numpy.typing as npt

from cytoray.serving.client.background import Background
from cytoray.serving.client.core import Core
from cytoray.serving.client.facade import Methods
from cytoray.serving.client.frames import annotated
from cytoray.serving.client.jobs import Job
from cytoray.serving.client.questions import Asked
from cytoray.serving.client.reading import read_result, warn
from cytoray.serving.client.settings import ClientSettings
from cytoray.serving.sending import CellSource
from cytoray.tasks.annotation.answers import Annotations

if TYPE_CHECKING:
    import anndata

Float32 = npt.NDArray[np.float32]


class Client(Methods):
    """A connection to one service; sends many cells in several requests. Use as a context manager, or ``close`` it.

    ::

        with Client("http://localhost:8000") as client:
            adata = client.annotate(adata)
            print(adata.obs["cytoray_label"].value_counts())

    Requests are sent again after failures that may pass: a connection that breaks, a busy service, a replica that
    dies. If a call fails all the same after some cells were answered, the error is an ``IncompleteError`` that holds
    these answers. All cells of a call are answered by one version of the model.
    """

    def __init__(self, url: str, timeout: float = 60.0, **settings: Unpack[ClientSettings]) -> None:
        """Connect to the service at ``url``; ``timeout`` in seconds applies to each request.

        ``settings`` are keyword arguments, see ``ClientSettings``: cells_per_request, parallel, deadline, patience,
        key, model, wire, progress, transport.
        """
        super().__init__(url, timeout, **settings)
        self._core, self._background = Core(self._settings), Background()

    def query(self, adata: anndata.AnnData, task: str = "annotate", **options: Any) -> anndata.AnnData:
        """Return ``adata`` with the answers of a task about cells: embed, annotate, map, proteins, integrate.

        Labels, probabilities and doubts are columns ``cytoray_…`` of obs, arrays are in obsm (``X_cytoray``), with the
        names of their columns in uns (``…_names``), and the model that answered is in ``uns["cytoray"]``. The result
        shares the matrices of ``adata``, which is not changed; a backed one is read in parts, and gets the answers
        itself. ``options``: ``matrix`` (X, raw.X or layers/NAME), ``gene_names`` ("index" or a column of ``var``),
        ``model``, ``resume``, and members of the request, such as ``batch``. Errors are those of ``annotate_adata``.
        """
        found: anndata.AnnData = self._query(adata, task, options)
        return found

    def embed(self, *cells: Any, **options: Any) -> Any:
        """Return the embeddings of cells: ``embed(adata)`` as ``query``, ``embed(genes, matrix)`` as an array (C, D).

        ``matrix`` (C, G) has cells as rows, over ``genes``; ``ensembl_ids=`` (G entries, empty if unknown) identify
        genes whose names are not in the model's vocabulary, ``ids=`` are names of cells. Raises RequestError (with the
        service's ``code``) for input that is refused, ServingError if the service cannot answer, IncompleteError if
        some cells were answered. Warns about unknown genes if no Ensembl ids were sent.
        """
        return self._embed_or_annotate("embed", cells, options)

    def annotate(self, *cells: Any, **options: Any) -> Any:
        """Return labels: ``annotate(adata)`` as ``query``, ``annotate(genes, matrix)`` as arrays; see ``embed``."""
        return self._embed_or_annotate("annotate", cells, options)

    def embed_adata(self, adata: anndata.AnnData, **options: Any) -> Float32:
        """Return the embeddings (C, D) of the C cells of ``adata``; arguments and errors as in ``annotate_adata``."""
        embeddings: Float32 = self._method("embed", adata, **options)
        return embeddings

    def annotate_adata(self, adata: anndata.AnnData, **options: Any) -> Annotations:
        """Return labels, probabilities and embeddings of the C cells of ``adata``, which is not changed.

        Names, Ensembl ids and genomes are sent, taken from ``adata.var`` by the rules for files, so that the answers
        are those of ``scGPT.process_data`` and of the offline jobs: a cell without a gene that the model knows has NaN
        and the label None, with a warning that names it. Options: ``matrix`` is X, raw.X or layers/NAME;
        ``gene_names`` is "index" or a column of ``var``. Raises CorpusError for a missing matrix or column; otherwise
        as ``embed``.
        """
        found: Annotations = self._method("annotate", adata, **options)
        return found

    def ask(self, endpoint: str, sent: CellSource | None = None, /, **members: Any) -> Any:
        """Ask any endpoint by name: ``client.ask("embed", check_cells(genes, matrix))``.

        ``sent`` are cells, made by ``sending.check_cells`` or ``sending.cells_of_adata``, None for an endpoint that is
        not about cells; ``members`` are further members of the request. Returns what the endpoint makes of the
        answers, an array for instance. Raises RequestError for an unknown endpoint; otherwise as ``embed``.
        """
        return self._named(endpoint, sent, members)

    def submit_job(self, cells: Any, task: str = "annotate", **options: Any) -> Job:
        """Submit a job for many cells: an AnnData, a local file (uploaded), ``"s3://…"``, or ``{"corpus": "NAME"}``.

        Options: ``format`` ("h5ad", "parquet", "csv"), ``model``, ``parameters`` (further members of a request of the
        task), ``key`` (the same key gives the same job again). ``submit_job(…).result("answers.h5ad")`` waits for the
        result and downloads it.
        """
        return Job(self._background, self._background.run(self._core.submit_job(cells, task, options)))

    def job(self, job_id: str) -> Job:
        """Return a job that was submitted before, by its id."""
        return Job(self._background, self._background.run(self._core.find_job(job_id)))

    def close(self) -> None:
        """Close the connections, and end the thread that served them."""
        if self._background.is_running:
            self._background.run(self._core.close())
            self._background.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        self.close()

    def _call(self, asked: Asked, adata: Any = None) -> Any:
        received = self._background.run(self._core.ask(asked))
        if adata is None:
            return read_result(received)
        warn(received)
        return annotated(adata, received)
