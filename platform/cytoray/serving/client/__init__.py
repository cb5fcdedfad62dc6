"""Python client of the service: ``Client(url).annotate(adata)``; takes AnnData, DataFrames, numpy or scipy.

Every endpoint of the table of tasks is a method: ``client.map(adata)``, ``client.genes(["CD3D"], neighbours=5)``;
``client.query(adata, "map")`` returns the AnnData with the answers. ``AsyncClient`` is the same for asynchronous code.
"""

from cytoray.serving.client.asynchronous import AsyncClient
from cytoray.serving.client.blocking import Client
from cytoray.serving.client.chunks import IncompleteError, Partial
from cytoray.serving.client.jobs import AsyncJob, Job
from cytoray.serving.client.settings import KEY_VARIABLE, PATIENCE_S, ClientSettings

__all__ = [
    "KEY_VARIABLE",
    "PATIENCE_S",
    "AsyncClient",
    "AsyncJob",
    "Client",
    "ClientSettings",
    "IncompleteError",
    "Job",
    "Partial",
]
