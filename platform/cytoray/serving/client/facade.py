"""The part of ``Client`` and ``AsyncClient`` that builds calls: the methods that they get from the table of tasks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Unpack

from cytoray.errors import RequestError
from cytoray.serving.client.questions import Asked, ask_endpoint, ask_method, is_anndata
from cytoray.serving.client.settings import ClientSettings, Settings
from cytoray.serving.sending import CellSource
from cytoray.tasks import find_endpoint, task_endpoints
from cytoray.tasks.messages import CellsRequest


class Methods:
    """The base of both clients."""

    def __init__(self, url: str, timeout: float = 60.0, **settings: Unpack[ClientSettings]) -> None:
        """Check and keep the settings."""
        self.url = url.rstrip("/")
        self._settings = Settings(self.url, timeout, **settings)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return the method of an endpoint of the table.

        If it is about cells, it takes an AnnData (``matrix`` and ``gene_names`` as in ``annotate_adata``), a DataFrame
        with genes as columns, or genes and a matrix; otherwise the members of the request in their order. Further
        members are given by name, and so are ``model`` and ``resume``.
        """
        if name.startswith("_") or name not in task_endpoints():
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return partial(self._method, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *task_endpoints()})

    def _method(self, name: str, /, *given: Any, **options: Any) -> Any:
        """Call the method of an endpoint."""
        return self._call(ask_method(name, given, options, model=self._settings.model))

    def _named(self, name: str, source: CellSource | None, options: dict[str, Any]) -> Any:
        """Call an endpoint by name."""
        resume, model = options.pop("resume", None), options.pop("model", self._settings.model)
        return self._call(ask_endpoint(name, source, options, model=model, resume=resume))

    def _query(self, adata: Any, task: str, options: dict[str, Any]) -> Any:
        """Ask about the cells of an AnnData, and return it with the answers."""
        if not issubclass(find_endpoint(task).request, CellsRequest):
            raise RequestError(f"{task} is not about cells.", remedy=f"Write client.{task}(…).")
        if not is_anndata(adata):
            raise RequestError(f"query was given {type(adata).__name__}.", remedy="Give it an AnnData.")
        return self._call(ask_method(task, (adata,), options, model=self._settings.model), adata)

    def _embed_or_annotate(self, name: str, given: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Answer an AnnData with an AnnData, and genes with a matrix with arrays."""
        if len(given) == 1 and is_anndata(given[0]):
            return self._query(given[0], name, options)
        return self._method(name, *given, **options)

    def _call(self, asked: Asked, adata: Any = None) -> Any:
        """Ask, and return the result: an AnnData if there was one."""
        raise NotImplementedError
